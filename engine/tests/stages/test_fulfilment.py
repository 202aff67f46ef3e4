import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import aio_pika
import asyncpg
import msgspec
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from engine.bus.publisher import Publisher
from engine.bus.topology import PURCHASES
from engine.errors import SettingsError
from engine.gate.clearing import Clearing, read_pending
from engine.gate.client import Shard
from engine.gate.outbox import Outbox
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack
from engine.model.lot import Lot, encode_lots
from engine.model.sale import Sale
from engine.payment.gateway import PaymentGateway
from engine.payment.simulated import SimulatedGateway
from engine.settings import Settings
from engine.stages import lifecycle
from engine.stages.fulfilment import Fulfilment, run_fulfilment
from engine.stages.lifecycle import Pause
from engine.stages.relay import run_relay
from engine.tests.backend import (
    CONFIRMED,
    FAILED,
    REJECTED,
    Stage,
    count_statuses,
    open_sale,
    read_sold,
    read_statuses,
    running,
    take_dead_letters,
    until_settled,
)
from engine.tests.orders import SHARD, accept, ids, mark_pending, read_confirmed, reserve
from engine.tests.test_server import eventually


@pytest.fixture(params=["bus", "outbox"])
def any_settings(request: pytest.FixtureRequest) -> Settings:
    """An engine with a bus, and one whose fulfilment reads the outbox itself."""
    name = "settings" if request.param == "bus" else "settings_without_bus"
    settings: Settings = request.getfixturevalue(name)
    return settings


def stages(settings: Settings) -> list[Stage]:
    return [run_relay, run_fulfilment] if settings.amqp_url else [run_fulfilment]


async def units(redis: Redis) -> tuple[int, int]:
    remaining, released = await redis.hmget(SHARD.sale(1), ["remaining", "released"])
    return int(remaining or -1), int(released or -1)


async def find_confirmed(settings: Settings) -> set[str]:
    """The ids of the orders that the ledger has confirmed."""
    return {each for each, status in (await read_statuses(settings)).items() if status == CONFIRMED}


async def fulfil(redis: Redis, gateway: PaymentGateway, ledger: Ledger, settings: Settings) -> None:
    """Fulfil what is in the outbox, as the reader "me"."""
    stop = asyncio.Event()
    stop.set()
    outbox = Outbox(Shard(redis), "me", 3_600_000)
    await Fulfilment(outbox, gateway, ledger, Clearing([Shard(redis)]), Pause(), settings).run(stop)


async def test_every_accepted_purchase_is_settled_once(redis: Redis, any_settings: Settings) -> None:
    sale = await open_sale(any_settings, redis)
    batch = reserve(sale, 3_000, size=30)
    async with running(any_settings, *stages(any_settings)):
        await accept(redis, batch, entry_size=13)
        await until_settled(redis)
    assert await read_statuses(any_settings) == dict.fromkeys(ids(batch), CONFIRMED)
    assert await read_sold(any_settings, sale) == 3_000
    assert await read_confirmed(redis) == {*ids(batch)}, "for those who look"


async def test_the_ledger_rejects_what_a_gate_gave_out_too_many(redis: Redis, any_settings: Settings) -> None:
    sale = await open_sale(any_settings, redis, stock=700)
    batch = reserve(sale, 1_500, size=30)
    await accept(redis, batch)
    async with running(any_settings, *stages(any_settings)):
        await until_settled(redis)
    assert await count_statuses(any_settings) == {CONFIRMED: 700, REJECTED: 800}
    assert not await read_confirmed(redis) - await find_confirmed(any_settings)
    assert await units(redis) == (0, 0)


async def test_declined_orders_fail_and_their_units_go_back(redis: Redis, any_settings: Settings) -> None:
    settings = msgspec.structs.replace(any_settings, payment_decline_rate=0.3, payment_latency_ms=1)
    sale = await open_sale(settings, redis)
    batch = reserve(sale, 2_000, size=30)
    await accept(redis, batch)
    # The same purchases once more, as a relay that lost a confirm sends them.
    await accept(redis, batch)
    async with running(settings, *stages(settings)):
        await until_settled(redis)
    declined = len(await SimulatedGateway(decline_rate=0.3).charge(batch))
    assert await count_statuses(settings) == {CONFIRMED: 2_000 - declined, FAILED: declined}
    assert await units(redis) == (declined, declined)
    kept = await read_confirmed(redis)
    assert kept
    assert not kept - await find_confirmed(settings)


