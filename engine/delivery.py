"""What one stage hands to the next: deliveries of purchases, and the forms they take on the way."""

import contextlib
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from engine.reservation import Poison, Reservation, are_order_ids

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Reservation)


class Delivery(msgspec.Struct, eq=False, kw_only=True):
    """One outbox entry or one message of the bus, acknowledged as a whole."""

    tag: Any
    """What its source knows it by."""
    lines: bytes
    """Reservations, a line each (reservation.py), as they came."""
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
    """The reservations, and the lines that are none."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError):
        reservations = _decoder.decode_lines(lines)
        if are_order_ids([reservation.order_id for reservation in reservations]):
            return reservations, []
    good, poison = [], []
    for line in lines.split(b"\n"):
        try:
            reservation = _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            poison.append(Poison(line, str(error)))
        else:
            if are_order_ids([reservation.order_id]):
                good.append(reservation)
            else:
                poison.append(Poison(line, "the order id is not a UUID version 7"))
    return good, poison


def encode_lines(reservations: Iterable[Reservation]) -> bytes:
    """The lines that `decode_lines` reads."""
    return b"\n".join(map(_encoder.encode, reservations))


def join_lines(deliveries: Iterable[Delivery], size: int) -> list[bytes]:
    """The lines of all deliveries in their order, `size` lines together; fewer at the end."""
    lines = b"\n".join([delivery.lines for delivery in deliveries]).split(b"\n")
    return [b"\n".join(lines[start : start + size]) for start in range(0, len(lines), size)]
