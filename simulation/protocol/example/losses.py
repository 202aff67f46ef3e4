"""What Redis loses, whether it was on its way already, and whether anybody who lives can notice.

An order that Redis lost and that is settled all the same is a surprise: the gate sells its unit again, and
does not know that its key has bought, or its user. Nobody can notice if all who were answered since the copy
are gone, and if the ledger has nothing newer than the copy; or if only a relay had the order, or the network.
A surprise ends with the next rebuild that reads it in the ledger.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from simulation.model.formats import decode_pending, name_key
from simulation.protocol.example.processes import Process, Stores
from simulation.protocol.steps import Actor
from simulation.protocol.stores.memory import Copy

_COPIES: Final = 3
_TOLD: Final = (b"sale:", b"buyers:", b"answer:")
_OUTBOX, _FENCE, _PENDING = (name_key(0, what) for what in ("outbox", "mark", "pending"))


class Kept(msgspec.Struct, frozen=True):
    """A copy of Redis' memory, and the orders that there were when it was taken."""

    copy: Copy
    known: frozenset[str]


class Surprise(msgspec.Struct):
    """An order that the gate has forgotten, and of which nobody can tell it."""

    settled: frozenset[str]
    """The orders that were settled when it was forgotten."""
    until: frozenset[str] | None = None
    """The orders that there were when a rebuild knew of it; None as long as none does."""

    def is_over_for(self, order_id: str) -> bool:
        """Return whether the gate knew of it when it accepted an order."""
        return self.until is not None and order_id not in self.until

    def may_cost(self, order_id: str) -> bool:
        """Return whether an order may have lost its unit, or its key, to it."""
        return order_id not in self.settled and not self.is_over_for(order_id)


NOTHING: Final = Kept((), frozenset())


