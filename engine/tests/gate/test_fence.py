"""The fence knows every writer that lives, and forgets those that are gone."""

import time
from itertools import pairwise
from typing import Any, cast

import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from engine.gate.clearing import Clearing
from engine.gate.client import Shard
from engine.gate.fence import NOTICED_S, Fence, close_shard, forget_writers, vouch
from engine.gate.gate import Gate
from engine.gate.restoring import Restoring
from engine.model.order_id import make_stem
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from engine.settings import Settings
from engine.tests.orders import SHARD, make_terms, reserve

HOUR_MS = 3_600_000


async def clock_ms(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return seconds * 1000 + microseconds // 1000


async def read_fence(redis: Redis) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await cast(Any, redis.hgetall(SHARD.fence))
    return found


def let_pass(monkeypatch: pytest.MonkeyPatch, hours: float) -> None:
    """Let a process believe that so much time has passed."""
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + hours * 3600)


async def test_writers_that_are_gone_are_forgotten(redis: Redis) -> None:
    now_ms = await clock_ms(redis)
    stays = {
        "open": 7, "newest": now_ms - 99 * HOUR_MS, "rebuilding": 6,
        "a" * 16: now_ms - 23 * HOUR_MS, "b" * 16: now_ms, "c" * 16: 57,
    }  # fmt: skip
    goes = {"d" * 16: now_ms - 25 * HOUR_MS, "0123456789abcdef": now_ms - 999 * HOUR_MS}
    mapping: dict[Any, Any] = stays | goes
    await redis.hset(SHARD.fence, mapping=mapping)
    assert await forget_writers([Shard(redis)]) == 2
    assert await read_fence(redis) == {name.encode(): str(number).encode() for name, number in stays.items()}
    assert await forget_writers([Shard(redis)]) == 0


async def test_every_write_has_the_time_as_its_number_or_a_greater_one(
    redis: Redis, settings_without_bus: Settings
) -> None:
    gate, clearing = Gate(settings_without_bus), Clearing([Shard(redis)])
    sale = Sale(sale_id=1, terms=make_terms(10))
    started_ms = await clock_ms(redis)
    numbers = list[list[int]]()
    for _ in range(3):
        await gate.open_sale(sale)
        await gate.reserve(1, 1, None)
        await clearing.clear(reserve(sale))
        now = await read_fence(redis)
        numbers.append([int(number) for name, number in now.items() if len(name) == 16])
    await gate.close()
    ended_ms = await clock_ms(redis)
    for earlier, later in pairwise(numbers):
        assert len(earlier) == len(later) == 2
        assert all(started_ms <= one < two <= ended_ms + 9 for one, two in zip(earlier, later, strict=True))


async def test_a_front_door_that_was_idle_for_a_day_does_not_close_the_gate(
    redis: Redis, settings_without_bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(settings_without_bus)
    await gate.open_sale(Sale(sale_id=1, terms=make_terms(10)))
    assert (await gate.reserve(1, 1, None))[0] is Outcome.ACCEPTED
    await redis.delete(SHARD.fence)
    await redis.hset(SHARD.fence, "open", 1)
    assert (await gate.reserve(1, 1, None))[0] is Outcome.GATE_UNAVAILABLE, "a loss"
    await redis.hset(SHARD.fence, "open", 1)
    let_pass(monkeypatch, 13)
    assert (await gate.reserve(1, 1, None))[0] is Outcome.ACCEPTED, "its name was forgotten meanwhile"
    await gate.close()


async def test_an_idle_fulfilment_stays_known_and_goes_on_to_notice_a_loss(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clearing = Clearing([Shard(redis)])
    await clearing.clear(reserve(Sale(sale_id=1, terms=make_terms(10))))
    before = await read_fence(redis)
    assert await clearing.is_remembered()
    assert await read_fence(redis) == before, "it has written a moment ago"
    let_pass(monkeypatch, 7)
    assert await clearing.is_remembered()
    after = await read_fence(redis)
    assert after.keys() == before.keys()
    assert after != before
    await redis.delete(SHARD.fence)
    await redis.hset(SHARD.fence, "open", 1)
    assert not await clearing.is_remembered()


async def test_an_old_primary_that_comes_back_is_new_to_a_writer_that_asked_another_one(redis: Redis) -> None:
    fence, execute = Fence(), redis.execute_command
    assert await vouch(execute, SHARD, fence) == 0
    noted = fence.server
    generation, _ = noted.split()
    fence.server = generation + b" " + b"f" * 40  # it has asked another server since
    assert await vouch(execute, SHARD, fence) == NOTICED_S
    assert fence.server == noted
    # Others that come back in that time begin no new one.
    fence.server = generation + b" " + b"f" * 40
    assert 0 < await vouch(execute, SHARD, fence) <= NOTICED_S
    await redis.hset(SHARD.fence, "since", 0)
    fence.server = b"99 " + b"f" * 40
    assert await vouch(execute, SHARD, fence) == 0, "the gate was rebuilt since"


async def test_a_rebuild_that_began_at_another_server_opens_nothing(redis: Redis) -> None:
    await redis.hdel(SHARD.fence, "open")
    restoring = Restoring([Shard(redis)], generation=7)
    await restoring.begin()
    await redis.hset(SHARD.fence, "rebuilding_on", "f" * 40)  # as a copy of that server has it
    with pytest.raises(ResponseError, match="CLOSED another server"):
        await restoring.reopen(0, doubtful=False)
    assert not await redis.hexists(SHARD.fence, "open")
    await restoring.begin()
    await restoring.reopen(0, doubtful=False)
    assert await redis.hget(SHARD.fence, "open") == b"7"


async def test_a_redis_that_is_full_lets_a_gate_be_closed_and_rebuilt(redis: Redis) -> None:
    shard, restoring = Shard(redis), Restoring([Shard(redis)], generation=7)
    await redis.hset(SHARD.fence, "open", 3)
    await redis.hset(SHARD.pending, make_stem(), "1")
    await redis.config_set("maxmemory", "1")
    try:
        await close_shard(shard, 3, 5)
        assert await read_fence(redis) == {b"seen": b"5"}
        await restoring.begin()
        await redis.hdel(SHARD.fence, "rebuilding_on")  # as where nobody may ask for INFO
        await restoring.reopen(0, doubtful=True)
    finally:
        await redis.config_set("maxmemory", "0")
    assert await redis.hget(SHARD.fence, "open") == b"7"
    assert not await redis.exists(SHARD.pending)


def test_an_answer_to_a_writer_of_another_name_is_not_noted() -> None:
    fence = Fence()
    fence.note("0123456789abcdef", 5, 99)
    assert fence.seen[1:] == (0, 0)


def test_a_writer_under_a_new_name_compares_nothing_of_its_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Fence()
    old, *_ = one.seen
    assert one.seen == (old, 0, 0)
    number = int(time.time() * 1000)
    one.note(old, 5, number)
    let_pass(monkeypatch, 11)
    assert one.seen == (old, 5, number)
    assert one.is_silent
    let_pass(monkeypatch, 2)
    new, *seen = one.seen
    assert new != old
    assert seen == [5, 0], "but the generation"
    assert one.seen[0] == new
