"""What Redis loses, whether it was on its way already, and whether anybody who lives can notice."""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from simulation.model.formats import decode_pending, name_key
from simulation.protocol.processes import Process, Stores
from simulation.protocol.steps import Actor
from simulation.protocol.stores.memory import Copy

_COPIES: Final = 3
_OUTBOX, _FENCE, _PENDING = (name_key(0, what) for what in ("outbox", "mark", "pending"))


class Kept(msgspec.Struct, frozen=True):
    """A copy of Redis' memory, and the orders that there were when it was taken."""

    copy: Copy
    known: frozenset[str]


NOTHING: Final = Kept((), frozenset())


class Losses:
    """The copies of one example, and what was lost by going back to them."""

    def __init__(self, stores: Stores) -> None:
        self._memory, self._database, self._bus = stores.memory, stores.database, stores.bus
        self.copies: list[Kept] = []
        self.count = 0
        self.lost: set[str] = set()
        """Orders that Redis lost before they were in the bus."""
        self.is_unnoticed = False
        """Whether a loss could be noticed by nobody who lives."""
        self._noticers: set[Actor] = set()

    def take_copy(self) -> None:
        """Keep a copy."""
        self.copies = [
            *self.copies[1 - _COPIES :],
            Kept(self._memory.take_copy(), frozenset(self._list_orders())),
        ]

    def go_back(self, which: int | None, processes: Iterable[Process]) -> str:
        """Put a server in place of Redis that holds one of the copies, or nothing; return which."""
        kept = NOTHING if which is None or not self.copies else self.copies[which % len(self.copies)]
        before, waiting = self._list_orders(), self.list_entries()
        self._memory.go_back(kept.copy)
        self.count += 1
        relayed = _read_ids(self._bus.list_bodies()) | self._list_settled()
        self.lost |= waiting - self.list_entries() - relayed
        if kept.copy and (before - kept.known) & relayed:
            self._find_noticers(processes)
        return f"a copy of {len(kept.known)} orders" if kept.copy else "nothing"

    def note_death(self, process: Process) -> None:
        """Note that a process is gone, with what it alone may have known."""
        self.is_unnoticed |= process in self._noticers

    def _find_noticers(self, processes: Iterable[Process]) -> None:
        """Find out who knows more than the copy: of orders that are on their way, and that it lacks."""
        fence = dict(_pair(self._memory.call("HGETALL", _FENCE)))
        generation = int(fence.get(b"open", 0))
        [[latest]] = self._database.read("read_generation")
        if generation < latest:
            return
        noticers = {
            process
            for process in processes
            for writer, *seen in (each.seen for each in process.fences)
            if [generation, int(fence.get(writer.encode(), 0))] < seen
        }
        self._noticers |= noticers
        self.is_unnoticed |= not noticers

    def list_pending(self) -> set[str]:
        """Return the orders that are accepted and not settled, as the gate has it."""
        return decode_pending(dict(_pair(self._memory.call("HGETALL", _PENDING))))

    def list_entries(self) -> set[str]:
        """Return the orders in the outbox."""
        if not self._memory.call("EXISTS", _OUTBOX):
            return set()
        entries = self._memory.call("XRANGE", _OUTBOX, "-", "+")
        return _read_ids(dict(_pair(fields))[b"purchases"] for _, fields in entries)

    def _list_orders(self) -> set[str]:
        """Return every order of which any store knows."""
        relayed = _read_ids(self._bus.list_bodies())
        return self.list_pending() | self.list_entries() | relayed | self._list_settled()

    def _list_settled(self) -> set[str]:
        return {row[0] for row in self._database.read("list_settled")}


def _pair(flat: list[Any]) -> Iterator[tuple[Any, Any]]:
    return zip(flat[::2], flat[1::2], strict=True)


def _read_ids(bodies: Iterable[bytes]) -> set[str]:
    """Return the ids of the orders in messages, or in entries of the outbox (engine/model/lot.py)."""
    lots = [msgspec.json.decode(line) for body in bodies for line in body.split(b"\n")]
    return {
        f"{stem}{first + number:03x}"
        for stem, first, _, _, _, _, users, *_ in lots
        for number in range(len(users))
    }
