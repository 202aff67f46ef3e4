"""Lots: the reservations of one batch and product, on their way from the gate to the ledger.

The gate appends one outbox entry for each batch. Its field `orders` says how many purchases it accepted, and
`purchases` holds a lot for each product, a line of JSON each:

    ["stem",first place,product id,sale id,quantity,accepted, Unix ms,[user ids],[Idempotency-Keys or null]]

The keys are left out where no purchase has one. The n-th purchase of a lot has the n-th place from the first
on, which completes the stem to its order id (order_id.py). A message of the bus holds some of the same lines.
"""

from collections.abc import Iterable, Sequence, Set
from typing import Annotated, Final

import msgspec

from engine.model.dead_letter import DeadLetter
from engine.model.order import Order
from engine.model.order_id import PLACES, is_stem, split_order_id
from engine.model.sale import Id, TimestampMs

IdempotencyKey = Annotated[str, msgspec.Meta(pattern="^[!-~]{1,128}$")]
"""1 to 128 visible ASCII characters, without spaces."""


class Lot(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Reservations of one batch and product. Its length is the number of orders."""

    stem: str
    """What the order ids of its batch have in common."""
    first_place: Annotated[int, msgspec.Meta(ge=0)]
    product_id: Id
    sale_id: Id
    quantity: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """Units of each reservation."""
    accepted_ms: TimestampMs
    """When the gate accepted it, Unix milliseconds of the gate's clock."""
    user_ids: Annotated[list[Id], msgspec.Meta(min_length=1)]
    keys: list[IdempotencyKey | None] | None = None

    def __post_init__(self) -> None:
        if not is_stem(self.stem):
            raise ValueError("no stem of order ids")
        if self.first_place + len(self.user_ids) > len(PLACES):
            raise ValueError("more orders than a batch has places")
        if self.keys is not None and len(self.keys) != len(self.user_ids):
            raise ValueError("as many keys as users are needed")

    def __len__(self) -> int:
        return len(self.user_ids)

    @classmethod
    def of_order(cls, order: Order) -> "Lot":
        """Return a lot of one order, which says neither when it was accepted nor its key."""
        stem, place = split_order_id(order.order_id)
        return cls(stem, place, order.product_id, order.sale_id, order.quantity, 0, [order.user_id])

    @property
    def places(self) -> tuple[str, ...]:
        """What completes the stem to each order's id."""
        return PLACES[self.first_place : self.first_place + len(self.user_ids)]

    @property
    def order_ids(self) -> list[str]:
        """The ids of its orders."""
        stem = self.stem
        return [stem + place for place in self.places]

    def cut(self, start: int, end: int) -> "Lot":
        """Return the part that holds the orders from number `start` up to `end`, which is left out."""
        return msgspec.structs.replace(
            self,
            first_place=self.first_place + start,
            user_ids=self.user_ids[start:end],
            keys=self.keys and self.keys[start:end],
        )


_decoder: Final = msgspec.json.Decoder(Lot)


def encode_lots(lots: Iterable[Lot]) -> bytes:
    """Return the lines that `decode_lots` reads."""
    return b"\n".join(map(msgspec.json.encode, lots))


def decode_lots(lines: bytes) -> tuple[list[Lot], list[DeadLetter]]:
    """Return the lots, and the lines that hold none."""
    dead_letters: list[DeadLetter] = []
    try:
        lots = _decoder.decode_lines(lines)
    except (msgspec.DecodeError, UnicodeDecodeError):
        lots = []
        for line in lines.split(b"\n"):
            try:
                lots.append(_decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                dead_letters.append(DeadLetter(line, str(error)))
    return lots, dead_letters


def count_orders(lots: Iterable[Lot]) -> int:
    """Return the number of orders in all lots."""
    return sum([len(lot.user_ids) for lot in lots])


def split_lots(lots: Sequence[Lot], size: int) -> tuple[list[Lot], list[Lot]]:
    """Return the first `size` orders, and the rest; the lot in between is cut in two."""
    for number, lot in enumerate(lots):
        if size < len(lot.user_ids):
            first, rest = list(lots[:number]), list(lots[number:])
            if size:
                first.append(lot.cut(0, size))
                rest[0] = lot.cut(size, len(lot))
            return first, rest
        size -= len(lot.user_ids)
    return list(lots), []


def without_orders(lots: Iterable[Lot], order_ids: Set[str]) -> list[Lot]:
    """Return the lots without these orders, each cut where one of them is left out."""
    kept: list[Lot] = []
    for lot in lots:
        if not order_ids or order_ids.isdisjoint(lot.order_ids):
            kept.append(lot)
            continue
        start = 0
        for number, order_id in enumerate(lot.order_ids):
            if order_id in order_ids:
                if start < number:
                    kept.append(lot.cut(start, number))
                start = number + 1
        if start < len(lot):
            kept.append(lot.cut(start, len(lot)))
    return kept
