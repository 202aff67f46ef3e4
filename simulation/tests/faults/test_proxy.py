"""The proxy does to the network what a fault says, and nothing once the fault has ended."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from simulation.faults.proxy import Proxy, start_proxy
from simulation.scenario.fault import Fault
from simulation.target.services import Services

pytestmark = pytest.mark.slow


class Echo:
    """A service that remembers what it was asked and answers with the same."""

    def __init__(self) -> None:
        self.asked = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65_536):
                self.asked += data
                writer.write(data)
        writer.close()


@asynccontextmanager
async def behind_proxy() -> AsyncIterator[tuple[Proxy, int, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    services = Services(redis_url=f"redis://me:secret@127.0.0.1:{port}/0", postgres_url="postgresql://x:1/y")
    async with server, start_proxy(services, ["redis"]) as (proxy, seen):
        assert seen.postgres_url == services.postgres_url
        head, _, tail = seen.redis_url.rpartition(":")
        assert head == "redis://me:secret@127.0.0.1"
        yield proxy, int(tail.removesuffix("/0")), echo


def fault(kind: str, **strength: Any) -> Fault:
    return Fault(at_s=0, seconds=1, kind=kind, on="redis", **strength)


async def ask(port: int, text: bytes = b"ping") -> bytes:
    """One question on a connection of its own; what is missing was never answered."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    try:
        return await reader.readexactly(len(text))
    except asyncio.IncompleteReadError as error:
        return error.partial
    finally:
        writer.close()


async def test_without_a_fault_every_byte_passes() -> None:
    async with behind_proxy() as (_, port, _echo):
        text = bytes(range(256)) * 4_000
        assert await ask(port, text) == text


async def test_cut_connections_are_reset_and_refused_until_the_fault_ends() -> None:
    async with behind_proxy() as (proxy, port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        await proxy.set_fault("redis", fault("cut"))
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await ask(port)
        await proxy.set_fault("redis", None)
        assert await ask(port) == b"ping"


async def test_frozen_bytes_arrive_once_the_fault_ends() -> None:
    async with behind_proxy() as (proxy, port, echo):
        await proxy.set_fault("redis", fault("freeze"))
        asking = asyncio.create_task(ask(port))
        done, _ = await asyncio.wait([asking], timeout=0.2)
        assert not done
        assert not echo.asked
        await proxy.set_fault("redis", None)
        assert await asking == b"ping"


async def test_of_a_dropped_reply_the_request_was_done() -> None:
    async with behind_proxy() as (proxy, port, echo):
        await proxy.set_fault("redis", fault("drop_replies", share=1))
        with pytest.raises(ConnectionResetError):
            await ask(port)
        assert echo.asked == b"ping"
        await proxy.set_fault("redis", None)
        assert await ask(port) == b"ping"


async def test_latency_delays_and_keeps_the_order() -> None:
    async with behind_proxy() as (proxy, port, echo):
        await proxy.set_fault("redis", fault("latency", latency_ms=50))
        started = time.monotonic()
        texts = [b"%03d" % number for number in range(5)]
        assert await asyncio.gather(*(ask(port, text) for text in texts)) == texts
        assert time.monotonic() - started >= 0.1  # each way once
        assert len(echo.asked) == 15


async def test_a_narrow_way_passes_so_many_bytes_a_second() -> None:
    async with behind_proxy() as (proxy, port, _):
        await proxy.set_fault("redis", fault("bandwidth", bytes_per_s=10_000))
        started = time.monotonic()
        assert await ask(port, b"x" * 4_000) == b"x" * 4_000
        assert time.monotonic() - started >= 0.35  # the last piece's own wait is nobody's
