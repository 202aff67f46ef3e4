"""Two ledgers share neither a gate nor a bus: each would settle, or close, what is the other's."""

from collections.abc import AsyncIterator
from functools import partial
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
import pytest
from aio_pika import connect
from redis.asyncio import Redis

from engine.bus.consumer import Consumer
from engine.bus.publisher import Publisher
from engine.bus.topology import LEDGER, PURCHASES
from engine.errors import SettingsError
from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys
from engine.ledger.ledger import Ledger
from engine.metrics import UNSAFE
from engine.model.lot import encode_lots
from engine.settings import Settings
from engine.stages import keeper
from engine.stages.fulfilment import run_fulfilment
from engine.stages.process import Role
from engine.stages.relay import run_relay
from engine.startup import prepare_stores
from engine.tests.backend import open_sale, read_sold, running, until_relayed, until_settled
from engine.tests.orders import accept, mark_pending, reserve
from engine.tests.services import execute
from engine.tests.test_server import eventually, run_to_the_end

KEY = ShardKeys().ledger
STAGES = ("the relay", "fulfilment's source")


@pytest.fixture
async def other(settings: Settings, postgres_url: str) -> AsyncIterator[Settings]:
    """Another engine: its own ledger, and its own database of the same Redis."""
    name, redis_url = f"other_{uuid4().hex}", (settings.redis_url or "").replace("/0", "/1")
    await execute(postgres_url, f"CREATE DATABASE {name}")
    ledger = f"{postgres_url.rpartition('/')[0]}/{name}"
    yield msgspec.structs.replace(settings, postgres_url=ledger, redis_url=redis_url)
    await execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


async def prepare(settings: Settings, *roles: Role) -> None:
    await prepare_stores(settings, roles or list(Role))


async def test_the_bus_of_another_ledger_is_refused_at_start(settings: Settings, other: Settings) -> None:
    await prepare(settings)
    with pytest.raises(SettingsError, match=r"AMQP_URL: .*purchases of another ledger.*one of its own"):
        await prepare(other)
    await prepare(other, Role.FRONT_DOOR)
    with pytest.raises(SettingsError, match=r"AMQP_URL: .*purchases of another ledger"):
        await prepare(msgspec.structs.replace(other, postgres_url=None), Role.RELAY)
    await prepare(settings)


async def test_the_gate_of_another_ledger_is_refused_at_start(settings: Settings, other: Settings) -> None:
    await prepare(settings)
    shared = msgspec.structs.replace(other, redis_url=settings.redis_url, amqp_url=None)
    with pytest.raises(SettingsError, match=r"REDIS_URL: .*gate of another ledger.*database of its own"):
        await prepare(shared)
    # An operator who mixes them up must not rebuild it, either.
    code, said = await run_to_the_end(shared, "reconcile")
    assert code == 1
    assert "REDIS_URL: Redis holds the gate of another ledger" in said
    await prepare(settings)


