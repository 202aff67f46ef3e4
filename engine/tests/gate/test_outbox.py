import asyncio

import pytest
from redis.asyncio import Redis

from engine.gate.client import Shard
from engine.gate.keys import ShardKeys
from engine.gate.outbox import Outbox, Outboxes
from engine.model.lot import encode_lots
from engine.model.message import Message
from engine.model.sale import Sale
from engine.tests.orders import SHARD, accept, ids, make_terms, reserve, unpack

SALE = Sale(sale_id=3, terms=make_terms(stock=1_000))
NEVER_MS = 3_600_000


def order_ids(messages: list[Message]) -> list[str]:
    return sorted(ids(unpack(messages)))


async def read_all(outbox: Outbox | Outboxes) -> list[Message]:
    messages: list[Message] = []
    while more := await outbox.read(0.001):
        messages += more
    return messages


async def read_one(outbox: Outbox) -> Message:
    while not (messages := await outbox.read(0.05)):
        pass
    [message] = messages
    return message


async def test_what_is_acknowledged_is_gone(redis: Redis) -> None:
    outbox = Outbox(Shard(redis), "a", NEVER_MS)
    batch = reserve(SALE, 200)
    await accept(redis, batch, entry_size=1)
    messages = await read_all(outbox)
    assert order_ids(messages) == sorted(ids(batch))
    assert not any(message.repeated for message in messages)
    await outbox.acknowledge(messages)
    assert await outbox.count_entries() == 0
    outbox.forget_held()
    assert await read_all(outbox) == []


async def test_every_shard_is_read(redis: Redis) -> None:
    shards = [Shard(redis, number, 3) for number in range(3)]
    orders = reserve(SALE, 3)
    for shard, order in zip(shards, orders, strict=True):
        await redis.xadd(shard.outbox, {"purchases": encode_lots([order])})
    outbox = Outboxes([Outbox(shard, "a", NEVER_MS) for shard in shards])
    messages = await read_all(outbox)
    assert order_ids(messages) == sorted(ids(orders))
    assert await outbox.count_entries() == 3
    await outbox.acknowledge(messages)
    assert await outbox.count_entries() == 0


async def test_two_readers_share_the_entries(redis: Redis) -> None:
    first, second = (Outbox(Shard(redis), name, NEVER_MS) for name in "ab")
    await accept(redis, reserve(SALE, 400), entry_size=1)
    mine, yours = await first.read(0.01), await second.read(0.01)
    assert mine
    assert yours
    assert not set(order_ids(mine)) & set(order_ids(yours))


async def test_a_reader_that_comes_back_finds_what_it_left_behind(redis: Redis) -> None:
    batch = reserve(SALE, 400)
    await accept(redis, batch, entry_size=1)
    await read_all(Outbox(Shard(redis), "a", NEVER_MS))
    again = await read_all(Outbox(Shard(redis), "a", NEVER_MS))
    assert order_ids(again) == sorted(ids(batch))
    assert all(message.repeated for message in again)


async def test_what_a_reader_forgets_it_reads_again(redis: Redis) -> None:
    outbox = Outbox(Shard(redis), "a", NEVER_MS)
    await accept(redis, reserve(SALE, 3))
    first = await read_one(outbox)
    outbox.forget_held()
    assert (await read_one(outbox)).tag == first.tag


async def test_entries_of_a_dead_reader_are_claimed_once_they_are_idle(redis: Redis) -> None:
    batch = reserve(SALE, 400)
    await accept(redis, batch, entry_size=1)
    await read_all(Outbox(Shard(redis), "dead", NEVER_MS))
    survivor = Outbox(Shard(redis), "survivor", 1)
    messages: list[Message] = []
    while len(messages) < 400:
        messages += await survivor.read(0.01)
    assert order_ids(messages) == sorted(ids(batch))
    assert all(message.repeated for message in messages)


async def test_a_slow_reader_is_not_given_its_own_entries_twice(redis: Redis) -> None:
    outbox = Outbox(Shard(redis), "slow", 1)
    await accept(redis, reserve(SALE, 3))
    held = await read_one(outbox)
    for _ in range(20):
        assert await outbox.read(0.005) == []
    await outbox.acknowledge([held])
    assert await outbox.count_entries() == 0


async def test_what_the_gate_did_not_write_is_handed_on_as_well(redis: Redis) -> None:
    await redis.xadd(SHARD.outbox, {"purchases": "rubbish"})
    await redis.xadd(SHARD.outbox, {"other": "field"})
    messages = await read_all(Outbox(Shard(redis), "a", NEVER_MS))
    assert [message.lines for message in messages] == [b"rubbish", b"other field"]


async def test_entries_gather_between_two_reads(redis: Redis) -> None:
    outbox = Outbox(Shard(redis), "a", NEVER_MS, wait_ms=300)
    await outbox.read(0.001)
    reading = asyncio.create_task(outbox.read(1))
    for order in reserve(SALE, 3):
        await accept(redis, [order])
    assert len(await reading) == 3


async def test_a_deleted_stream_is_made_again(redis: Redis) -> None:
    outbox = Outbox(Shard(redis), "a", 1)
    assert await outbox.read(0.001) == []
    await redis.delete(SHARD.outbox)
    await accept(redis, reserve(SALE, 3))
    held = await read_one(outbox)
    await redis.delete(SHARD.outbox)
    await outbox.acknowledge([held])
    assert await outbox.read(0.001) == []


async def test_a_stream_deleted_under_a_waiting_reader_is_made_again(redis: Redis) -> None:
    outbox = Outbox(Shard(redis), "a", NEVER_MS)
    assert await outbox.read(0.001) == []
    waiting = asyncio.create_task(outbox.read(5))
    while not (await redis.info("clients"))["blocked_clients"]:
        pass
    await redis.delete(SHARD.outbox)
    await accept(redis, reserve(SALE, 3))
    assert len(order_ids(await waiting)) == 3


async def test_entries_deleted_while_pending_are_forgotten(redis: Redis) -> None:
    await accept(redis, reserve(SALE, 3), entry_size=1)
    messages = await read_all(Outbox(Shard(redis), "a", NEVER_MS))
    await redis.xdel(SHARD.outbox, messages[0].tag[1])
    again = await read_all(Outbox(Shard(redis), "a", NEVER_MS))
    assert len(again) == 2
    assert (await redis.xpending(SHARD.outbox, ShardKeys.GROUP))["pending"] == 2


async def test_only_a_reader_with_nothing_pending_leaves_the_group(redis: Redis) -> None:
    outbox = Outbox(Shard(redis), "a", NEVER_MS)
    await accept(redis, reserve(SALE))
    held = await read_one(outbox)
    await outbox.close()
    assert [c["name"] for c in await redis.xinfo_consumers(SHARD.outbox, ShardKeys.GROUP)] == [b"a"]
    await outbox.acknowledge([held])
    await outbox.close()
    assert await redis.xinfo_consumers(SHARD.outbox, ShardKeys.GROUP) == []


async def test_a_read_that_left_entries_behind_is_followed_at_once_by_the_next(redis: Redis) -> None:
    outbox = Outbox(Shard(redis), "a", NEVER_MS, wait_ms=NEVER_MS)
    batch = reserve(SALE, 600)
    await accept(redis, batch, entry_size=1)
    messages: list[Message] = []
    async with asyncio.timeout(30):
        while len(messages) < 600:
            messages += await outbox.read(0.001)
    assert order_ids(messages) == sorted(ids(batch))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await outbox.read(0.001)
