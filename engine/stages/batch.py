"""Batches: what fulfilment works on at a time, cut out of messages of any size."""

from collections.abc import Sequence
from math import ceil
from typing import Final, NamedTuple

import msgspec

from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, count_orders, decode_lots, split_lots, without_orders
from engine.model.message import Message

_PIECES: Final = 16
"""Into so many pieces a batch is cut, so that one order soon stands alone."""


class Batch(msgspec.Struct, eq=False):
    """Lots that are settled together, from one or more messages."""

    lots: list[Lot] = []
    held: list[Lot] = []
    """Lots of sales that another session of PostgreSQL holds."""
    dead_letters: list[DeadLetter] = []
    messages: list[Message] = []
    repeated: bool = False
    """Whether some of it may have been worked on before."""
    trials: "Trials | None" = None
    """How it went so far, if its payment has failed."""

    def finish(self) -> list[Message]:
        """Note that this batch is done; return the messages of which nothing is left to do."""
        for message in self.messages:
            message.parts -= 1
        return [message for message in self.messages if not message.parts]

    def take_out(self, lots: Sequence[Lot], trials: "Trials") -> list["Batch"]:
        """Take these lots out, as smaller batches of their own."""
        self.lots = without_orders(self.lots, {order_id for lot in lots for order_id in lot.order_ids})
        size, pieces = ceil(count_orders(lots) / _PIECES), list[Batch]()
        while lots:
            piece, lots = split_lots(lots, size)
            pieces.append(Batch(lots=piece, messages=self.messages, repeated=True, trials=trials))
        for message in self.messages:
            message.parts += len(pieces)
        return pieces


class Trials(NamedTuple):
    """How the payment of a batch, and of those that it was cut from, has failed so far."""

    since: float
    """When it failed first, of the monotonic clock."""
    attempts: int
    failures: int
    """Attempts of a single order that failed while the gateway worked for others."""
    answers: int
    """How often the gateway had answered when it failed last."""


class Packer:
    """Makes batches of exactly `size` orders out of messages; a lot is cut where a batch is full."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._open = Batch()
        self._room = size
        self.newest_ms = 0
        """When the newest purchase was accepted that it has had, Unix milliseconds of the gate's clock."""

    @property
    def empty(self) -> bool:
        """Whether every message has left in batches."""
        return not self._open.messages

    def add(self, message: Message) -> list[Batch]:
        """Take a message in; return the batches that it filled."""
        full = []
        rest, dead_letters = decode_lots(message.lines)
        self._open.dead_letters += dead_letters
        if rest:
            self.newest_ms = max(self.newest_ms, rest[-1].accepted_ms)
        while True:
            lots, rest = split_lots(rest, self._room)
            self._open.lots += lots
            self._open.messages.append(message)
            self._open.repeated |= message.repeated
            message.parts += 1
            self._room -= count_orders(lots)
            if not self._room:
                full += self.flush()
            if not rest:
                return full

    def flush(self) -> list[Batch]:
        """Return the batch that is not full yet, if there is one."""
        if self.empty:
            return []
        batch, self._open, self._room = self._open, Batch(), self._size
        return [batch]
