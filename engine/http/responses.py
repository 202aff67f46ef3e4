"""The front door's answers as bytes, ready to be written."""

from http import HTTPStatus
from time import monotonic, time
from typing import Final

from aiohttp.helpers import rfc822_formatted_time

from engine.http.answers import RETRY_AFTER_S, SERVER, Answer, answer_purchase
from engine.http.heads import CLOSE, CLOSE_10, FRAMINGS, KEEP, KEEP_10
from engine.model.purchase import Outcome

_PLACEHOLDER: Final = "x" * 36
"""All order ids are that long."""
_VERSIONS: Final = {KEEP: "HTTP/1.1", CLOSE: "HTTP/1.1", KEEP_10: "HTTP/1.0", CLOSE_10: "HTTP/1.0"}
_CONNECTIONS: Final = {CLOSE: ["Connection: close"], KEEP_10: ["Connection: keep-alive"]}


class _Responses:
    """HTTP responses, byte for byte the ordinary handler's; those to purchases are made once a second."""

    def __init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Write them anew, with the present date."""
        self.stale_at = monotonic() + 1 - time() % 1
        """On time.monotonic: when their date is out of date."""
        self._date = rfc822_formatted_time()
        whole = answer_purchase(Outcome.ACCEPTED, _PLACEHOLDER)
        self.accepted = [
            self.write(whole, framing).removesuffix(_PLACEHOLDER.encode("ascii") + b'"}')
            for framing in FRAMINGS
        ]
        """Up to the order id, by framing."""
        self.refusals: list[dict[Outcome, bytes]] = [
            {
                outcome: self.write(answer_purchase(outcome, None), framing)
                for outcome in Outcome
                if outcome is not Outcome.ACCEPTED
            }
            for framing in FRAMINGS
        ]

    def write(self, answer: Answer, framing: int) -> bytes:
        """Return the response of any answer; its date is as old as the others'."""
        lines = [
            f"{_VERSIONS[framing]} {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Server: {SERVER}",
            *([f"Retry-After: {RETRY_AFTER_S}"] if answer.retry_after else []),
            f"Content-Length: {len(answer.body)}",
            f"Date: {self._date}",
            *_CONNECTIONS.get(framing, []),
        ]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + answer.body


RESPONSES: Final = _Responses()
