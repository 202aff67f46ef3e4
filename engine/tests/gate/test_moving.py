"""A shard whose slot moves to another primary: what is refused leaves nothing behind, and nothing is lost."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from redis.exceptions import RedisError, ResponseError

from engine.gate.batch import pack
from engine.gate.clearing import Clearing, read_pending
from engine.gate.client import Script, Shard, connect_redis, connect_shards
from engine.gate.fence import Fence, close_shard
from engine.gate.gate import Gate, offer_sale
from engine.gate.outbox import Outbox
from engine.gate.restoring import Restoring
from engine.model.order_id import make_stem
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from engine.settings import Settings
from engine.stages.lifecycle import running
from engine.tests.clusters import Node
from engine.tests.gate.test_clearing import fail
from engine.tests.orders import accept, ids, make_terms, open_at_gate, reserve, unpack
from engine.tests.slots import SlotMove, run_primaries
from engine.tests.test_server import eventually
from engine.tests.tls import knows_name

pytestmark = pytest.mark.slow

SALES: Final = [Sale(sale_id=6 + number, terms=make_terms(100_000, number, limit=5)) for number in (1, 2)]
LOTS: Final = [lot for sale in SALES for lot in reserve(sale, 3)]
OPEN: Final[Mapping[Any, Any]] = {"open": "1", "server": "one"}
CLOSED: Final[Mapping[Any, Any]] = {"rebuilding": "3", "seen": "2"}
RESERVE: Final = Script("reserve.lua")

Call = Callable[[Shard], Awaitable[Any]]


async def buy(shard: Shard) -> None:
    groups: Any = {b"1": [(b"9", b"1", None, None)], b"2": [(b"1", b"2", "key", None)]}
    keys = [shard.fence, shard.outbox, shard.pending]
    await RESERVE.run(shard.write, keys, ["writer", 1, 0, make_stem(), shard.prefix, 60, pack(groups)])


CALLS: Final[Mapping[str, Call]] = {
    "buy": buy,
    "clear": lambda shard: Clearing([shard]).clear(LOTS, are_confirmed=True),
    "release": lambda shard: Clearing([shard]).clear([], fail(LOTS)),
    "open": lambda shard: offer_sale(shard, Fence(), Sale(sale_id=9, terms=make_terms(50, product_id=2))),
    "close": lambda shard: close_shard(shard, 1, 2),
    "begin": lambda shard: Restoring([shard], 5).begin(),
    "reopen": lambda shard: Restoring([shard], 3).reopen(1, doubtful=True),
}


@pytest.fixture(scope="module")
async def primaries(stack_dir: Path) -> AsyncIterator[tuple[str, list[Node]]]:
    async with run_primaries(stack_dir) as found:
        yield found


@pytest.fixture
async def shard(primaries: tuple[str, list[Node]]) -> AsyncIterator[Shard]:
    url, _ = primaries
    async with connect_shards(Settings(redis_url=url)) as shards:
        [shard] = shards
        yield shard


async def fill(shard: Shard) -> None:
    """Write two sales of which units are sold, and nothing is settled."""
    for sale in SALES:
        await open_at_gate(shard.redis, sale, remaining=90)
        await shard.redis.hset(f"{shard.prefix}buyers:{sale.sale_id}", mapping={"1": 1, "2": 1, "3": 1})
    await accept(shard.redis, LOTS)
    for lot in LOTS:
        await shard.redis.set(shard.confirmed(lot.stem), "9 1 1 1")
    await shard.redis.set(f"{shard.prefix}answer:2:1:key", ids(LOTS)[-1])


async def dump(shard: Shard) -> dict[bytes, Any]:
    names: Any = await shard.redis.keys()
    return {name: await shard.redis.dump(name) for name in names}


@pytest.mark.parametrize("what", CALLS)
async def test_a_call_that_lacks_a_key_changes_nothing(
    shard: Shard, primaries: tuple[str, list[Node]], what: str
) -> None:
    move = SlotMove(shard, *primaries[1])
    await shard.redis.flushall()
    await shard.redis.hset(shard.fence, mapping=CLOSED if what in ("begin", "reopen") else OPEN)
    await fill(shard)
    whole, refused = await dump(shard), set[bytes]()
    for missing in (b"none", *whole):
        await shard.redis.flushall()
        for name in whole.keys() - {missing}:
            await shard.redis.restore(name, 0, whole[name])
        before = await dump(shard)
        await move.begin()
        try:
            await CALLS[what](shard)
        except ResponseError:
            refused.add(missing)
        finally:
            await move.cancel()
        if missing in refused:
            assert await dump(shard) == before, f"without {missing.decode()}"
    assert shard.fence.encode() in refused
    assert b"none" not in refused


@pytest.mark.parametrize(
    ("preferred", "name"),
    [("ip", "nowhere.invalid"), ("unknown-endpoint", "nowhere.invalid"), ("hostname", "localhost")],
)
async def test_keys_at_a_node_without_slots_are_found_however_nodes_are_reached(
    shard: Shard, primaries: tuple[str, list[Node]], preferred: str, name: str
) -> None:
    url, nodes = primaries
    move = SlotMove(shard, *nodes)
    await shard.redis.flushall()
    await fill(shard)
    try:
        await announce(nodes, preferred, name)
        await move.begin()
        await move.carry(1)
        await move.cancel()
        async with connect_redis(url) as newcomer:
            with pytest.raises(RedisError, match=f":{nodes[1].port} holds keys of it"):
                await newcomer.ping()
    finally:
        await move.bring_back()
        await announce(nodes, "ip", "")


async def announce(nodes: list[Node], preferred: str, name: str) -> None:
    """Let nodes announce a name, and say what clients should reach them by."""
    for node in nodes:
        await node.execute(
            "CONFIG", "SET", "cluster-announce-hostname", name, "cluster-preferred-endpoint-type", preferred
        )

    for node in nodes:
        await eventually(partial(knows_name, node, name))


class Crowd:
    """Shoppers of both products, with a key or without, and what they were told."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self.accepted = set[str]()
        self.told = Counter[Outcome]()
        self._orders = dict[tuple[int, int, str | None], str]()
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._shop(user, 1 + user % 2)) for user in range(8)]

    async def _shop(self, user: int, product: int) -> None:
        while not self._stop.is_set():
            user += 8
            for _ in range(2):  # the second time for the same order, if there is a key
                key = "key" if user % 3 else None
                outcome, order_id = await self._gate.reserve(user, product, key)
                self.told[outcome] += 1
                if order_id is not None:
                    self.accepted.add(order_id)
                    assert key is None or self._orders.setdefault((user, product, key), order_id) == order_id
            await asyncio.sleep(0.002)

    async def sell(self) -> None:
        """Wait until some more are accepted."""
        before = len(self.accepted)
        await eventually(lambda: len(self.accepted) >= before + 20)

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)


