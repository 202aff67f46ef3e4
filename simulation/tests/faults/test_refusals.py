"""A service that is told to refuse does so, says why, and works as before when a run is interrupted."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import aio_pika
import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from engine.bus.publisher import Publisher
from engine.bus.topology import DEAD
from engine.gate.client import connect_redis
from engine.model.dead_letter import DeadLetter
from engine.tests.backend import take_dead_letters
from simulation.faults.injector import Injector
from simulation.scenario.fault import REFUSALS, Fault
from simulation.target.services import Services
from simulation.tests.faults.test_single_faults import services

__all__ = ["services"]


# asyncpg raises an InternalClientError if its session is ended while it waits for an answer.
LOST = (RedisError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)


@asynccontextmanager
async def refusing(kind: str, on: str, services: Services) -> AsyncIterator[None]:
    """A fault that lasts longer than the block, at whose end its run is interrupted."""
    async with Injector([Fault(at_s=0, seconds=600, kind=kind, on=on)], None, services, None) as injector:
        injector.begin(time.monotonic_ns())
        yield


async def until_it_fails(action: Callable[[], Awaitable[object]]) -> Exception:
    async with asyncio.timeout(30):
        while True:
            try:
                await action()
            except LOST as error:
                return error
            await asyncio.sleep(0.02)


async def until_it_saves(redis: Redis) -> None:
    async with asyncio.timeout(30):
        while True:
            # An earlier test's end may have left one under way.
            with suppress(ResponseError):
                await redis.save()
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "said"), [("out_of_memory", "maxmemory"), ("disk_full", "MISCONF"), ("read_only", "read only")]
)
async def test_redis_refuses_writes_and_answers_reads(kind: str, said: str, services: Services) -> None:
    async with connect_redis(services.redis_url, 5_000) as redis:
        await redis.set("kept", "as it was")
        await until_it_saves(redis)  # A snapshot may lie there already.
        async with refusing(kind, "redis", services):
            assert said in str(await until_it_fails(lambda: redis.set("kept", "changed")))
            before = await redis.get("kept")
            assert said in str(await until_it_fails(lambda: redis.set("kept", "changed again")))
            assert await redis.get("kept") == before
        assert await redis.set("kept", "changed at last")


@pytest.mark.parametrize("kind", [kind for kind, targets in REFUSALS.items() if "rabbitmq" in targets])
async def test_rabbitmq_keeps_publishers_waiting_and_takes_what_they_sent(
    kind: str, services: Services, bus_url: str
) -> None:
    publisher = Publisher(bus_url)
    sent = 0
    async with refusing(kind, "rabbitmq", services):
        while True:
            last = asyncio.create_task(publisher.put_aside([DeadLetter(b"%d" % sent, "a message")]))
            sent += 1
            done, _ = await asyncio.wait({last}, timeout=0.3)
            if not done:
                break
        async with await aio_pika.connect(bus_url) as connection, connection.channel() as channel:
            assert await channel.declare_queue(DEAD, passive=True), "who only asks is answered"
    await last
    await publisher.close()
    found = await take_dead_letters(bus_url, sent)
    assert [body for body, _ in found] == [b"%d" % number for number in range(sent)]


async def test_postgres_is_read_only(services: Services) -> None:
    connection = await asyncpg.connect(services.postgres_url)
    await connection.execute("CREATE TABLE kept (n int)")
    async with refusing("read_only", "postgres", services):
        error = await until_it_fails(lambda: connection.execute("INSERT INTO kept VALUES (1)"))
        assert isinstance(error, asyncpg.ReadOnlySQLTransactionError)
        assert await connection.fetchval("SELECT count(*) FROM kept") is not None
    async with asyncio.timeout(10):
        while await connection.fetchval("SHOW default_transaction_read_only") == "on":  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    await connection.execute("INSERT INTO kept VALUES (2)")
    await connection.close()


async def test_postgres_has_no_connections(services: Services) -> None:
    async def connect() -> None:
        await (await asyncpg.connect(services.postgres_url)).close()

    connection = await asyncpg.connect(services.postgres_url)
    async with refusing("no_connections", "postgres", services):
        await until_it_fails(lambda: connection.execute("SELECT 1"))
        while not isinstance(await until_it_fails(connect), asyncpg.TooManyConnectionsError):
            pass
    async with asyncio.timeout(10):
        while True:
            try:
                await connect()
                break
            except asyncpg.TooManyConnectionsError:
                await asyncio.sleep(0.02)


async def test_a_service_that_drops_its_connections_takes_new_ones_at_once(
    services: Services, bus_url: str
) -> None:
    async with connect_redis(services.redis_url, 5_000) as redis:
        number = await redis.client_id()
        async with refusing("drop_connections", "redis", services), asyncio.timeout(30):
            # The client connects anew by itself.
            while await redis.client_id() == number:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    connection = await asyncpg.connect(services.postgres_url)
    async with refusing("drop_connections", "postgres", services):
        await until_it_fails(lambda: connection.execute("SELECT 1"))
        await (await asyncpg.connect(services.postgres_url)).close()

    bus, lost = await aio_pika.connect(bus_url), asyncio.Event()
    bus.close_callbacks.add(lambda *_: lost.set())
    async with refusing("drop_connections", "rabbitmq", services), asyncio.timeout(30):
        await lost.wait()
        await (await aio_pika.connect(bus_url)).close()


async def test_a_fault_waits_for_one_that_takes_longer_than_planned_on_the_same_processes(
    services: Services,
) -> None:
    """Two that may not overlap do not, whatever the time says; others do."""
    same = [Fault(at_s=0, seconds=0.5, kind="stop", on=on) for on in ("redis", "redis", "postgres")]
    async with Injector(same, None, services, None) as injector:
        injector.begin(time.monotonic_ns())
        intervals = await injector.finish()
    redis = [interval for interval in intervals if interval.on == "redis"]
    [postgres] = [interval for interval in intervals if interval.on == "postgres"]
    assert redis[1].start_s >= redis[0].end_s
    assert postgres.start_s < redis[0].end_s
