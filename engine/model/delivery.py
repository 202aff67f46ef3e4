"""What one stage hands to the next: deliveries of purchases, and the forms they take on the way."""

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from engine.model.dead_letter import Poison
from engine.model.lot import Lot, Reservation
from engine.model.order_id import split_order_id

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Lot)


class Delivery(msgspec.Struct, eq=False, kw_only=True):
    """One outbox entry or one message of the bus, acknowledged as a whole."""

    tag: Any
    """What its source knows it by."""
    lines: bytes
    """Reservations, a line for each lot (reservation.py), as they came."""
    orders: int = 0
    """How many reservations that are; 0 where its source does not say."""
    repeated: bool
    """It may have been worked on before."""
    parts: int = 0
    """Parcels that hold some of it and are not done."""


class Parcel(msgspec.Struct, eq=False):
    """Purchases that are worked on together, from one or more deliveries."""

    reservations: list[Reservation] = []
    poison: list[Poison] = []
    deliveries: list[Delivery] = []
    repeated: bool = False

    def finish(self) -> list[Delivery]:
        """Note that this parcel is done; return the deliveries of which nothing is left to do."""
        for delivery in self.deliveries:
            delivery.parts -= 1
        return [delivery for delivery in self.deliveries if not delivery.parts]


class Packer:
    """Makes parcels of exactly `size` purchases out of deliveries of any size."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._open = Parcel()

    @property
    def empty(self) -> bool:
        """Whether every delivery has left in a parcel."""
        return not self._open.deliveries

    def add(self, delivery: Delivery) -> list[Parcel]:
        """Take a delivery in; return the parcels that it filled."""
        full = []
        reservations, poison = decode_lines(delivery.lines)
        self._open.poison += poison
        start = 0
        while True:
            parcel = self._open
            end = start + self._size - len(parcel.reservations)
            parcel.reservations += reservations[start:end]
            parcel.deliveries.append(delivery)
            parcel.repeated |= delivery.repeated
            delivery.parts += 1
            if len(parcel.reservations) == self._size:
                full += self.flush()
            if end >= len(reservations):
                return full
            start = end

    def flush(self) -> list[Parcel]:
        """Return the parcel that is not full yet, if there is one."""
        if self.empty:
            return []
        parcel, self._open = self._open, Parcel()
        return [parcel]


def decode_lines(lines: bytes) -> tuple[list[Reservation], list[Poison]]:
    """The reservations, and the lines that hold none."""
    poison: list[Poison] = []
    try:
        lots = _decoder.decode_lines(lines)
    except (msgspec.DecodeError, UnicodeDecodeError):
        lots = []
        for line in lines.split(b"\n"):
            try:
                lots.append(_decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                poison.append(Poison(line, str(error)))
    return [reservation for lot in lots for reservation in lot.unpack()], poison


def encode_lines(reservations: Iterable[Reservation]) -> bytes:
    """Lines that `decode_lines` reads, each a lot of one."""
    return b"\n".join(
        _encoder.encode(
            Lot(
                *split_order_id(r.order_id),
                r.product_id,
                r.sale_id,
                r.quantity,
                r.accepted_ms,
                [r.user_id],
                [r.key] if r.key else None,
            )
        )
        for r in reservations
    )


def make_messages(deliveries: Iterable[Delivery], size: int) -> list[bytes]:
    """The lines of all deliveries in their order, whole deliveries of at most `size` reservations together.

    A delivery that is larger is a message of its own.
    """
    messages: list[list[bytes]] = []
    room = 0
    for delivery in deliveries:
        if not messages or delivery.orders > room:
            messages.append([])
            room = size
        messages[-1].append(delivery.lines)
        room -= delivery.orders
    return [b"\n".join(lines) for lines in messages]
