"""Looking never blocks: neither those who buy, nor the operator, nor for longer than its bound."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import msgspec
import psutil
import pytest
from redis.asyncio import Redis

from engine.gate.clearing import Clearing
from engine.gate.client import Shard
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack
from engine.model.lot import Lot
from engine.model.order_id import make_stem, split_order_id
from engine.settings import Settings
from engine.tests.proxy import Proxy
from engine.tests.test_server import buy, get, post, serving

pytestmark = pytest.mark.slow

CROWD = 400


@contextmanager
def frozen(stack: Stack, service: str) -> Iterator[None]:
    """Stop all processes of a service: it takes connections and answers nothing."""
    server = psutil.Process(stack.pid(service))
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


async def test_a_frozen_ledger_is_waited_for_no_longer_than_the_bound(
    settings_without_bus: Settings, redis: Redis, stack: Stack
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, look_timeout_ms=1_000)
    async with (
        serving(settings, "--role", "front-door") as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
        await Ledger.connect(settings.postgres_url) as ledger,
    ):
        orders = f"{server.url}/purchase/orders"
        _, sale = await post(http, f"{server.url}/purchase/init?productId=1&stock=9")
        settled, pending = [(await buy(http, server))[1]["orderId"] for _ in range(2)]
        lots = [Lot(*split_order_id(settled), 1, sale["saleId"], 1, 1, [101])]
        await ledger.settle(lots, {})
        await Clearing([Shard(redis)]).clear(lots)
        with frozen(stack, "postgres"):
            looks = [asyncio.create_task(get(http, f"{orders}/{settled}")) for _ in range(CROWD)]
            assert await get(http, f"{orders}/{pending}") == (200, {"orderId": pending, "status": "PENDING"})
            assert (await buy(http, server))[0] == 200
            assert (await get(http, f"{server.url}/healthz"))[0] == 200
            status, ready = await get(http, f"{server.url}/readyz")
            assert (status, ready["services"]["redis"]) == (200, "OK")
            assert ready["services"]["postgres"].startswith("no answer")
            status, problem = await post(http, f"{server.url}/purchase/init?productId=2&stock=9")
            assert (status, problem["code"]) == (503, "LEDGER_UNAVAILABLE")
            answers = await asyncio.wait_for(asyncio.gather(*looks), 30)
            assert Counter((status, body["code"]) for status, body in answers) == {
                (503, "LEDGER_UNAVAILABLE"): CROWD
            }
        status, order = await get(http, f"{orders}/{settled}")
        while status == 503:  # what began while it was frozen is still being given up
            status, order = await get(http, f"{orders}/{settled}")
        assert (status, order["status"]) == (200, "CONFIRMED")


async def test_an_order_that_was_shown_as_settled_is_never_pending_again(
    settings_without_bus: Settings, redis: Redis
) -> None:
    """While the gate is away the ledger shows how an order ended; the gate hears of it later."""
    async with (
        serving(settings_without_bus, "--role", "front-door") as server,
        aiohttp.ClientSession() as http,
        await Ledger.connect(settings_without_bus.postgres_url) as ledger,
    ):
        _, sale = await post(http, f"{server.url}/purchase/init?productId=1&stock=9")
        settled, pending = [(await buy(http, server))[1]["orderId"] for _ in range(2)]
        await ledger.settle([Lot(*split_order_id(settled), 1, sale["saleId"], 1, 1, [101])], {})
        _, order = await get(http, f"{server.url}/purchase/orders/{settled}")
        assert order["status"] == "PENDING", "the gate alone is asked"
        await redis.client_kill_filter(_type="normal", skipme=True)
        _, order = await get(http, f"{server.url}/purchase/orders/{settled}")
        while "status" not in order or order["status"] == 503:  # the lost connection is found out
            _, order = await get(http, f"{server.url}/purchase/orders/{settled}")
        assert order["status"] == "CONFIRMED"
        _, order = await get(http, f"{server.url}/purchase/orders/{pending}")
        assert order["status"] == "PENDING"


async def test_looks_at_a_frozen_ledger_begin_no_connect_that_they_have_no_time_for(
    settings_without_bus: Settings, stack: Stack
) -> None:
    """Each costs a millisecond of the processor that sells."""
    async with (
        Proxy(settings_without_bus.postgres_url or "").listen() as proxy,
        serving(
            msgspec.structs.replace(settings_without_bus, postgres_url=proxy.url), "--role", "front-door"
        ) as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        order = f"{server.url}/purchase/orders/{make_stem()}000"
        # Its connections are new, so it can't deny an order yet.
        while (await get(http, order))[0] != 404:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        with frozen(stack, "postgres"):
            before = proxy.connects
            looks = []
            for _ in range(CROWD):
                looks.append(asyncio.create_task(get(http, order)))
                await asyncio.sleep(0.01)
            answers = await asyncio.gather(*looks)
            connects = proxy.connects - before
    assert {status for status, _ in answers} == {503}
    assert connects < CROWD / 4


async def test_a_crowd_that_looks_at_the_stock_is_answered_and_blocks_nobody(
    settings_without_bus: Settings,
) -> None:
    # How soon a crowd is answered is the machine's affair.
    settings = msgspec.structs.replace(settings_without_bus, look_timeout_ms=60_000)
    async with (
        serving(settings, "--role", "front-door") as server,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        await post(http, f"{server.url}/purchase/init?productId=1&stock=9")
        stock = f"{server.url}/purchase/stock?productId=1"
        looks = [asyncio.create_task(get(http, stock)) for _ in range(CROWD)]
        operations = [
            asyncio.create_task(post(http, f"{server.url}/purchase/init?productId=2&stock=9")),
            asyncio.create_task(get(http, f"{server.url}/readyz")),
            asyncio.create_task(buy(http, server)),
        ]
        assert Counter(status for status, _ in await asyncio.gather(*looks, *operations)) == {200: CROWD + 3}


async def test_a_frozen_gate_blocks_neither_readiness_nor_what_the_ledger_knows(
    settings_without_bus: Settings, redis: Redis, stack: Stack
) -> None:
    async with (
        serving(settings_without_bus, "--role", "front-door") as server,
        aiohttp.ClientSession() as http,
        await Ledger.connect(settings_without_bus.postgres_url) as ledger,
    ):
        _, sale = await post(http, f"{server.url}/purchase/init?productId=1&stock=9")
        order_id = (await buy(http, server))[1]["orderId"]
        await ledger.settle([Lot(*split_order_id(order_id), 1, sale["saleId"], 1, 1, [101])], {})
        with frozen(stack, "redis"):
            status, order = await get(http, f"{server.url}/purchase/orders/{order_id}")
            assert (status, order["status"]) == (200, "CONFIRMED")
            status, problem = await get(http, f"{server.url}/purchase/stock?productId=1")
            assert (status, problem["code"]) == (503, "GATE_UNAVAILABLE")
            status, problem = await get(http, f"{server.url}/readyz")
            assert (status, problem["services"]["postgres"]) == (503, "OK")
            assert problem["services"]["redis"].startswith("no answer")
            assert (await get(http, f"{server.url}/healthz"))[0] == 200
