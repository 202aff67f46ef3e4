"""Purchases: requests to buy, and what the gate decides about them."""

from collections.abc import Callable
from enum import StrEnum


class Outcome(StrEnum):
    """What the gate decides about a purchase."""

    ACCEPTED = "ACCEPTED"
    SOLD_OUT = "SOLD_OUT"
    LIMIT_REACHED = "LIMIT_REACHED"
    UNKNOWN_PRODUCT = "UNKNOWN_PRODUCT"
    NOT_STARTED = "NOT_STARTED"
    SALE_ENDED = "SALE_ENDED"
    # These three say that the gate could not decide.
    GATE_UNAVAILABLE = "GATE_UNAVAILABLE"
    """The purchase never reached the gate, or the gate is closed: nothing is reserved."""
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    """The purchase was sent and the gate's answer is lost: it may be reserved."""
    OVERLOADED = "OVERLOADED"
    """Too many purchases are waiting: nothing is reserved."""


Reply = Callable[[Outcome, str | None], None]
"""Called once with the outcome and, if it is ACCEPTED, the order id. It must not raise."""


Purchase = tuple[bytes, bytes, str | None, Reply]
"""One validated request to buy: user id and product id in digits, Idempotency-Key, reply.

A plain tuple, since a crowd makes a hundred thousand of them in a second.
"""
