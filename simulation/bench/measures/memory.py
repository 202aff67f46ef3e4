"""Memory of the front door: over many requests, and for each idle connection."""

import asyncio
import resource
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from engine.model.purchase import Outcome
from simulation.bench.options import Say
from simulation.bench.results import IdleConnections, Memory
from simulation.bench.subjects import Engine
from simulation.errors import BenchError

CONNECTIONS: Final = 256
SPARE_FILES: Final = 200
"""Files that are open beside the connections."""
BODY: Final = b'{"userId":101,"productId":1}'
REQUEST: Final = (
    b"POST /purchase/buy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
)
TIMEOUT_S: Final = 10.0


async def watch_memory(engine: Engine, requests: int, window_s: float, say: Say) -> Memory:
    """Resident memory while at least so many purchases are answered, read after each window."""
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
    engine: Engine, sizes: Sequence[int], say: Say
) -> tuple[list[IdleConnections], list[str]]:
    """Resident memory for each connection that bought once and stays open; and notes on sizes left out.

    The engine should be a fresh one: memory that it has used and freed hides what new connections take.
    """
    await engine.open_sale(0)
    await engine.measure(Outcome.SOLD_OUT, 1, 1)
    found, notes = [], []
    before = engine.front_door_rss_mib()
    connections: list[socket.socket] = []
    try:
        for size in sizes:
            if (allowed := _allow_files(size + SPARE_FILES)) < size + SPARE_FILES:
                notes.append(f"{size:,} idle connections need more open files than the {allowed:,} allowed")
                continue
            await asyncio.to_thread(_open, connections, size, engine.url)
            after = engine.front_door_rss_mib()
            found.append(IdleConnections(connections=size, bytes_each=round((after - before) * 2**20 / size)))
            say(f"{size:,} idle connections: {found[-1].bytes_each:,.0f} bytes each")
    finally:
        for connection in connections:
            connection.close()
    return found, notes


def _allow_files(wanted: int) -> int:
    """Raises the limit of open files as far as needed and allowed; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def _open(connections: list[socket.socket], size: int, url: str) -> None:
    """Open connections until there are `size`; each buys once. Raises BenchError."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    try:
        while len(connections) < size:
            connections.append(socket.create_connection((host, port or 80), timeout=TIMEOUT_S))
            connections[-1].sendall(REQUEST)
            if not connections[-1].recv(4096).startswith(b"HTTP/1.1 429 "):
                raise BenchError("an idle connection was not answered as expected")
    except OSError as error:
        raise BenchError(f"{len(connections):,} of {size:,} connections could be opened: {error}") from None
