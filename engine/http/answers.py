"""The front door's answers: status and body for every outcome, and problem documents (RFC 9457)."""

from http import HTTPStatus
from time import monotonic, time
from typing import Final, NamedTuple

import msgspec
from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time

from engine.errors import GateUnavailable, InputError, OutcomeUnknown
from engine.http.heads import CLOSE, CLOSE_10, FRAMINGS, KEEP, KEEP_10
from engine.model.purchase import Outcome
from engine.model.sale import Sale

JSON: Final = "application/json"
RETRY_AFTER_S: Final = "1"
SERVER: Final = "flashgrid"


class Answer(NamedTuple):
    """An HTTP answer, ready to be written."""

    status: int
    body: bytes
    content_type: str = JSON
    retry_after: bool = False


def make_problem(
    status: int,
    title: str,
    detail: str,
    code: str,
    field: str | None = None,
    retry: bool = False,
    **more: object,
) -> Answer:
    """Return an answer with a problem document (RFC 9457).

    `code` is for programs to decide by, `field` is the input at fault, `retry` adds Retry-After, `more` are
    further members.
    """
    problem = {"title": title, "status": status, "detail": detail, "code": code, **more}
    if field is not None:
        problem["field"] = field
    return Answer(status, msgspec.json.encode(problem), "application/problem+json", retry)


_REFUSALS: Final = {
    Outcome.SOLD_OUT: Answer(429, b'{"status":"SOLD_OUT"}'),
    Outcome.UNKNOWN_PRODUCT: make_problem(
        404, "Unknown product", "there is no sale of this product", "UNKNOWN_PRODUCT", "productId"
    ),
    Outcome.LIMIT_REACHED: make_problem(
        409, "Limit reached", "this user has bought as much as the sale allows", "LIMIT_REACHED", "userId"
    ),
    Outcome.NOT_STARTED: make_problem(403, "Not started", "the sale has not started yet", "NOT_STARTED"),
    Outcome.SALE_ENDED: make_problem(410, "Sale ended", "the sale is over", "SALE_ENDED"),
    Outcome.GATE_UNAVAILABLE: make_problem(
        503, "Gate unavailable", "nothing is reserved; try again", "GATE_UNAVAILABLE", retry=True
    ),
    Outcome.OUTCOME_UNKNOWN: make_problem(
        503,
        "Outcome unknown",
        "the purchase may be reserved; retry with the same Idempotency-Key to find out",
        "OUTCOME_UNKNOWN",
        retry=True,
    ),
    Outcome.OVERLOADED: make_problem(
        503, "Overloaded", "too many are waiting; nothing is reserved; try again", "OVERLOADED", retry=True
    ),
}  # fmt: skip

PRUNED: Final = make_problem(
    404,
    "Pruned",
    "orders of this age are no longer kept; if it was accepted, it was settled",
    "PRUNED",
    "orderId",
)

_INPUT_ERRORS: Final = {
    400: ("Bad input", "BAD_INPUT"),
    401: ("Unauthorized", "UNAUTHORIZED"),
    403: ("Forbidden", "FORBIDDEN"),
    404: ("Unknown order", "UNKNOWN_ORDER"),
    408: ("Request timeout", "TIMEOUT"),
    413: ("Body too large", "TOO_LARGE"),
    415: ("Wrong content type", "UNSUPPORTED_TYPE"),
    422: ("Key reused", "KEY_REUSED"),
}


def answer_purchase(outcome: Outcome, order_id: str | None) -> Answer:
    """Return the answer to a purchase."""
    if order_id is not None:
        return Answer(200, b'{"status":"ACCEPTED","orderId":"' + order_id.encode("ascii") + b'"}')
    return _REFUSALS[outcome]


def answer_sale(sale: Sale) -> Answer:
    """Return the answer to the opening of a sale that is open."""
    terms = sale.terms
    fields = {
        "saleId": sale.sale_id,
        "productId": terms.product_id,
        "stock": terms.stock,
        "limit": terms.limit,
        "quantity": terms.quantity,
        "startsAt": terms.starts_ms,
        "endsAt": terms.ends_ms,
    }
    return Answer(200, msgspec.json.encode(fields))


def answer_opening(error: Exception, has_key: bool) -> Answer:
    """Return the answer to the opening of a sale that failed: whether the sale may open yet."""
    advice = "repeat with the same Idempotency-Key"
    if isinstance(error, OutcomeUnknown):
        if not has_key:
            advice = "a repeat would open one more in its place, but for a repeat under one Idempotency-Key"
        detail = f"the sale may open by itself; {advice}"
        return make_problem(503, "Outcome unknown", detail, "OUTCOME_UNKNOWN", retry=True)
    detail = f"nothing was opened by this request; {advice}" if has_key else "nothing was opened; try again"
    store = "Gate" if isinstance(error, GateUnavailable) else "Ledger"
    return make_problem(503, f"{store} unavailable", detail, f"{store.upper()}_UNAVAILABLE", retry=True)


def answer_input_error(error: InputError) -> Answer:
    """Return the answer to bad input, which names the field at fault."""
    title, code = _INPUT_ERRORS[error.status]
    return make_problem(error.status, title, error.detail, code, error.field)


def respond(answer: Answer) -> web.Response:
    """Return the aiohttp response of an answer."""
    headers = {"Content-Type": answer.content_type, "Server": SERVER}
    if answer.retry_after:
        headers["Retry-After"] = RETRY_AFTER_S
    return web.Response(status=answer.status, body=answer.body, headers=headers)


def respond_json(fields: object) -> web.Response:
    """Return a 200 with a JSON body."""
    return respond(Answer(200, msgspec.json.encode(fields)))


def respond_http_error(error: web.HTTPException) -> web.Response:
    """Return the problem document of an error of HTTP itself, such as an unknown path or method."""
    code = error.reason.upper().replace(" ", "_")
    response = respond(make_problem(error.status, error.reason, "see /openapi.json", code))
    if "Allow" in error.headers:
        response.headers["Allow"] = error.headers["Allow"]
    return response


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
