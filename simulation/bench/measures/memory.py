"""Memory of the front door: after many requests, and for each idle connection."""

import asyncio
import resource
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final
from urllib.parse import urlsplit

from engine.model.purchase import Outcome
from simulation.bench.results import IdleConnections, Memory
from simulation.bench.rounds import Say
from simulation.bench.subjects import Engine
from simulation.errors import BenchError

CONNECTIONS: Final = 256
BODY: Final = b'{"userId":101,"productId":1}'
REQUEST: Final = (
    b"POST /purchase/buy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)


async def watch_memory(engine: Engine, requests: int, window_s: float, say: Say) -> Memory:
    """Read the resident memory after each window, until at least `requests` purchases are answered."""
    await engine.open_sale(0)
    await engine.measure(Outcome.SOLD_OUT, CONNECTIONS, 1)
    answered, rss_mib = [0], [engine.front_door_rss_mib()]
    while answered[-1] < requests:
        sample = await engine.measure(Outcome.SOLD_OUT, CONNECTIONS, window_s)
        answered.append(answered[-1] + sample.requests)
        rss_mib.append(engine.front_door_rss_mib())
        say(f"front door: {rss_mib[-1]:.1f} MiB after {answered[-1]:,} purchases")
    return Memory(requests=answered, rss_mib=rss_mib)


async def weigh_connections(
    engine: Engine, sizes: Sequence[int], say: Say, note: Say
) -> list[IdleConnections]:
    """Return the resident memory for each connection that bought once and stays open.

    `note` is told why the sizes that could not be opened are left out. The engine must be a fresh one: memory
    that it used and freed hides what new connections take. Raises BenchError.
    """
    await engine.open_sale(0)
    await engine.measure(Outcome.SOLD_OUT, 1, 1)
    found = []
    before = engine.front_door_rss_mib()
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    opened = 0
    with ExitStack() as connections:
        for size in sizes:
            try:
                await asyncio.to_thread(_open, connections, size - opened, engine.url)
            except OSError as error:
                note(f"{size:,} idle connections could not be opened: {error}")
                break
            opened = size
            after = engine.front_door_rss_mib()
            found.append(IdleConnections(connections=size, bytes_each=round((after - before) * 2**20 / size)))
            say(f"{size:,} idle connections: {found[-1].bytes_each:,.0f} bytes each")
    return found


def _open(connections: ExitStack, count: int, url: str) -> None:
    """Open so many connections; each buys once. Raises BenchError or OSError."""
    parts = urlsplit(url)
    for _ in range(count):
        connection = socket.create_connection((parts.hostname, parts.port or 80), timeout=10)
        connections.enter_context(connection).sendall(REQUEST)
        if not connection.recv(4096).startswith(b"HTTP/1.1 429 "):
            raise BenchError("a purchase of a sold-out sale was not answered with 429")
