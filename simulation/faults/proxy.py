"""The proxy that does the network faults: it stands between the engine and its services.

It is a process of its own, so that its work and the run's do not delay each other. Its arguments are the
ways (port, and host and port of the service, by name) and the seed. Its parent sends lines of JSON on its
standard input, each with the name of a way and the fault that it has from now on, or null. It answers each
with a line on standard output. It ends with its standard input: then its parent is gone.
"""

import asyncio
import contextlib
import random
import socket
import struct
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final, cast

import msgspec
import uvloop
from yarl import URL

from engine.local.ports import free_port
from engine.tasks import cancel
from simulation.errors import FaultError
from simulation.scenario.fault import Fault
from simulation.target.services import Services

ANSWER_S: Final = 30.0
CHUNK: Final = 65_536
WAITING: Final = 64
"""Chunks that may wait in one direction before the sender has to."""
PIECES_PER_S: Final = 20
"""Pieces in which a narrow way passes the bytes of one second."""
LATENCY_MS: Final = 100.0
SHARE: Final = 0.1
BYTES_PER_S: Final = 50_000
_URLS: Final = {"redis": "redis_url", "rabbitmq": "amqp_url", "postgres": "postgres_url"}
"""The field of Services for each service."""


class Proxy:
    """The proxy's process, seen from its parent."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._stdin = cast(asyncio.StreamWriter, process.stdin)
        self._stdout = cast(asyncio.StreamReader, process.stdout)
        self._talking = asyncio.Lock()

    async def set_fault(self, on: str, fault: Fault | None) -> None:
        """Give the way to a service this fault, or end the one that it has. Raises FaultError."""
        async with self._talking:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    self._stdin.write(msgspec.json.encode((on, fault)) + b"\n")
                    await self._stdin.drain()
                    if await self._stdout.readline():
                        return
        raise FaultError("the proxy between the engine and its services does not answer")


@asynccontextmanager
async def start_proxy(
    services: Services, names: Iterable[str], seed: int = 0
) -> AsyncIterator[tuple[Proxy, Services]]:
    """Start a proxy before the named services, and yield it with the services as seen through it.

    `seed` decides which answers are dropped. Raises FaultError.
    """
    urls = {name: URL(getattr(services, _URLS[name])) for name in names}
    ports = {name: free_port() for name in urls}
    places = {name: (ports[name], url.host, url.port) for name, url in urls.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulation.faults.proxy", msgspec.json.encode(places), str(seed),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        proxy = Proxy(process)
        for name in urls:
            await proxy.set_fault(name, None)  # the answer comes once it listens
        seen = {
            _URLS[name]: str(url.with_host("127.0.0.1").with_port(ports[name])) for name, url in urls.items()
        }
        yield proxy, replace(services, **seen)  # type: ignore[arg-type]
    finally:
        cast(asyncio.StreamWriter, process.stdin).close()
        await process.communicate()


class Way:
    """The way to one service."""

    def __init__(self, port: int, host: str, target_port: int, seed: str) -> None:
        self._port = port
        self._target = (host, target_port)
        self._fault: Fault | None = None
        self._random = random.Random(seed)
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        """Take connections, on the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)

    async def set_fault(self, fault: Fault | None) -> None:
        """Give the way this fault, or none."""
        self._fault = fault
        self._flows.set()
        if self._has("freeze"):
            self._flows.clear()
        if self._has("cut"):
            self._server.close()
            for writer in list(self._writers):
                _reset(writer)
        elif not self._server.is_serving():
            await self.listen()

    def _has(self, kind: str) -> bool:
        return self._fault is not None and self._fault.kind == kind

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            their_reader, their_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        ends = {writer, their_writer}
        self._writers |= ends
        tasks = [
            asyncio.create_task(self._carry(reader, their_writer, replies=False)),
            asyncio.create_task(self._carry(their_reader, writer, replies=True)),
        ]
        try:
            # One direction that has ended ends the connection: none of these protocols half-closes.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*tasks)
            self._writers -= ends
            for end in ends:
                end.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, replies: bool) -> None:
        """Carry bytes in one direction until either side closes, or an answer is dropped."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(WAITING)
        receiving = asyncio.create_task(_receive(reader, waiting))
        try:
            while True:
                arrived_s, data = await waiting.get()
                if not data:
                    return
                await self._flows.wait()
                if self._has("drop_replies") and replies and self._random.random() < self._strength(SHARE):
                    _reset(writer)
                    return
                if self._has("latency"):
                    due_s = arrived_s + self._strength(LATENCY_MS) / 1000
                    await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()))
                with contextlib.suppress(OSError):
                    await self._send(writer, data)
        finally:
            await cancel(receiving)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        while data and self._has("bandwidth"):
            size = max(1, round(self._strength(BYTES_PER_S) / PIECES_PER_S))
            writer.write(data[:size])
            await writer.drain()
            await asyncio.sleep(len(data[:size]) / self._strength(BYTES_PER_S))
            data = data[size:]
        writer.write(data)
        await writer.drain()

    def _strength(self, default: float) -> float:
        fault = self._fault
        return (fault and (fault.latency_ms or fault.share or fault.bytes_per_s)) or default


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection as a crash does: at once, and unsent bytes are lost."""
    with contextlib.suppress(OSError):
        # To linger for no time makes the kernel send RST instead of FIN.
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    writer.transport.abort()


async def _receive(reader: asyncio.StreamReader, waiting: "asyncio.Queue[tuple[float, bytes]]") -> None:
    """Queue each piece that arrives with its arrival time; an empty piece is the end."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK):
            await waiting.put((loop.time(), data))
    await waiting.put((loop.time(), b""))


async def _obey() -> None:
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    places = msgspec.json.decode(sys.argv[1], type=dict[str, tuple[int, str, int]])
    ways = {name: Way(*place, seed=f"{sys.argv[2]} {name}") for name, place in places.items()}
    for way in ways.values():
        await way.listen()
    while line := await orders.readline():
        on, fault = msgspec.json.decode(line, type=tuple[str, Fault | None])
        await ways[on].set_fault(fault)
        sys.stdout.buffer.write(b"done\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(_obey())
