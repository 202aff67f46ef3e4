"""A reservation: one purchase that the gate accepted, on its way to the ledger.

They travel in lots. The gate appends one outbox entry for each batch; its field `orders` says how many it
accepted, and `purchases` holds a line of JSON for each product of the batch,

    ["stem",first place,product id,sale id,quantity,accepted, Unix ms,[user ids],[Idempotency-Keys or null]]

the last of them only where somebody has a key. The n-th purchase has the n-th place from the first on, which
completes the stem to its order id (order_id.py). On the bus a message holds some of the same lines (NDJSON),
so that the relay need not look into them.
"""

from itertools import repeat
from typing import Annotated

import msgspec

from engine.model.order_id import PLACES, OrderStem
from engine.model.sale import Id, TimestampMs

IdempotencyKey = Annotated[str, msgspec.Meta(pattern="^[!-~]{1,128}$")]
"""1 to 128 visible ASCII characters, without spaces."""


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """Units taken out of the gate's stock for one purchase, not yet settled in the ledger."""

    order_id: str
    user_id: int
    product_id: int
    sale_id: int
    quantity: int
    accepted_ms: int
    """When the gate accepted it, Unix milliseconds of the gate's clock."""
    key: str | None = None


class Lot(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True, gc=False):
    """Reservations of one batch and product, as they travel."""

    stem: OrderStem
    first_place: Annotated[int, msgspec.Meta(ge=0)]
    product_id: Id
    sale_id: Id
    quantity: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    accepted_ms: TimestampMs
    user_ids: Annotated[list[Id], msgspec.Meta(min_length=1)]
    keys: list[IdempotencyKey | None] | None = None

    def __post_init__(self) -> None:
        if self.first_place + len(self.user_ids) > len(PLACES):
            raise ValueError("more orders than a batch has places")
        if self.keys is not None and len(self.keys) != len(self.user_ids):
            raise ValueError("as many keys as users are needed")

    def unpack(self) -> list[Reservation]:
        """Its reservations, in the order of their places."""
        stem, product_id, sale_id = self.stem, self.product_id, self.sale_id
        quantity, accepted_ms = self.quantity, self.accepted_ms
        places = PLACES[self.first_place : self.first_place + len(self.user_ids)]
        return [
            Reservation(stem + place, user_id, product_id, sale_id, quantity, accepted_ms, key)
            for place, user_id, key in zip(places, self.user_ids, self.keys or repeat(None), strict=False)
        ]
