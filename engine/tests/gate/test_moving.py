"""A shard whose slot moves to another primary: a call that is refused leaves nothing behind."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from redis.exceptions import ResponseError

from engine.gate.batch import pack
from engine.gate.clearing import Clearing
from engine.gate.client import Script, Shard, connect_shards
from engine.gate.fence import Fence, close_shard
from engine.gate.gate import offer_sale
from engine.gate.restoring import Restoring
from engine.model.order_id import make_stem
from engine.model.sale import Sale
from engine.settings import Settings
from engine.tests.clusters import Node
from engine.tests.gate.test_clearing import fail
from engine.tests.orders import accept, ids, make_terms, open_at_gate, reserve
from engine.tests.slots import SlotMove, run_primaries

pytestmark = pytest.mark.slow

SALES: Final = [Sale(sale_id=6 + number, terms=make_terms(100, number, limit=5)) for number in (1, 2)]
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
