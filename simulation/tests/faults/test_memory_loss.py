"""A Redis that loses its memory serves at the same address, and knows what it knew before, or nothing."""

import pytest

from engine.gate.client import connect_redis
from engine.local.stack import Stack
from simulation.faults.memory_loss import MemoryLoss
from simulation.scenario.fault import LOSSES
from simulation.target.services import services_of


@pytest.mark.parametrize("kind", LOSSES)
async def test_it_knows_what_it_knew(kind: str, stack: Stack) -> None:
    services = services_of(stack)
    loss = MemoryLoss(kind, services, stack)
    async with connect_redis(services.redis_url, 5_000) as redis:
        await redis.flushall()
        await redis.set("before", "1")
        await loss.prepare()
        await redis.set("after", "1")
        await loss.strike()
        await stack.start("redis")
        loss.tidy()
    async with connect_redis(services.redis_url, 5_000) as redis:
        assert await redis.keys() == ([b"before"] if kind in ("rollback", "failover") else [])
        assert await redis.set("later", "1")
    assert [path.name for path in stack.data_dir.iterdir() if "copy" in path.name] == []
