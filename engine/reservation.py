"""A reservation: one purchase that the gate accepted, on its way to the ledger.

The gate appends one outbox entry for each batch. Its field `purchases` holds one line of JSON for each,

    ["order id",user id,product id,sale id,quantity,accepted, Unix ms,"Idempotency-Key"]

the last of them only where there is a key. On the bus a message holds some of the same lines (NDJSON), so
that the relay need not look into them.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Final

import msgspec

from engine.sale import Id, TimestampMs

OrderId = Annotated[
    str, msgspec.Meta(pattern="^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
]
"""A UUID version 7 in its canonical text form (RFC 9562)."""

_ID_LENGTH: Final = 36
_ID_SHAPE: Final = b"xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx"
_TO_SHAPE: Final = bytes(
    ord("x") if chr(byte) in "0123456789abcdef" else byte if chr(byte) == "-" else 0 for byte in range(256)
)

IdempotencyKey = Annotated[str, msgspec.Meta(pattern="^[!-~]{1,128}$")]
"""1 to 128 visible ASCII characters, without spaces."""


class Reservation(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Units taken out of the gate's stock for one purchase, not yet settled in the ledger."""

    order_id: str
    """An OrderId, which `are_order_ids` makes sure of for many at once."""
    user_id: Id
    product_id: Id
    sale_id: Id
    quantity: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    accepted_ms: TimestampMs
    """When the gate accepted it, Unix milliseconds of the gate's clock."""
    key: IdempotencyKey | None = None


def are_order_ids(texts: Sequence[str]) -> bool:
    """Whether each of them is an OrderId; at a tenth of what its pattern costs for each."""
    together = "".join(texts).encode("ascii", "replace")
    return (
        set(map(len, texts)) <= {_ID_LENGTH}
        and together.translate(_TO_SHAPE) == _ID_SHAPE * len(texts)
        and not together[14::_ID_LENGTH].strip(b"7")
        and not together[19::_ID_LENGTH].strip(b"89ab")
    )


class OrderStatus(StrEnum):
    """Where an order stands. All but PENDING are terminal."""

    PENDING = "PENDING"
    CONFIRMED = "CONFIRMED"
    FAILED = "FAILED"
    """The payment was declined."""
    REJECTED = "REJECTED"
    """The ledger's guard found no unit left."""


class Order(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
