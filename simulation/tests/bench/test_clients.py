"""Clients and looks: what is sent is what clients send, and each answer is the one that is claimed."""

import asyncio
import os
from urllib.parse import urlsplit

import asyncpg
import pytest

from simulation.bench.programs import Program, run_wrk, serve_nginx
from simulation.bench.samples import Cost
from simulation.bench.spellings import (
    BODY,
    DIFFERENT,
    HOST,
    JSON,
    LENGTH,
    buy_any_of,
    list_spellings,
    look_at_orders,
    look_at_stock,
    write_buy,
)
from simulation.bench.subjects import PLENTY, Engine, measure_refusals
from simulation.tests.bench.installed import needs_nginx, needs_wrk
from simulation.tests.http_server import SOLD_OUT, Request, http_server

pytestmark = pytest.mark.slow

SPELLINGS = list_spellings()
NEW_EACH_TIME = {"trace header of its own", "browser, three headers of its own"}


async def ask(url: str, request: bytes) -> bytes:
    """The head of the answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head


async def refuse(request: Request) -> None:
    request.send(SOLD_OUT)


def test_a_purchase_has_the_length_of_its_body() -> None:
    assert write_buy(HOST, JSON, LENGTH) == (
        b"POST /purchase/buy HTTP/1.1\r\nHost: shop.example\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY.encode())
    )


async def test_every_spelling_is_a_purchase(engine: Engine) -> None:
    await engine.open_sale(PLENTY)
    requests = [spelt[number] for spelt in SPELLINGS.values() for number in (0, -1)]
    heads = [await ask(engine.url, request) for request in requests]
    assert {head[9:12] for head in heads} == {b"200"}
    await engine.drain()
    connection = await asyncpg.connect(engine.services.postgres_url)
    rows = await connection.fetch("SELECT user_id, product_id, count(*) FROM orders GROUP BY 1, 2")
    await connection.close()
    assert [tuple(row) for row in rows] == [(101, 1, len(requests))]


@pytest.mark.parametrize("name", SPELLINGS)
def test_only_headers_of_its_own_change(name: str) -> None:
    assert len(set(SPELLINGS[name])) == (DIFFERENT if name in NEW_EACH_TIME else 1)


async def test_a_spelling_keeps_its_connection_unless_it_says_so(engine: Engine) -> None:
    await engine.open_sale(0)
    for name, requests in SPELLINGS.items():
        head = await ask(engine.url, requests[0])
        assert head[8:13] == b" 429 "
        # An answer by HTTP/1.0 closes its connection unless it says otherwise.
        old = head.startswith(b"HTTP/1.0")
        kept = b"keep-alive" in head.lower() if old else b": close" not in head.lower()
        assert kept == (name != "HTTP/1.0, a connection each"), name


@needs_wrk
async def test_wrk_sends_the_bytes_that_it_is_given_and_in_turn() -> None:
    requests = [write_buy(HOST, LENGTH, f"N: {number}", body="a\nb" * number) for number in range(3)]
    async with http_server(refuse) as server:
        sample = await run_wrk(server.url, 1, 1, requests)
    assert sample.refused == sample.requests > 3
    assert sample.cpu_s["wrk"] > 0
    came = [(int(request.headers["n"]), request.body) for request in server.requests[:7]]
    # wrk has looked at the first one before.
    assert came == [(n % 3, b"a\nb" * (n % 3)) for n in range(1, 8)]


def test_purchases_of_many_products_are_spread_over_all_of_them() -> None:
    assert len(set(buy_any_of(1))) == 1
    assert 95 < len(set(buy_any_of(100))) <= 100


@needs_nginx
async def test_the_proxy_speaks_http_1_0_and_connects_anew() -> None:
    async with http_server(refuse) as server, serve_nginx(server.url) as proxy:
        for _ in range(2):
            assert (await ask(proxy.url, SPELLINGS["plain"][0])).startswith(b"HTTP/1.1 429 ")
    assert [request.line for request in server.requests] == ["POST /purchase/buy HTTP/1.0"] * 2
    assert {request.headers["connection"] for request in server.requests} == {"close"}
    assert server.connections == 2
    assert {request.body for request in server.requests} == {BODY.encode()}


@needs_wrk
@needs_nginx
async def test_a_proxy_whose_server_is_gone_is_a_fault() -> None:
    async with http_server(refuse) as server:
        gone = Program("server", server.url, os.getpid())
    async with serve_nginx(gone.url) as proxy:
        sample = await measure_refusals(gone, 2, 1, proxy=proxy)
    assert sample.requests == sample.refused
    assert sample.fault == "nginx wrote errors"


@needs_wrk
async def test_looks_that_are_refused_or_that_buy_are_a_fault(engine: Engine) -> None:
    sample = await engine.measure(None, 2, 1, look_at_stock())
    assert sample.fault == f"{sample.requests} of {sample.requests} were refused", "there is no sale yet"
    await engine.open_sale(3)
    assert (await engine.measure(None, 2, 1, look_at_stock())).fault == ""
    assert "3 ACCEPTED" in (await engine.measure(None, 2, 1)).fault
    sample = await engine.measure(None, 2, 1, look_at_orders(["01890a5d-ac96-774b-bcce-b302099a8057"]))
    assert "were refused" in sample.fault


def test_the_processor_time_of_a_request_is_shared_out_among_all_processes() -> None:
    spent_s = {
        "front-door 1": 0.3, "redis": 0.1, "relay": 0.01, "rabbitmq": 0.02, "fulfilment": 0.03,
        "postgres": 0.04, "wrk": 0.2, "server": 0.001, "keeper": 0.002, "flashsim": 9.0,
    }  # fmt: skip
    cost = Cost.of("engine", 64, [(spent_s, 100_000), (spent_s | {"redis": 0.5}, 100_000)])
    found = {name: round(us.median, 6) for name, us in cost.us.items()}
    assert found == {
        "door": 3.0, "Redis": 3.0, "relay": 0.1, "bus": 0.2, "fulfilment": 0.3, "PostgreSQL": 0.4,
        "load": 2.0, "others": 0.03, "sum": 9.03,
    }  # fmt: skip
    assert cost.us["Redis"].values == [1.0, 5.0]
    assert cost.without_load().values == pytest.approx([5.03, 9.03])
    alone = Cost.of("nginx", 64, [({"nginx": 0.5, "wrk": 0.5, "flashsim": 0.1}, 100_000)])
    assert alone.us["sum"].median == 10.0
