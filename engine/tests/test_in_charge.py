"""What holds when another server takes over, while the one before it goes on answering its connections."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import aiohttp
import asyncpg
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ReadOnlyError

from engine.errors import GateUnavailable, LedgerUnavailable
from engine.gate.clearing import Clearing
from engine.gate.client import Shard, connect_redis
from engine.gate.gate import Gate
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from engine.settings import Settings
from engine.tests.gate.test_watch import gate_sells
from engine.tests.orders import SHARD, make_terms, read_stock, reserve
from engine.tests.proxy import Proxy
from engine.tests.replicas import RedisPair, run_redis_pair, run_standby
from engine.tests.stages.test_reconciliation import has_status
from engine.tests.test_server import Server, buy, eventually, get, post, serving

pytestmark = pytest.mark.slow


@pytest.fixture
async def pair(stack_dir: Path) -> AsyncIterator[RedisPair]:
    async with run_redis_pair(stack_dir) as pair:
        yield pair


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def sells(http: aiohttp.ClientSession, server: Server) -> bool:
    return (await buy(http, server))[0] == 200


async def has_order(http: aiohttp.ClientSession, server: Server, order_id: str, status: str) -> bool:
    code, order = await get(http, f"{server.url}/purchase/orders/{order_id}")
    assert code in (200, 503), "an order that was accepted is never unknown"
    return bool(order["status"] == status)


@pytest.mark.parametrize("bus", [True, False])
async def test_redis_hands_over_in_a_sale_and_the_engine_follows(
    settings: Settings, pair: RedisPair, http: aiohttp.ClientSession, bus: bool
) -> None:
    async with Proxy(pair.url).listen() as name:
        amqp_url = settings.amqp_url if bus else None
        settings = msgspec.structs.replace(settings, redis_url=name.url, amqp_url=amqp_url)
        async with serving(settings) as server:
            await post(http, f"{server.url}/purchase/init?productId=1&stock=1000")
            orders = [(await buy(http, server))[1]["orderId"] for _ in range(20)]
            name.point_to(pair.replica_port)
            await pair.hand_over()
            await eventually(partial(sells, http, server))
            for path in ("readyz", "purchase/stock?productId=1"):
                await eventually(partial(has_status, http, f"{server.url}/{path}", 200))
            orders += [(await buy(http, server))[1]["orderId"] for _ in range(20)]
            for order_id in orders:
                await eventually(partial(has_order, http, server, order_id, "CONFIRMED"))
            status, _ = await post(http, f"{server.url}/purchase/init?productId=2&stock=5")
            assert status == 200


async def test_what_a_demoted_redis_remembers_is_not_believed(
    settings_without_bus: Settings, pair: RedisPair
) -> None:
    """It takes no write, so nothing but a question can tell: it refuses and shows what is out of date."""
    old = Sale(sale_id=1, terms=make_terms(stock=0))
    new = Sale(sale_id=2, terms=make_terms(stock=9))
    async with Proxy(pair.url).listen() as name, connect_redis(pair.url) as redis:
        await redis.hset(SHARD.fence, "open", 1)
        settings = msgspec.structs.replace(settings_without_bus, redis_url=name.url)
        gate, clearing_redis = Gate(settings), connect_redis(name.url)
        clearing = Clearing([Shard(clearing_redis)])
        await gate.open_sale(old)
        assert (await gate.reserve(1, 1, None))[0] is Outcome.SOLD_OUT
        assert await read_stock(gate, 1) == (1, 0, 0)
        assert await clearing.is_remembered()
        name.point_to(pair.replica_port)
        await eventually(partial(same_sale, pair, "1"))
        await pair.part()
        other = Gate(msgspec.structs.replace(settings, redis_url=f"redis://127.0.0.1:{pair.replica_port}/0"))
        await other.open_sale(new)
        with pytest.raises(GateUnavailable):
            await read_stock(gate, 1)
        assert await read_stock(gate, 1) == (2, 9, 9)
        await gate.check(1, 10)
        with pytest.raises(ReadOnlyError):
            await clearing.is_remembered()
        assert await clearing.is_remembered()
        assert (await gate.reserve(1, 1, None))[0] is Outcome.GATE_UNAVAILABLE
        await eventually(partial(gate_sells, gate))
        for one in (gate, other):
            await one.close()
        await clearing_redis.aclose()


async def same_sale(pair: RedisPair, sale_id: str) -> bool:
    async with Redis(port=pair.replica_port, decode_responses=True) as replica:
        return await replica.hget(SHARD.sale(1), "sale_id") == sale_id


async def test_postgres_is_replaced_in_a_sale_and_the_engine_follows(
    settings: Settings, stack_dir: Path, http: aiohttp.ClientSession
) -> None:
    assert settings.postgres_url
    async with (
        run_standby(settings.postgres_url, stack_dir) as standby,
        Proxy(standby.primary_url).listen() as name,
    ):
        async with serving(msgspec.structs.replace(settings, postgres_url=name.url)) as server:
            await post(http, f"{server.url}/purchase/init?productId=1&stock=1000")
            orders = [(await buy(http, server))[1]["orderId"] for _ in range(20)]
            await eventually(partial(has_order, http, server, orders[-1], "CONFIRMED"))
            name.point_to(standby.port)
            await standby.take_over()
            orders += [(await buy(http, server))[1]["orderId"] for _ in range(20)]
            for order_id in orders:
                await eventually(partial(has_order, http, server, order_id, "CONFIRMED"))
            await eventually(partial(opens_sale, http, server))
        assert await count_orders(standby.url) == 40
        assert await count_orders(standby.primary_url) == 20


async def opens_sale(http: aiohttp.ClientSession, server: Server) -> bool:
    """Whether the front door opens a sale; who asks first after the hand-over may be told to try again."""
    status, _ = await post(http, f"{server.url}/purchase/init?productId=2&stock=5")
    assert status in (200, 503)
    return status == 200


async def test_what_a_replaced_postgres_knows_is_not_believed(postgres_db: str, stack_dir: Path) -> None:
    async with run_standby(postgres_db, stack_dir) as standby, Proxy(postgres_db).listen() as name:
        ledger = await Ledger.connect(name.url, connections=1)
        await ledger.migrate()
        sale = await ledger.open_sale(make_terms(stock=10))
        lots = reserve(sale)
        reads: list[Callable[[Ledger], Awaitable[object]]] = [
            lambda ledger: ledger.find_orders(lots[0].order_ids),
            Ledger.read_generation,
            Ledger.find_current_sales,
            lambda ledger: read_bought(ledger, sale.sale_id),
            lambda ledger: ledger.find_offers(60),
            lambda ledger: ledger.find_pruned(lots[0].order_ids),
            Ledger.find_newest,
            read_keys,
            take_lock,
        ]
        connected = [await Ledger.connect(postgres_db, connections=1) for _ in reads]
        for one in connected:
            await one.read_generation()
        name.point_to(standby.port)
        await standby.take_over()
        other = await Ledger.connect(standby.url)
        await other.settle(lots, {})
        for one, read in zip([ledger, *connected], [reads[0], *reads], strict=True):
            with pytest.raises(LedgerUnavailable, match="this server is read-only"):
                await read(one)
        assert await ledger.find_orders(lots[0].order_ids), "its name is looked up anew"
        with pytest.raises(LedgerUnavailable, match="target attribute"):
            await connected[0].find_orders(lots[0].order_ids)
        for one in (ledger, other, *connected):
            await one.close()


async def read_bought(ledger: Ledger, sale_id: int) -> None:
    async for _ in ledger.count_bought([sale_id]):
        pass


async def read_keys(ledger: Ledger) -> None:
    async for _ in ledger.find_keys(60):
        pass


async def take_lock(ledger: Ledger) -> None:
    async with ledger.try_lock():
        pass


async def count_orders(url: str) -> int:
    connection = await asyncpg.connect(url)
    count: int = await connection.fetchval("SELECT count(*) FROM orders")
    await connection.close()
    return count


async def test_the_gate_opens_again_after_the_bus_lost_its_connections_and_redis_its_memory(
    settings: Settings, stack: Stack, redis: Redis, http: aiohttp.ClientSession
) -> None:
    async with serving(settings) as server:
        await post(http, f"{server.url}/purchase/init?productId=1&stock=10")
        _, accepted = await buy(http, server)
        await eventually(partial(has_order, http, server, accepted["orderId"], "CONFIRMED"))
        await stack.control_rabbitmq("close_all_connections", "test")
        await redis.flushall()
        await eventually(partial(has_status, http, f"{server.url}/readyz", 200))
        counts = Counter([(await buy(http, server))[0] for _ in range(10)])
    assert counts == {200: 9, 429: 1}


@pytest.mark.parametrize("service", ["redis", "postgres", "rabbitmq"])
async def test_the_gate_opens_again_whatever_fails_before_during_and_after_a_loss_of_memory(
    settings: Settings, stack: Stack, redis: Redis, http: aiohttp.ClientSession, service: str
) -> None:
    async with serving(settings) as server:
        await post(http, f"{server.url}/purchase/init?productId=1&stock=10")
        await buy(http, server)
        if service != "redis":
            await stack.kill(service)
        await redis.flushall()
        assert (await buy(http, server))[0] == 503
        if service == "redis":
            await stack.kill(service)
        await stack.start(service)
        await stack.kill(service)
        await stack.start(service)
        await eventually(partial(has_status, http, f"{server.url}/readyz", 200), within_s=60)
        counts = Counter([(await buy(http, server))[0] for _ in range(10)])
    # A purchase whose outbox entry was wiped with the memory, before the ledger knew it, is lost.
    assert counts in ({200: 9, 429: 1}, {200: 10})
