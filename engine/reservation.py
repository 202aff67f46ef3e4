"""A reservation: one purchase that the gate accepted, on its way to the ledger.

The gate appends one outbox entry for each batch. Its field `purchases` holds one line for each reservation,

    order_id user_id product_id sale_id quantity[ idempotency_key]

and the entry's own id holds the time of acceptance. On the bus a message is a JSON array of the same records.
"""

from enum import StrEnum
from typing import Annotated

import msgspec

from engine.sale import Id, TimestampMs

OrderId = Annotated[
    str, msgspec.Meta(pattern="^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
]
"""A UUID version 7 in its canonical text form (RFC 9562)."""

IdempotencyKey = Annotated[str, msgspec.Meta(pattern="^[!-~]{1,128}$")]
"""1 to 128 visible ASCII characters, without spaces."""


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """Units taken out of the gate's stock for one purchase, not yet settled in the ledger."""

    order_id: OrderId
    user_id: Id
    product_id: Id
    sale_id: Id
    quantity: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    accepted_ms: TimestampMs
    """When the gate accepted it, Unix milliseconds of the gate's clock."""
    key: IdempotencyKey | None = None


class OrderStatus(StrEnum):
    """Where an order stands. All but PENDING are terminal."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"
    """The payment was declined."""
    REJECTED = "REJECTED"
    """The ledger's guard found no unit left."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A reservation as the ledger settled it."""

    order_id: str
    user_id: int
    product_id: int
    sale_id: int
    quantity: int
    status: OrderStatus
    reason: str | None = None


class Poison(msgspec.Struct, frozen=True):
    """A record that can't be fulfilled: its bytes as they came, and why."""

    body: bytes
    reason: str
