"""Orders: reservations that the ledger has settled or will settle."""

from enum import StrEnum

import msgspec


class OrderStatus(StrEnum):
    """Where an order stands. All but PENDING are terminal."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"
    """The payment was declined."""
    REJECTED = "REJECTED"
    """The ledger had no unit left, or the order's Idempotency-Key has bought another one."""


class Order(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An order as the ledger settled it."""

    order_id: str
    user_id: int
    product_id: int
    sale_id: int
    quantity: int
    status: OrderStatus
    reason: str | None = None
