"""What an answer may say of a purchase, and of the stock or an order that was read, in words of our own."""

from typing import Final

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
SIGHTS: Final = ("SHOWN", "NOT_FOUND")
"""Outcomes that only a read has; it may also be INVALID, UNAVAILABLE or UNKNOWN."""
RESULTS: Final = ("ok", "fail", "unknown")
TERMINAL: Final = ("CONFIRMED", "FAILED", "REJECTED")
"""The states in which an order ends."""
ENDS: Final = ("answered", "refused", "reset", "timeout", "garbage", "never sent")
"""Why an operation ended. Refused: its connection was. Reset: the connection closed before the answer was
complete. Garbage: bytes that are no HTTP. Never sent: the driver gave up before it had a connection."""


class Stock(msgspec.Struct, frozen=True):
    """The units of a product's current sale, as an answer shows them; None what it does not show."""

    remaining: int
    initial: int | None = None
    sold: int | None = None


def result_of(outcome: str) -> str:
    """Return ok, fail or unknown: what the outcome says about the reservation."""
    return {"ACCEPTED": "ok", "SHOWN": "ok", "UNKNOWN": "unknown"}.get(outcome, "fail")
