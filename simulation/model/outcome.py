"""What an answer says about a purchase: the contract's words, and whether a unit is reserved."""

from functools import lru_cache
from typing import Any, Final

import msgspec

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
RESULTS: Final = ("ok", "fail", "unknown")
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


def classify(status: int, body: bytes) -> tuple[str, str | None]:
    """Return outcome and order id of an answer; `body` matters only for 200 and 503."""
    if status == 200:
        answer = _decode(body)
        if answer.status == "ACCEPTED" and isinstance(answer.orderId, str) and answer.orderId:
            return "ACCEPTED", answer.orderId
        return "UNKNOWN", None
    return _refusal(status, body if status == 503 else b""), None


def result_of(outcome: str) -> str:
    """Return ok, fail or unknown: what the outcome says about the reservation."""
    return {"ACCEPTED": "ok", "UNKNOWN": "unknown"}.get(outcome, "fail")


# Thousands of refusals have the same bytes.
@lru_cache(maxsize=1_024)
def _refusal(status: int, body: bytes) -> str:
    if status == 503:
        return "UNAVAILABLE" if _decode(body).code in ("GATE_UNAVAILABLE", "OVERLOADED") else "UNKNOWN"
    if 400 <= status < 500:
        return _OF_STATUS.get(status, "INVALID")
    return "UNKNOWN"


def _decode(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Body()