async def test_a_bus_that_comes_later_than_the_start_serves_one_ledger_alone(
    settings: Settings, other: Settings, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """RabbitMQ may be the last to start: then each stage finds out when it connects."""
    other = msgspec.structs.replace(other, drain_s=0.1)
    async with connect_redis(other.redis_url) as its_redis:
        for each in (settings, other):
            await prepare(msgspec.structs.replace(each, amqp_url=None))
        await prepare(settings, Role.RELAY)
        sale, its_sale = await open_sale(settings, redis), await open_sale(other, its_redis)
        await accept(its_redis, reserve(its_sale, 5))
        async with running(other):
            await eventually(lambda: all(f"{each} does not work" in caplog.text for each in STAGES))
            await accept(redis, reserve(sale, 20))
            async with running(settings):
                await until_settled(redis)
        assert await its_redis.xlen(ShardKeys().outbox)
    assert await read_sold(settings, sale) == 20
    refusals = [each.message for each in caplog.records if "does not work" in each.message]
    assert all("purchases of another ledger" in each for each in refusals), refusals


async def test_what_an_engine_of_before_has_left_is_settled(settings: Settings, redis: Redis) -> None:
    """Its gate and its queue name no ledger; the ledger has got its identity since."""
    sale = await open_sale(settings, redis)
    lots = reserve(sale, 30)
    before = Publisher(settings.amqp_url or "")
    await before.publish(encode_lots(lots[:10]))
    await prepare(settings)
    await before.publish(encode_lots(lots[10:20]))
    await accept(redis, lots[20:])
    await mark_pending(redis, lots)
    async with running(settings):
        await until_settled(redis)
    assert await read_sold(settings, sale) == 30
    await before.close()


async def test_a_ledger_stays_the_same_until_it_is_made_anew(settings: Settings, redis: Redis) -> None:
    await prepare(settings)
    async with await Ledger.connect(settings.postgres_url) as ledger:
        first = await ledger.read_identity()
        await ledger.next_generation()
        assert await ledger.read_identity() == first
        assert await redis.get(KEY) == first.encode()
        await execute(settings.postgres_url or "", "TRUNCATE gate")
        assert await ledger.read_identity() != first
    with pytest.raises(SettingsError, match="empty this one if that ledger is no more"):
        await prepare(settings)
    # As the two lines say.
    await redis.flushall()
    with pytest.raises(SettingsError, match=f"delete the exchange {LEDGER}"):
        await prepare(settings)
    async with await connect(settings.amqp_url) as connection, connection.channel() as channel:
        await channel.exchange_delete(LEDGER)
        await channel.queue_delete(PURCHASES)
    await prepare(settings)


async def test_a_ledger_restored_from_before_its_identity_claims_gate_and_bus(
    settings: Settings, redis: Redis
) -> None:
    sale = await open_sale(settings, redis)
    await prepare(settings)
    lots = reserve(sale, 20)
    publisher = Publisher(settings.amqp_url or "")
    await publisher.publish(encode_lots(lots[:10]))
    await accept(redis, lots[10:])
    await mark_pending(redis, lots)
    # What a backup of before holds, restored.
    await execute(
        settings.postgres_url or "",
        "ALTER TABLE gate DROP COLUMN identity; DELETE FROM flashgrid_migrations WHERE number = 70",
    )
    with pytest.raises(SettingsError, match="run `flashgrid claim` if this ledger was restored"):
        await prepare(settings)
    consumer = Consumer(settings.amqp_url or "", 1)
    await consumer.read(0)
    code, said = await run_to_the_end(settings, "claim", "--yes")
    assert code == 1
    assert "the queue has 1 consumers: stop every engine" in said
    await consumer.close()
    while (await publisher.read_queue())[1]:
        pass
    await publisher.close()
    async with running(settings, run_relay):
        await until_relayed(redis)
        code, said = await run_to_the_end(settings, "claim", "--yes")
    assert code == 1
    assert "connections of engines use the gate: stop every engine" in said
    code, said = await run_to_the_end(settings, "claim", "--yes")
    assert code == 0, said
    await prepare(settings)
    async with running(settings):
        await until_settled(redis)
        await eventually(partial(redis.hexists, ShardKeys().fence, "open"))
    assert await read_sold(settings, sale) == 20


async def test_what_changes_while_it_serves_is_said(
    settings_without_bus: Settings,
    other: Settings,
    redis: Redis,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(keeper, "_WATCH_S", 0.02)
    settings = settings_without_bus
    await prepare(settings)
    database = urlsplit(settings.postgres_url or "").path[1:]

    def says(text: str) -> bool:
        return any(text in record.message for record in caplog.records if record.name == keeper.__name__)

    for service in ("Redis", "PostgreSQL"):
        UNSAFE.labels(service).set(2)
    async with running(settings, run_fulfilment):
        await eventually(lambda: UNSAFE.labels("PostgreSQL")._value.get() == 0)
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        await eventually(lambda: says("Redis may evict gate data"))
        assert UNSAFE.labels("Redis")._value.get() == 1
        await redis.config_set("maxmemory-policy", "noeviction")
        await eventually(lambda: says("the settings of Redis are safe again"))
        await redis.config_set("appendfsync", "no")
        await eventually(lambda: says("Redis may lose accepted purchases"))
        await redis.config_set("appendfsync", "always")
        await execute(
            other.postgres_url or "",
            f"ALTER DATABASE {database} SET synchronous_commit = off;"
            f" SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
        )
        await eventually(lambda: says("PostgreSQL may lose settled orders: set synchronous_commit to on"))
        mine = await redis.get(KEY)
        await redis.flushall()
        await eventually(partial(is_owner, redis, mine))
        await redis.set(KEY, "another")
        await eventually(lambda: says("Redis holds the gate of another ledger"))


async def is_owner(redis: Redis, mine: object) -> bool:
    return await redis.get(KEY) == mine
