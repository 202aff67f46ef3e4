"""A client that does not finish what it began to ask holds its connection for a bounded time only."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest

from engine.front_door import run_front_door
from engine.gate import Gate
from engine.sale import Sale, SaleTerms
from engine.settings import Settings

BODY = b'{"userId":101,"productId":1}'
HEAD = (
    b"POST /purchase/buy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[int]:
    """The port of a front door with a sale of product 1."""
    gate = Gate(settings)
    await gate.open_sale(Sale(sale_id=1, terms=SaleTerms(product_id=1, stock=10)))
    await gate.close()
    stop, ready = asyncio.Event(), asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with asyncio.TaskGroup() as group:
            group.create_task(run_front_door(settings, listener, stop, ready.set))
            await ready.wait()
            yield listener.getsockname()[1]
            stop.set()


async def talk(port: int, *pieces: bytes) -> bytes:
    """All that the server says to these bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        # A piece of its own, and not a part of the next one.
        await asyncio.sleep(0.05)
    said = await reader.read(-1)
    writer.close()
    return said


@pytest.mark.parametrize(
    "pieces",
    [(), (HEAD[:40],), (HEAD,), (HEAD[:40], HEAD[40:80])],
    ids=["nothing", "half a head", "a head without its body", "a head in pieces"],
)
async def test_a_connection_without_a_whole_request_is_closed(
    settings_without_bus: Settings, pieces: tuple[bytes, ...]
) -> None:
    async with serving(msgspec.structs.replace(settings_without_bus, keepalive_s=0.5)) as port:
        assert await talk(port, *pieces) == b""


async def test_a_body_that_stays_away_is_answered_and_its_connection_closed(
    settings_without_bus: Settings,
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, client_timeout_ms=200)
    async with serving(settings) as port:
        said = await talk(port, HEAD + BODY[:5])
    assert said.startswith(b"HTTP/1.1 408")
    assert b'"code":"TIMEOUT"' in said


async def test_an_idle_connection_is_closed_after_its_answer(settings_without_bus: Settings) -> None:
    async with serving(msgspec.structs.replace(settings_without_bus, keepalive_s=0.5)) as port:
        assert (await talk(port, HEAD + BODY)).startswith(b"HTTP/1.1 200")
        assert (await talk(port, HEAD, BODY)).startswith(b"HTTP/1.1 200")