class Losses:
    """The copies of one example, and what was lost by going back to them."""

    def __init__(self, stores: Stores) -> None:
        self._memory, self._database, self._bus = stores.memory, stores.database, stores.bus
        self.copies: list[Kept] = []
        self.count = 0
        self._lost: set[str] = set()
        """Orders whose entry Redis lost before they were in the bus; a relay may hold them yet."""
        self.surprises: dict[str, Surprise] = {}
        self._forgotten: set[str] = set()
        """Orders on their way that the gate has forgotten, which those who live can notice yet."""
        self._forgotten_sales: set[int] = set()
        self._noticers: set[Actor] = set()
        """Those who can."""
        self.is_sale_forgotten = False
        """Whether an older sale of a product may have come back, of which nobody could tell."""
        self.is_doubtful = False
        """Whether clients may be told what is untrue because of a loss."""
        self._agree = True
        """Whether gate and ledger have agreed since."""
        self._read: dict[Actor, frozenset[str]] = {}
        """The settled orders that each rebuild has read."""

    def take_copy(self) -> None:
        """Keep a copy."""
        self.copies = [
            *self.copies[1 - _COPIES :],
            Kept(self._memory.take_copy(), frozenset(self._list_orders())),
        ]

    def go_back(self, which: int | None, processes: Iterable[Process]) -> str:
        """Put a server in place of Redis that holds one of the copies, or nothing; return which."""
        kept = NOTHING if which is None or not self.copies else self.copies[which % len(self.copies)]
        if _find_told(self._memory.take_copy()) != _find_told(kept.copy):
            self.is_doubtful, self._agree = True, False
        before, waiting, sales = self._list_orders(), self.list_entries(), self._read_sales()
        self._memory.go_back(kept.copy)
        self.count += 1
        relayed = _read_ids(self._bus.taken) | self._list_settled()
        entries = self.list_entries()
        lost = waiting - entries - relayed
        # A copy may bring back what another one lacked.
        self._lost = (self._lost | lost) - entries
        self._surprise(lost)
        self._forgotten, self._noticers, now = set(), set(), self._read_sales()
        self._forgotten_sales = {sale for product, sale in sales.items() if sale > now.get(product, 0)}
        if self.is_open:
            self._forgotten = (before - kept.known) & relayed
            self._find_noticers(processes)
        return f"a copy of {len(kept.known)} orders" if kept.copy else "nothing"

    def note_absence(self, process: Process) -> None:
        """Note that a process is gone, or stands still for too long, with what it alone may have known."""
        if process in self._noticers:
            self._noticers.discard(process)
            if not self._noticers and self.is_open:
                self._surprise(self._forgotten)
                self.is_sale_forgotten |= bool(self._forgotten_sales)

    def note_reading(self, process: Process) -> None:
        """Note that a keeper reads the sales in the ledger."""
        self._read[process] = frozenset(self._list_settled())

    def note_opening(self, process: Process) -> None:
        """Note that a keeper has opened the gate, which is as the ledger was when the keeper read it."""
        self.note_agreement()
        self._noticers = set()
        orders = frozenset(self._list_orders())
        for order_id, surprise in self.surprises.items():
            if surprise.until is None and order_id in self._read[process]:
                surprise.until = orders

    def note_agreement(self) -> None:
        """Note that the gate is as the ledger; front doors repeat for a moment yet what they heard before."""
        self._agree = True

    def note_time(self) -> None:
        """Note that time passes."""
        if self._agree:
            self.is_doubtful = False

    @property
    def lost(self) -> set[str]:
        """The orders that Redis lost and that were never in the bus."""
        return self._lost - _read_ids(self._bus.taken)

    @property
    def is_open(self) -> bool:
        """Whether the gate is open."""
        return bool(self._memory.call("HEXISTS", _FENCE, "open"))

    def _find_noticers(self, processes: Iterable[Process]) -> None:
        """Find out who knows more than the copy: of orders that are on their way, and that it lacks."""
        if not (self._forgotten or self._forgotten_sales):
            return
        fence = dict(_pair(self._memory.call("HGETALL", _FENCE)))
        generation = int(fence[b"open"])
        [[latest]] = self._database.read("read_generation")
        offered = {row[0] for row in self._database.read("list_offered")}
        if generation < latest or self._is_older(fence) or offered & self._forgotten_sales:
            return
        self._noticers = {
            process
            for process in processes
            for writer, heard in self._memory.heard.get(process, {}).items()
            if (generation, int(fence.get(writer.encode(), 0))) < heard
        }
        if not self._noticers:
            self._surprise(self._forgotten)
            self.is_sale_forgotten |= bool(self._forgotten_sales)

    def _read_sales(self) -> dict[bytes, int]:
        """Return the sales at the gate by the names of their keys."""
        names = self._memory.call("KEYS", name_key(0, "sale:*"))
        return {name: int(self._memory.call("HGET", name, "sale_id") or 0) for name in names}

    def _is_older(self, fence: dict[bytes, bytes]) -> bool:
        """Return whether the ledger has settled an order that is newer than all that the copy knows."""
        [[settled_ms]] = self._database.read("read_newest")
        newest_ms = int(fence.get(b"newest", 0))
        if self._memory.call("EXISTS", _OUTBOX):
            stream = dict(_pair(self._memory.call("XINFO", "STREAM", _OUTBOX)))
            newest_ms = max(newest_ms, int(stream[b"last-generated-id"].partition(b"-")[0]))
        return bool(settled_ms > newest_ms)

    def _surprise(self, orders: Iterable[str]) -> None:
        settled = frozenset(self._list_settled())
        for order_id in orders:
            self.surprises.setdefault(order_id, Surprise(settled))

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


def _find_told(copy: Copy) -> dict[bytes, bytes]:
    """Return what decides what clients are told."""
    return {name: value for name, value in copy if name.rsplit(b"}:")[-1].startswith(_TOLD)}


def _read_ids(bodies: Iterable[bytes]) -> set[str]:
    """Return the ids of the orders in messages, or in entries of the outbox (engine/model/lot.py)."""
    lots = [msgspec.json.decode(line) for body in bodies for line in body.split(b"\n")]
    return {
        f"{stem}{first + number:03x}"
        for stem, first, _, _, _, _, users, *_ in lots
        for number in range(len(users))
    }
