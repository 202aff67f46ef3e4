"""The proxy that does the network faults: it stands between the engine and its services.

It is a process of its own, so that its work and the run's do not delay each other. Its parent sends a Job and
then Changes on standard input, each as a line of JSON. It answers each with a line on standard output, the
first of which names its ports. It ends with its standard input: then its parent is gone.
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
from urllib.parse import SplitResult, urlsplit

import msgspec
import uvloop

from engine.local.process import free_port
from engine.stages.lifecycle import cancel
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


class Job(msgspec.Struct, frozen=True):
    """Host and port of the services to stand before, by name. `seed` decides which answers are dropped."""

    services: dict[str, tuple[str, int]]
    seed: int


class Change(msgspec.Struct, frozen=True):
    """The fault that the way to a service has from now on, or none."""

    on: str
    fault: Fault | None


class Proxy:
    """The proxy's process, seen from its parent."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._stdin = cast(asyncio.StreamWriter, process.stdin)
        self._stdout = cast(asyncio.StreamReader, process.stdout)
        self._talking = asyncio.Lock()

    async def set_fault(self, on: str, fault: Fault | None) -> None:
        """Give the way to a service this fault, or end the one that it has. Raises FaultError."""
        await self.tell(Change(on, fault))

    async def tell(self, order: Job | Change) -> bytes:
        """Send a line and return the answer. Raises FaultError if there is none."""
        async with self._talking:
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(ANSWER_S):
                    self._stdin.write(msgspec.json.encode(order) + b"\n")
                    await self._stdin.drain()
                    if answer := await self._stdout.readline():
                        return answer
        raise FaultError("the proxy between the engine and its services does not answer")


@asynccontextmanager
async def start_proxy(
    services: Services, names: Iterable[str], seed: int = 0
) -> AsyncIterator[tuple[Proxy, Services]]:
    """Start a proxy before the named services, and yield it with the services as seen through it.

    Raises FaultError.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "simulation.faults.proxy",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        urls = {name: urlsplit(getattr(services, _URLS[name])) for name in names}
        places = {name: (url.hostname or "", url.port or 0) for name, url in urls.items()}
        proxy = Proxy(process)
        ports = msgspec.json.decode(await proxy.tell(Job(places, seed)), type=dict[str, int])
        seen = {_URLS[name]: _at(url, ports[name]) for name, url in urls.items()}
        yield proxy, replace(services, **seen)  # type: ignore[arg-type]
    finally:
        cast(asyncio.StreamWriter, process.stdin).close()
        await process.communicate()


def _at(url: SplitResult, port: int) -> str:
    """Return the URL with the proxy's port in place of the service's address."""
    user, sign, _ = url.netloc.rpartition("@")
    return url._replace(netloc=f"{user}{sign}127.0.0.1:{port}").geturl()


class Way:
    """The way to one service."""

    def __init__(self, host: str, port: int, seed: str) -> None:
        self.port = free_port()
        self._target = (host, port)
        self._fault: Fault | None = None
        self._random = random.Random(seed)
        self._flows = asyncio.Event()
        self._flows.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    async def listen(self) -> None:
        """Take connections, on the same port each time."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def set_fault(self, fault: Fault | None) -> None:
        """Give the way this fault, or none."""
        self._fault = fault
        if self._has("freeze"):
            self._flows.clear()
        else:
            self._flows.set()
        if self._has("cut") and self._server.is_serving():
            self._server.close()
            for writer in list(self._writers):
                _reset(writer)
        elif not self._has("cut") and not self._server.is_serving():
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
        if data:
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
    job = msgspec.json.decode(await orders.readline(), type=Job)
    ways = {name: Way(*place, seed=f"{job.seed} {name}") for name, place in job.services.items()}
    for way in ways.values():
        await way.listen()
    _say(msgspec.json.encode({name: way.port for name, way in ways.items()}))
    while line := await orders.readline():
        change = msgspec.json.decode(line, type=Change)
        await ways[change.on].set_fault(change.fault)
        _say(b"done")


def _say(line: bytes) -> None:
    sys.stdout.buffer.write(line + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(_obey())
