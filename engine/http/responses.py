"""The responses to purchases as bytes, ready to be written."""

from http import HTTPStatus
from time import monotonic, time
from typing import Final

from aiohttp.helpers import rfc822_formatted_time

from engine.http.answers import RETRY_AFTER_S, SERVER, Answer, answer_purchase
from engine.model.purchase import Outcome


class _Responses:
    """The HTTP responses to purchases, byte for byte the ordinary handler's, made once a second."""

    def __init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Write them anew, with the present date."""
        self.stale_at = monotonic() + 1 - time() % 1
        """On time.monotonic: when their date is out of date."""
        # All order ids have the length of this placeholder.
        whole = self._write(answer_purchase(Outcome.ACCEPTED, "x" * 36))
        self.accepted = whole.removesuffix(b"x" * 36 + b'"}')
        """Up to the order id."""
        self.refusals: dict[Outcome, bytes] = {
            outcome: self._write(answer_purchase(outcome, None))
            for outcome in Outcome
            if outcome is not Outcome.ACCEPTED
        }

    def _write(self, answer: Answer) -> bytes:
        lines = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Server: {SERVER}",
            *([f"Retry-After: {RETRY_AFTER_S}"] if answer.retry_after else []),
            f"Content-Length: {len(answer.body)}",
            f"Date: {rfc822_formatted_time()}",
        ]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + answer.body


RESPONSES: Final = _Responses()
