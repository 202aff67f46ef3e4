"""What one stage hands to the next: deliveries of purchases, and the forms they take on the way."""

from typing import Any, Final

import msgspec

from engine.reservation import Poison, Reservation

_FIELDS: Final = ("order_id", "user_id", "product_id", "sale_id", "quantity", "key")

_encoder: Final = msgspec.json.Encoder()
_many: Final = msgspec.json.Decoder(list[Reservation])
_one: Final = msgspec.json.Decoder(Reservation)
_records: Final = msgspec.json.Decoder(list[msgspec.Raw])


class Delivery(msgspec.Struct, eq=False, kw_only=True):
    """One outbox entry or one message of the bus, acknowledged as a whole."""

    tag: Any
    """What its source knows it by."""
    reservations: list[Reservation]
    poison: list[Poison]
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
        self._open.poison += delivery.poison
        start = 0
        while True:
            parcel = self._open
            end = start + self._size - len(parcel.reservations)
            parcel.reservations += delivery.reservations[start:end]
            parcel.deliveries.append(delivery)
            parcel.repeated |= delivery.repeated
            delivery.parts += 1
            if len(parcel.reservations) == self._size:
                full += self.flush()
            if end >= len(delivery.reservations):
                return full
            start = end

    def flush(self) -> list[Parcel]:
        """Return the parcel that is not full yet, if there is one."""
        if self.empty:
            return []
        parcel, self._open = self._open, Parcel()
        return [parcel]


def decode_lines(text: bytes, accepted_ms: int) -> tuple[list[Reservation], list[Poison]]:
    """The reservations of an outbox entry, and the lines that are none."""
    try:
        return _convert_lines(text.decode("ascii").split("\n"), accepted_ms), []
    except (msgspec.ValidationError, UnicodeDecodeError):
        pass
    good, poison = [], []
    for line in text.split(b"\n"):
        try:
            good += _convert_lines([line.decode("ascii")], accepted_ms)
        except (msgspec.ValidationError, UnicodeDecodeError) as error:
            poison.append(Poison(line, str(error)))
    return good, poison


def _convert_lines(lines: list[str], accepted_ms: int) -> list[Reservation]:
    rows: list[dict[str, str | int]] = []
    for line in lines:
        # At most six words: whatever follows the fifth is the key, whose pattern allows no space.
        row: dict[str, str | int] = dict(zip(_FIELDS, line.split(" ", 5), strict=False))
        row["accepted_ms"] = accepted_ms
        rows.append(row)
    return msgspec.convert(rows, list[Reservation], strict=False)


def encode_lines(reservations: list[Reservation]) -> str:
    """The reservations as an outbox entry holds them."""
    return "\n".join(
        f"{r.order_id} {r.user_id} {r.product_id} {r.sale_id} {r.quantity}{f' {r.key}' if r.key else ''}"
        for r in reservations
    )


def encode_message(reservations: list[Reservation]) -> bytes:
    """The body of a message on the bus."""
    return _encoder.encode(reservations)


def decode_message(body: bytes) -> tuple[list[Reservation], list[Poison]]:
    """The reservations of a message on the bus, and the records in it that are none."""
    try:
        return _many.decode(body), []
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        records = _records.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return [], [Poison(body, str(error))]
    good, poison = [], []
    for record in records:
        try:
            good.append(_one.decode(record))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            poison.append(Poison(bytes(record), str(error)))
    return good, poison
