"""Purchases: requests to buy, and what the gate says to them."""

from collections.abc import Callable
from enum import StrEnum


class Outcome(StrEnum):
    """What the gate says to a purchase."""

    ACCEPTED = "ACCEPTED"
    SOLD_OUT = "SOLD_OUT"
    LIMIT_REACHED = "LIMIT_REACHED"
    UNKNOWN_PRODUCT = "UNKNOWN_PRODUCT"
    NOT_STARTED = "NOT_STARTED"
    SALE_ENDED = "SALE_ENDED"
    # These three say that the gate could not answer.
    GATE_UNAVAILABLE = "GATE_UNAVAILABLE"
    """It never reached the gate, or the gate is closed: nothing is reserved."""
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    """It was sent and the answer is lost: it may be reserved."""
    OVERLOADED = "OVERLOADED"
    """Too many purchases are waiting: nothing is reserved."""


Answer = Callable[[Outcome, str | None], None]
"""Called once with the outcome and, if it is ACCEPTED, the order id. It must not raise."""


Purchase = tuple[bytes, bytes, str | None, Answer]
"""One validated request to buy: user id and product id in digits, Idempotency-Key, who waits for the answer.

A plain tuple of what came off the wire, since a crowd makes a hundred thousand of them in a second.
"""