async def test_a_declined_order_of_an_old_sale_leaves_the_new_sale_alone(
    redis: Redis, settings_without_bus: Settings
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, payment_decline_rate=1.0)
    old = await open_sale(settings, redis)
    await accept(redis, reserve(old, 10))
    await open_sale(settings, redis)
    async with running(settings, run_fulfilment):
        await until_settled(redis)
    assert await count_statuses(settings) == {FAILED: 10}
    assert await units(redis) == (0, 0)


async def test_orders_settled_before_a_crash_are_not_charged_again(
    redis: Redis, settings_without_bus: Settings
) -> None:
    sale = await open_sale(settings_without_bus, redis)
    batch = reserve(sale, 20, size=5)
    await accept(redis, batch)
    assert settings_without_bus.postgres_url
    ledger = await Ledger.connect(settings_without_bus.postgres_url)
    # A fulfilment that died after its commit: it had read the entry, and settled half of it.
    await Outbox(Shard(redis), "me", 3_600_000).read(1)
    await ledger.settle(batch[:2], {})
    charged: list[str] = []

    class Gateway:
        async def charge(self, lots: Sequence[Lot]) -> Mapping[str, str]:
            charged.extend(ids(lots))
            return {}

    await fulfil(redis, Gateway(), ledger, settings_without_bus)
    await ledger.close()
    assert sorted(charged) == sorted(ids(batch[2:]))
    assert await count_statuses(settings_without_bus) == {CONFIRMED: 20}
    assert not await redis.exists(SHARD.pending)


async def test_the_gate_learns_of_an_order_whose_first_settler_could_not_tell_it(
    redis: Redis, settings_without_bus: Settings
) -> None:
    sale = await open_sale(settings_without_bus, redis)
    batch = reserve(sale, 20)
    assert settings_without_bus.postgres_url
    ledger = await Ledger.connect(settings_without_bus.postgres_url)
    await ledger.settle(batch, dict.fromkeys(ids(batch), "payment declined"))
    await ledger.close()
    await accept(redis, batch)
    async with running(settings_without_bus, run_fulfilment):
        await until_settled(redis)
    assert await units(redis) == (20, 20)
    assert await count_statuses(settings_without_bus) == {FAILED: 20}


async def test_a_gateway_that_fails_is_asked_again(redis: Redis, settings_without_bus: Settings) -> None:
    sale = await open_sale(settings_without_bus, redis)
    await accept(redis, reserve(sale, 20))
    assert settings_without_bus.postgres_url
    ledger = await Ledger.connect(settings_without_bus.postgres_url)

    class Gateway:
        failures = 3

        async def charge(self, lots: Sequence[Lot]) -> Mapping[str, str]:
            if self.failures:
                self.failures -= 1
                raise ConnectionResetError
            return {}

    await fulfil(redis, Gateway(), ledger, settings_without_bus)
    await ledger.close()
    assert await count_statuses(settings_without_bus) == {CONFIRMED: 20}


async def test_dead_letters_are_put_aside_and_their_neighbours_are_fulfilled(
    redis: Redis, settings: Settings, bus_url: str
) -> None:
    sale = await open_sale(settings, redis)
    good = reserve(sale, 6)
    [lost] = reserve(msgspec.structs.replace(sale, sale_id=sale.sale_id + 1))
    await mark_pending(redis, good)
    publisher = Publisher(bus_url)
    await publisher.publish(encode_lots([*good[:2], lost, *good[2:4]]))
    await publisher.close()
    async with await aio_pika.connect(bus_url) as connection, connection.channel() as channel:
        for body in (b"no json", encode_lots(good[4:5]) + b"\n{}\n" + encode_lots(good[5:])):
            await channel.default_exchange.publish(aio_pika.Message(body), PURCHASES)
    async with running(settings, run_fulfilment):
        await until_settled(redis)
        dead_letters = dict(await take_dead_letters(bus_url, 3))
    assert await read_statuses(settings) == dict.fromkeys(ids(good), CONFIRMED)
    assert dead_letters.keys() == {encode_lots([lost]), b"no json", b"{}"}
    assert await read_confirmed(redis) == {*ids(good)}
    assert dead_letters[encode_lots([lost])] == "unknown sale"


