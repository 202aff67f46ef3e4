"""What an answer says of a purchase, in the contract's words, and of the stock or an order that was read."""

from functools import lru_cache
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

OUTCOMES: Final = (
    "ACCEPTED",
    "SOLD_OUT",
    "LIMIT_REACHED",
    "NOT_STARTED",
    "SALE_ENDED",
    "UNKNOWN_PRODUCT",
    "INVALID",
    "UNAVAILABLE",
    "UNKNOWN",
)
REFUSALS: Final = ("LIMIT_REACHED", "NOT_STARTED", "SALE_ENDED", "UNKNOWN_PRODUCT", "INVALID")
"""Refusals other than SOLD_OUT."""
SIGHTS: Final = ("SHOWN", "NOT_FOUND")
"""Outcomes that only a read has; it may also be INVALID, UNAVAILABLE or UNKNOWN."""
RESULTS: Final = ("ok", "fail", "unknown")
TERMINAL: Final = ("CONFIRMED", "FAILED", "REJECTED")
"""The states in which an order ends."""
ENDS: Final = ("answered", "refused", "reset", "timeout", "garbage", "never sent")
"""Why an operation ended. Refused: its connection was. Reset: the connection closed before the answer was
complete. Garbage: bytes that are no HTTP. Never sent: the driver gave up before it had a connection."""

_OF_STATUS: Final = {
    403: "NOT_STARTED",
    404: "UNKNOWN_PRODUCT",
    409: "LIMIT_REACHED",
    410: "SALE_ENDED",
    429: "SOLD_OUT",
}


class _Body(msgspec.Struct):
    status: Any = None
    code: Any = None
    orderId: Any = None  # noqa: N815 - the contract's name


_Units = Annotated[int, Meta(ge=-(10**15), le=10**15)]


class Stock(msgspec.Struct, frozen=True):
    """The units of a product's current sale, as an answer shows them."""

    initial: _Units
    remaining: _Units
    sold: _Units
    productId: int | None = None  # noqa: N815


def classify(status: int, body: bytes | None = None) -> tuple[str, str | None]:
    """Return outcome and order id of an answer. A refusal whose body does not name it is UNKNOWN; without a
    body, its status counts alone."""
    if status == 200:
        answer = _decode(body or b"")
        if answer.status == "ACCEPTED" and isinstance(answer.orderId, str) and answer.orderId:
            return "ACCEPTED", answer.orderId
        return "UNKNOWN", None
    return _refusal(status, body), None


def fits(kind: str, status: int, outcome: str) -> bool:
    """Return whether an answer with that status, to an operation of that kind, may have that outcome."""
    if status == 503:
        return outcome in ("UNAVAILABLE", "UNKNOWN")
    if kind == "buy":
        return outcome in ("ACCEPTED", "UNKNOWN") if status == 200 else outcome == _refusal(status, None)
    return outcome in ("SHOWN", "UNKNOWN") if status == 200 else outcome == _outcome_of_read(status)


def result_of(outcome: str) -> str:
    """Return ok, fail or unknown: what the outcome says about the reservation."""
    return {"ACCEPTED": "ok", "SHOWN": "ok", "UNKNOWN": "unknown"}.get(outcome, "fail")


def classify_stock(status: int, body: bytes, product_id: int) -> tuple[str, Stock | None]:
    """Return the outcome of a read of a product's stock, and what it showed."""
    if status != 200:
        return _outcome_of_read(status), None
    try:
        stock = msgspec.json.decode(body, type=Stock)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "UNKNOWN", None
    return ("SHOWN", stock) if stock.productId in (None, product_id) else ("UNKNOWN", None)


def classify_order(status: int, body: bytes, order_id: str) -> tuple[str, str | None]:
    """Return the outcome of a read of an order, and the status that it showed."""
    if status != 200:
        return _outcome_of_read(status), None
    answer = _decode(body)
    if isinstance(answer.status, str) and answer.status and answer.orderId in (None, order_id):
        return "SHOWN", answer.status
    return "UNKNOWN", None


def _outcome_of_read(status: int) -> str:
    if 400 <= status < 500:
        return "NOT_FOUND" if status == 404 else "INVALID"
    return "UNAVAILABLE" if status == 503 else "UNKNOWN"


# Thousands of refusals have the same bytes.
@lru_cache(maxsize=1_024)
def _refusal(status: int, body: bytes | None) -> str:
    if status == 503:
        known = _decode(body or b"").code in ("GATE_UNAVAILABLE", "OVERLOADED")
        return "UNAVAILABLE" if known else "UNKNOWN"
    if not 400 <= status < 500:
        return "UNKNOWN"
    word = _OF_STATUS.get(status)
    if word is None or body is None:
        return word or "INVALID"
    answer = _decode(body)
    return word if word in (answer.status, answer.code) else "UNKNOWN"


def _decode(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Body()