@pytest.fixture
async def gate(shard: Shard, primaries: tuple[str, list[Node]]) -> AsyncIterator[Gate]:
    """A front door that offers both sales."""
    await shard.redis.flushall()
    await shard.redis.hset(shard.fence, "open", 1)
    gate = Gate(Settings(redis_url=primaries[0], gate_timeout_ms=20_000))
    for sale in SALES:
        await gate.open_sale(sale)
    yield gate
    await gate.close()


@pytest.fixture
async def relayed(primaries: tuple[str, list[Node]]) -> AsyncIterator[set[str]]:
    """The ids of all orders that a reader of the outbox has had."""
    found = set[str]()
    async with connect_shards(Settings(redis_url=primaries[0])) as shards:
        outbox = Outbox(shards[0], "reader", 3_600_000)

        async def read() -> None:
            while True:
                try:
                    messages = await outbox.read(0.2)
                    found.update(ids(unpack(messages)))
                    await outbox.acknowledge(messages)
                except RedisError:
                    outbox.forget_held()
                    await asyncio.sleep(0.02)

        async with running(read()):
            yield found


async def test_a_slot_that_stands_half_moved_and_is_given_up_and_moves_loses_nothing(
    shard: Shard, primaries: tuple[str, list[Node]], gate: Gate, relayed: set[str]
) -> None:
    url, nodes = primaries
    move = SlotMove(shard, *nodes)
    crowd = Crowd(gate)
    await crowd.sell()
    await move.begin()
    await move.carry(3)
    await asyncio.sleep(0.5)
    before = len(crowd.accepted)
    # As a primary does that takes over in a move, the source takes what has moved for gone from here on.
    await move.cancel()
    await asyncio.sleep(1)
    assert len(crowd.accepted) == before
    async with connect_redis(url) as newcomer:
        with pytest.raises(RedisError, match=f":{nodes[1].port} holds keys of it"):
            await newcomer.ping()
    await move.bring_back()
    await crowd.sell()
    await move.begin()
    await move.carry(5)
    await move.end()
    await crowd.sell()
    await crowd.stop()
    assert crowd.told.keys() == {Outcome.ACCEPTED, Outcome.GATE_UNAVAILABLE}
    async with connect_redis(url) as newcomer:
        assert await read_pending(Shard(newcomer)) == crowd.accepted
    await eventually(lambda: relayed == crowd.accepted)