async def test_dead_letters_without_a_bus_go_to_a_stream(
    redis: Redis, settings_without_bus: Settings
) -> None:
    sale = await open_sale(settings_without_bus, redis)
    [good] = reserve(sale)
    await redis.xadd(SHARD.outbox, {"purchases": b"rubbish\n" + encode_lots([good])})
    async with running(settings_without_bus, run_fulfilment):
        await until_settled(redis)
    dead_letters: Any = await redis.xrange(SHARD.dead)
    [(_, fields)] = dead_letters
    assert fields[b"body"] == b"rubbish"
    assert fields[b"reason"]
    assert await read_statuses(settings_without_bus) == {good.order_ids[0]: CONFIRMED}


async def test_fulfilment_stops_with_all_that_was_sent_to_it_settled(
    redis: Redis, settings_without_bus: Settings
) -> None:
    sale = await open_sale(settings_without_bus, redis)
    await accept(redis, reserve(sale, 3_000), entry_size=20)
    stop = asyncio.Event()
    stop.set()
    await run_fulfilment(settings_without_bus, stop)
    assert await count_statuses(settings_without_bus) == {CONFIRMED: 3_000}


async def test_a_stopped_fulfilment_leaves_to_others_what_is_accepted_later(
    redis: Redis, any_settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    sale, stop = await open_sale(any_settings, redis), asyncio.Event()
    settings = msgspec.structs.replace(any_settings, drain_s=10)

    async def arrive() -> None:
        while True:
            await accept(redis, reserve(sale, 5))

    async with running(settings, run_relay) if settings.amqp_url else nullcontext():
        async with lifecycle.running(arrive()):
            fulfilment = asyncio.create_task(run_fulfilment(settings, stop))
            await eventually(lambda: read_sold(settings, sale))
            stop.set()
            await fulfilment
        pending = await read_pending(Shard(redis))
    assert pending
    assert "work is left" not in caplog.text


async def test_what_is_not_settled_by_the_end_of_the_drain_time_is_kept(
    redis: Redis, settings_without_bus: Settings
) -> None:
    await accept(redis, reserve(await open_sale(settings_without_bus, redis), 5))
    stop = asyncio.Event()
    stop.set()
    absent = msgspec.structs.replace(
        settings_without_bus, postgres_url="postgresql://postgres@127.0.0.1:1/none", drain_s=0.3
    )
    await run_fulfilment(absent, stop)
    assert await redis.xlen(SHARD.outbox) == 1
    assert len(await read_pending(Shard(redis))) == 5


@asynccontextmanager
async def held(settings: Settings, sale: Sale) -> AsyncIterator[None]:
    """Hold a sale's row, as an operator's open transaction does."""
    connection = await asyncpg.connect(settings.postgres_url)
    async with connection.transaction():
        await connection.execute("SELECT FROM sales WHERE sale_id = $1 FOR UPDATE", sale.sale_id)
        yield
    await connection.close()


async def test_a_sale_that_is_held_holds_up_no_other(redis: Redis, any_settings: Settings) -> None:
    settings = msgspec.structs.replace(any_settings, fulfilment_batch=20, fulfilment_in_flight=2)
    sale, other = await open_sale(settings, redis), await open_sale(settings, redis, product_id=2)
    mine, theirs = reserve(sale, 100, size=5), reserve(other, 100, size=5)
    mixed = [lot for pair in zip(mine, theirs, strict=True) for lot in pair]

    async with running(settings, *stages(settings)):
        async with held(settings, sale):
            await accept(redis, mixed, entry_size=50)
            await eventually(lambda: has_orders(settings, theirs))
            assert not set(ids(mine)) & (await read_statuses(settings)).keys()
            # A batch of that sale alone.
            late = reserve(sale, 20)
            await accept(redis, late)
            lates = reserve(other, 20)
            await accept(redis, lates)
            theirs += lates
            await eventually(lambda: has_orders(settings, theirs))
            assert await read_sold(settings, sale) == 0
        await until_settled(redis)
    assert await read_statuses(settings) == dict.fromkeys([*ids(mixed), *ids(late), *ids(lates)], CONFIRMED)
    assert (await read_sold(settings, sale), await read_sold(settings, other)) == (120, 120)


async def test_many_messages_of_a_sale_that_is_held_hold_up_no_other(
    redis: Redis, any_settings: Settings
) -> None:
    """More than a consumer may hold without an acknowledgement."""
    sale, other = await open_sale(any_settings, redis), await open_sale(any_settings, redis, product_id=2)
    mine, theirs = reserve(sale, 600, size=1), reserve(other, 600, size=1)
    mixed = [lot for pair in zip(mine, theirs, strict=True) for lot in pair]
    settings = msgspec.structs.replace(any_settings, relay_batch=4, fulfilment_batch=50)
    async with running(settings, *stages(settings)):
        async with held(settings, sale):
            await accept(redis, mixed, entry_size=2)
            await eventually(lambda: has_orders(settings, theirs))
            assert (await read_statuses(settings)).keys() == set(ids(theirs))
        await until_settled(redis)
    assert await count_statuses(settings) == {CONFIRMED: 1200}


async def test_a_stop_leaves_orders_of_a_sale_that_is_held_to_the_next_start(
    redis: Redis, any_settings: Settings
) -> None:
    sale, other = await open_sale(any_settings, redis), await open_sale(any_settings, redis, product_id=2)
    mine, theirs = reserve(sale, 5), reserve(other, 5)
    hasty = msgspec.structs.replace(any_settings, drain_s=3)
    async with held(hasty, sale):
        async with running(hasty, *stages(hasty)):
            await accept(redis, [*mine, *theirs])
            await eventually(lambda: has_orders(hasty, theirs))
        assert (await read_statuses(hasty)).keys() == set(ids(theirs))
    async with running(any_settings, *stages(any_settings)):
        await until_settled(redis)
    assert await count_statuses(any_settings) == {CONFIRMED: 10}


async def test_a_stop_waits_for_a_sale_that_another_session_lets_go(
    redis: Redis, any_settings: Settings
) -> None:
    sale = await open_sale(any_settings, redis)
    stop = asyncio.Event()
    async with running(any_settings, run_relay) if any_settings.amqp_url else nullcontext():
        async with held(any_settings, sale):
            await accept(redis, reserve(sale, 50))
            stopped = asyncio.create_task(run_fulfilment(any_settings, stop))
            await eventually(lambda: has_waiting_sessions(any_settings))
            stop.set()
        await stopped
    assert await count_statuses(any_settings) == {CONFIRMED: 50}


async def has_waiting_sessions(settings: Settings) -> bool:
    connection = await asyncpg.connect(settings.postgres_url)
    waiting = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
    await connection.close()
    return bool(waiting)


async def has_orders(settings: Settings, lots: Sequence[Lot]) -> bool:
    return set(ids(lots)) <= (await read_statuses(settings)).keys()


async def test_fulfilment_counts_each_order_once(redis: Redis, settings_without_bus: Settings) -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("flashgrid_orders_total", {"status": CONFIRMED}) or 0.0

    before = count()
    batch = reserve(await open_sale(settings_without_bus, redis), 50, size=20)
    await accept(redis, batch)
    await accept(redis, batch)
    async with running(settings_without_bus, run_fulfilment):
        await until_settled(redis)
    assert count() - before == 50


async def test_fulfilment_needs_a_ledger(settings_without_bus: Settings) -> None:
    with pytest.raises(SettingsError):
        await run_fulfilment(
            msgspec.structs.replace(settings_without_bus, postgres_url=None), asyncio.Event()
        )


@pytest.mark.parametrize("service", ["postgres", "redis"])
async def test_a_service_that_is_killed_in_the_middle_loses_nothing(
    stack: Stack, redis: Redis, settings: Settings, service: str
) -> None:
    sale = await open_sale(settings, redis)
    batch = reserve(sale, 6_000, size=30)
    settings = msgspec.structs.replace(settings, fulfilment_batch=50, payment_decline_rate=0.1)
    async with running(settings):
        await accept(redis, batch, entry_size=50)
        while len(await read_statuses(settings)) < 500:
            pass
        await stack.kill(service)
        await stack.start(service)
        await until_settled(redis)
    statuses = await read_statuses(settings)
    assert statuses.keys() == set(ids(batch))
    failed = list(statuses.values()).count(FAILED)
    assert await units(redis) == (failed, failed)
    assert await read_sold(settings, sale) == 6_000 - failed
