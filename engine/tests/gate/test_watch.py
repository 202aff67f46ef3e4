"""Every front door watches its gate: who wrote nothing sells nothing that others may have sold."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
from redis.asyncio import Redis

from engine.gate import gate as module
from engine.gate.fence import NOTICED_S
from engine.gate.gate import Gate
from engine.local.stack import Stack
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from engine.settings import Settings
from engine.tests.orders import SHARD, make_terms
from engine.tests.test_server import eventually

pytestmark = pytest.mark.slow


async def test_a_gate_closes_though_a_cancellation_of_its_watch_is_lost(
    settings_without_bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, lost = asyncio.Event(), asyncio.Event()

    async def lose(*_: object) -> float:
        watching.set()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            # As asyncio.wait_for does before Python 3.12 if what it waits for is done at that moment.
            if not lost.is_set():
                lost.set()
                return 0
            raise
        return 0

    monkeypatch.setattr(module, "vouch", lose)
    monkeypatch.setattr(module, "_WATCH_S", 0.01)
    gate = Gate(settings_without_bus)
    await watching.wait()
    async with asyncio.timeout(5):
        await gate.close()
    assert lost.is_set()


async def gate_sells(gate: Gate) -> bool:
    return (await gate.reserve(1, 1, None))[0] is Outcome.ACCEPTED


@asynccontextmanager
async def two_gates(settings: Settings) -> AsyncIterator[tuple[Gate, Gate]]:
    """Two front doors of a sale of 10 units; both have sold one."""
    one, other = Gate(settings), Gate(settings)
    try:
        await one.open_sale(Sale(sale_id=1, terms=make_terms(10)))
        for gate in (one, other):
            assert (await gate.reserve(1, 1, None))[0] is Outcome.ACCEPTED
        yield one, other
    finally:
        await asyncio.gather(one.close(), other.close())


async def restart(stack: Stack, prepare: Callable[[], object]) -> None:
    """Restart Redis; while it is down, do something to its files."""
    await stack.kill("redis")
    prepare()
    await stack.start("redis")


async def test_a_front_door_that_wrote_nothing_meanwhile_sells_nothing_after_a_loss(
    redis: Redis, settings_without_bus: Settings, stack: Stack
) -> None:
    data, copy = stack.data_dir / "redis", stack.data_dir / "redis-copy"

    def bring_back() -> None:
        shutil.rmtree(data)
        copy.rename(data)

    async with two_gates(settings_without_bus) as (idle, busy):
        shutil.copytree(data, copy)
        for user in range(2, 10):
            assert (await busy.reserve(user, 1, None))[0] is Outcome.ACCEPTED
        await restart(stack, bring_back)
        # The gate has eight units more than it sold, and what it remembers of the idle one is complete.
        outcomes = set[Outcome]()

        async def is_closed() -> bool:
            outcomes.add((await idle.reserve(99, 1, None))[0])
            return not await redis.hexists(SHARD.fence, "open")

        await eventually(is_closed)
        assert outcomes == {Outcome.GATE_UNAVAILABLE}


async def test_a_restart_without_a_loss_closes_nothing(
    redis: Redis, settings_without_bus: Settings, stack: Stack
) -> None:
    async with two_gates(settings_without_bus) as gates:
        generation = await redis.hget(SHARD.fence, "open")
        await restart(stack, lambda: None)
        for gate in gates:
            await eventually(partial(gate_sells, gate))
        assert await redis.hget(SHARD.fence, "open") == generation


async def test_a_new_server_sells_nothing_until_every_front_door_has_asked_it(
    redis: Redis, settings_without_bus: Settings, stack: Stack
) -> None:
    loop = asyncio.get_running_loop()
    async with two_gates(settings_without_bus) as (gate, _):
        await stack.kill("redis")
        # The first question comes after the start.
        down_at = loop.time()
        await stack.start("redis")
        await eventually(partial(gate_sells, gate))
        assert loop.time() - down_at >= NOTICED_S
        since_ms, left = int(await redis.hget(SHARD.fence, "since") or 0), await redis.time()
        assert left[0] * 1000 + left[1] / 1000 - since_ms >= NOTICED_S * 1000
