"""What those who look ask the gate: stock, and whether orders are pending or were confirmed lately."""

import math
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

from redis.exceptions import RedisError

from engine.errors import GateUnavailable
from engine.gate.clearing import KeptLot, decode_confirmed, find_confirmed
from engine.gate.client import Command, Shard, ask_each
from engine.gate.connection.wire import Wire
from engine.gate.fence import NOTICED_S, Fence, check_primary
from engine.gate.keys import shard_of
from engine.model.order_id import read_time_ms, split_order_id

T = TypeVar("T")
U = TypeVar("U")

_CLOCKS_MS: Final = 60_000
"""Most that the clock of a front door, which dates its orders, is ahead of the gate's."""
_LATE_S: Final = 60.0
"""Longest time in which the gate hears, once it is back, of what was settled while it was away."""


class Stock(NamedTuple):
    """The gate's view of a product's current sale, in units."""

    sale_id: int
    initial: int
    remaining: int


class Confirmed(NamedTuple):
    """What the gate keeps for a while of an order that the ledger has confirmed."""

    product_id: int
    quantity: int


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise GateUnavailable if Redis does not answer."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise GateUnavailable(f"Redis: {error}") from error


class GateReads:
    """Reads of all shards, each kind on connections of its own: one caller at a time, who bounds the wait.

    Methods raise GateUnavailable if no shard of those that are asked answers.
    """

    def __init__(self, shards: Sequence[tuple[Shard, Fence]]) -> None:
        self._stocks = [_Line(shard) for shard, _ in shards]
        self._pending = [(_Line(shard), fence) for shard, fence in shards]
        self.away_at = -math.inf
        """When orders could last not be asked for in time, on time.monotonic."""

    async def read_stocks(self, product_ids: Iterable[int]) -> dict[int, Stock | None]:
        """Return the stock of each product's current sale, None if it has none, in one round trip.

        Products of a shard that does not answer, or waits to be rebuilt, are left out.
        """
        by_shard: defaultdict[_Line, list[int]] = defaultdict(list)
        for product_id in product_ids:
            by_shard[shard_of(product_id, self._stocks)].append(product_id)
        found = await _ask_those_that_answer(by_shard.items(), _read_stocks)
        return {product_id: stock for stocks in found if stocks for product_id, stock in stocks.items()}

    async def read_orders(self, order_ids: Sequence[str]) -> dict[str, bool | Confirmed]:
        """Return for each order whether it was accepted and is not settled yet, in one round trip.

        Or what was confirmed, which the gate keeps for a while. Orders that it does not know and may have
        forgotten are left out.
        """
        places = {order_id: split_order_id(order_id) for order_id in order_ids}
        stems = [*dict.fromkeys(stem for stem, _ in places.values())]
        memories = await _ask_those_that_answer(self._pending, partial(_read_memory, stems=stems))
        if None in memories:
            self.away_at = time.monotonic()
        forgotten_ms = max(math.inf if memory is None else memory.forgotten_ms for memory in memories)
        known = [each for each in places if forgotten_ms < 0 or read_time_ms(each) > forgotten_ms]
        found: dict[str, bool | Confirmed] = dict.fromkeys(known, False)
        for memory in filter(None, memories):
            for order_id, (stem, place) in places.items():
                if kept := find_confirmed(memory.confirmed_of.get(stem, ()), place):
                    found[order_id] = Confirmed(*kept)
                elif memory.digits_of.get(stem, b"")[place : place + 1] == b"1":
                    found[order_id] = True
        return found

    @property
    def is_late(self) -> bool:
        """Whether orders that are pending here may have been shown as settled while the gate was away."""
        back_at = max(line.reconnected_at for line, _ in self._pending)
        return time.monotonic() - max(self.away_at, back_at) < _LATE_S

    def close(self) -> None:
        """Disconnect."""
        for line in (*self._stocks, *(line for line, _ in self._pending)):
            line.close()


class _Line:
    """A shard, and a connection to its primary."""

    def __init__(self, shard: Shard) -> None:
        self.keys = shard
        self._wire = Wire(shard.redis)
        self.connected_at = self.reconnected_at = -math.inf
        """When it connected last, and when that took the place of a lost connection, on time.monotonic.

        The server has been in charge since then at least, unless it says otherwise.
        """

    async def ask(self, *commands: Command) -> list[Any]:
        """Return the answers of the primary. Raises RedisError."""
        if not self._wire.is_open:
            self._wire.close()
            self._wire = Wire(self.keys.redis)
            await self._wire.connect()
            if self.connected_at > -math.inf:
                self.reconnected_at = time.monotonic()
            self.connected_at = time.monotonic()
        return check_primary(await self._wire.ask(*commands, ("HDEL", self.keys.fence, "")))

    def close(self) -> None:
        """Disconnect."""
        self._wire.close()


class _Memory(NamedTuple):
    """What a shard remembers of some orders."""

    digits_of: dict[str, bytes]
    """By the stems of their batches (clearing.py)."""
    confirmed_of: dict[str, list[KeptLot]]
    """By the stems, too."""
    forgotten_ms: float
    """Up to which time in their ids it may have forgotten orders; negative if none."""


async def _ask_those_that_answer(shards: Iterable[U], ask: Callable[[U], Awaitable[T]]) -> list[T | None]:
    """Return what each shard is asked, None where it does not answer. Raises GateUnavailable if none does."""
    errors = list[GateUnavailable]()

    async def try_to_ask(shard: U) -> T | None:
        try:
            with translate_errors():
                return await ask(shard)
        except GateUnavailable as error:
            errors.append(error)
            return None

    answers = await ask_each([*shards], try_to_ask)
    if len(errors) == len(answers) and errors:
        raise errors[0]
    return answers


async def _read_stocks(asked: tuple[_Line, Sequence[int]]) -> dict[int, Stock | None]:
    """Return the stocks of a shard's products, nothing if it waits to be rebuilt."""
    line, product_ids = asked
    *rows, is_open = await line.ask(
        *[("HMGET", line.keys.sale(each), "sale_id", "stock", "remaining") for each in product_ids],
        # After the fields: a gate that loses its memory in between is closed.
        ("HGET", line.keys.fence, "open"),
    )
    if not is_open:
        return {}
    return {
        product_id: None if fields[0] is None else Stock(*map(int, fields))
        for product_id, fields in zip(product_ids, rows, strict=True)
    }


async def _read_memory(asked: tuple[_Line, Fence], stems: Sequence[str]) -> _Memory:
    line, fence = asked
    # Before it is asked: what this process hears meanwhile may be newer than the answer.
    writer, *own = fence.seen
    confirmed, batches, (generation, writes, doubt) = await line.ask(
        ("MGET", *map(line.keys.confirmed, stems)),
        ("HMGET", line.keys.pending, *stems),
        ("HMGET", line.keys.fence, "open", writer, "doubt"),
    )
    # Once for each batch: hundreds may look at orders of the same one.
    confirmed_of = {stem: decode_confirmed(kept) for stem, kept in zip(stems, confirmed, strict=True) if kept}
    if not generation:
        return _Memory({}, confirmed_of, math.inf)
    # A new server may have an older copy of what the one before knew.
    is_new = time.monotonic() - line.connected_at < NOTICED_S
    forgotten_ms = math.inf if is_new or [int(generation), int(writes or 0)] < own else -1
    if doubt:
        forgotten_ms = max(forgotten_ms, int(doubt) + _CLOCKS_MS)
    digits_of = {stem: digits for stem, digits in zip(stems, batches, strict=True) if digits}
    return _Memory(digits_of, confirmed_of, forgotten_ms)
