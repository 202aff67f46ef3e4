"""The open loop: sends every request at its intended start and waits for no response before the next.

A request that is late goes out at once, in order, and keeps its intended start, so that a server that stalls
is charged for every request that it kept waiting ("coordinated omission": Tene, wrk2). A pacer wakes for the
next intended start and sends all that is due.

    not sent            refused: the server refused the connection that was opened for it
                        never sent: it waited for the whole timeout, or this machine opened no connection
    sent, no response   timeout, reset, or garbage, bytes that are no HTTP: its outcome is unknown
"""

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from simulation.drive.pacer import IS_EXACT, pace
from simulation.drive.response import parse_response
from simulation.drive.schedule import (
    GARBAGE,
    IDLE,
    NEVER_SENT,
    REFUSED,
    RESET,
    TIMEOUT,
    Polls,
    Schedule,
)
from simulation.errors import BadResponse
from simulation.model.address import Address, Tls
from simulation.scenario.patience import Patience
from simulation.scenario.schema import DriverOptions

STEP_NS = 50_000
"""Shortest time between two beats: requests that are due so soon after each other go out together."""
LOOK_NS = 1_000_000
"""Longest time between two beats while requests wait for a connection, or clients may decide to retry: the
shortest pause before a retry."""
SWEEP_NS = 50_000_000
"""How often timeouts are looked for: a request may get so much more."""
WARM = 256
"""Connections that are opened before the first request is due: opening one costs both sides more than a
request does, and a load that starts at its full rate would begin with nothing else."""


class Door:
    """A front door, and the connections to it."""

    def __init__(self, number: int, address: Address) -> None:
        self.number = number
        self.address = address
        self.tls = make_context(address.tls) if address.tls else None
        self.tls_name = address.tls.name if address.tls else None
        self.free: list[Connection] = []
        """Idle connections; the last one used is used first, so that few stay warm. May hold closed ones."""
        self.all: set[Connection] = set()
        self.connecting: set[Any] = set()
        """Attempts to connect that are under way."""


class OpenLoop(Schedule):
    """Sends the requests of a schedule to front doors, each over an idle connection or a new one."""

    def __init__(
        self,
        requests: Sequence[bytes],
        intended_ns: Sequence[int],
        addresses: Sequence[Address],
        options: DriverOptions,
        patience: Patience | None = None,
        pause_ns: Sequence[int] = (),
        looks: Mapping[int, int] = MappingProxyType({}),
        polls: Polls | None = None,
        encode_again: Callable[[int, int], bytes] | None = None,
    ) -> None:
        contract, count = addresses[0].contract, len(addresses)
        super().__init__(
            requests, intended_ns, patience, pause_ns, looks, polls, contract, count, encode_again
        )
        self.doors = [Door(number, address) for number, address in enumerate(addresses)]
        self.connections = max(options.connections // count, 1)
        """Most connections to one front door."""
        self.connection_per_request = options.connection_per_request
        self.timeout_ns = options.timeout_ms * 1_000_000
        self._swept_ns = 0

    async def run(self, t0_ns: int, exact: bool = IS_EXACT) -> None:
        """Send everything from `t0_ns` (time.monotonic_ns) on; return when every request has ended.

        `exact` is that of `pace`.
        """
        self.begin(t0_ns)
        try:
            await pace(self.beat, exact)
        finally:
            connecting = [task for door in self.doors for task in door.connecting]
            for task in connecting:
                task.cancel()
            await asyncio.gather(*connecting, return_exceptions=True)
            for connection in [each for door in self.doors for each in door.all]:
                connection.transport.abort()
            await asyncio.sleep(0)  # an aborted connection is closed in the next turn of the event loop

    def begin(self, t0_ns: int) -> None:
        """Set the run's start and open the first connections."""
        self.t0_ns = t0_ns
        if not self.connection_per_request:
            for door in self.doors:
                self._open(door, min(WARM // len(self.doors), self.connections))

    def beat(self) -> int | None:
        """Send what is due and end what has waited too long; return when the next beat is due, on
        time.monotonic_ns(), or None when every request has ended."""
        now = time.monotonic_ns() - self.t0_ns
        waiting = self.send_due(now)
        if now - self._swept_ns >= SWEEP_NS:
            self._sweep(now)
        if self.is_over:
            return None
        until = now + (LOOK_NS if waiting or self.grows else SWEEP_NS)
        return self.t0_ns + max(min(until, self.next_start(now)), now + STEP_NS)

    def send_due(self, now: int) -> int:
        """Send what is due by `now` on the connections there are, and open some for what remains; return how
        many requests wait."""
        self.find_due(now)
        waiting = 0
        for door, due in zip(self.doors, self.due, strict=True):
            free = door.free
            while free and due:
                connection = free.pop()
                if connection.is_open:
                    connection.send(due.popleft())
            connecting = len(door.connecting)
            self._open(door, min(len(due) - connecting, self.connections - len(door.all) - connecting))
            waiting += len(due)
        return waiting

    def release(self, connection: "Connection", now: int) -> None:
        """Let an idle connection carry the next request at once if one is due."""
        op = self.take(connection.door.number, now)
        if op == IDLE:
            connection.door.free.append(connection)
        else:
            connection.send(op)

    def refuse(self, door: Door, error: OSError) -> None:
        """End the oldest request that waits for a front door, since a connection could not be opened.

        An attempt to connect so costs a request, as it does when every request is a client of its own, and
        a server that is down is not asked without end. After a timeout, the sweep ends those that waited.
        """
        if isinstance(error, TimeoutError):
            return
        now = time.monotonic_ns() - self.t0_ns
        if (op := self.take(door.number, now)) != IDLE:
            refused = isinstance(error, ConnectionError)
            if refused:
                self.done_ns[op] = now
            self.lose(op, REFUSED if refused else NEVER_SENT)

    def _open(self, door: Door, count: int) -> None:
        for _ in range(count):
            task = asyncio.get_running_loop().create_task(self._connect(door))
            door.connecting.add(task)
            task.add_done_callback(door.connecting.discard)

    async def _connect(self, door: Door) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout_ns / 1e9):
                await loop.create_connection(
                    lambda: Connection(self, door),
                    door.address.host,
                    door.address.port,
                    ssl=door.tls,
                    server_hostname=door.tls_name,
                )
        except OSError as error:
            self.refuse(door, error)

    def _sweep(self, now: int) -> None:
        """End what has waited longer than the timeout, for its response or for a connection."""
        self._swept_ns = now
        oldest = now - self.timeout_ns
        for door in self.doors:
            for connection in list(door.all):
                if connection.op != IDLE and self.sent_ns[connection.op] < oldest:
                    connection.drop(TIMEOUT)
            while (op := self.take(door.number, oldest - 1)) != IDLE:
                self.lose(op, NEVER_SENT)


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    __slots__ = ("_rest", "door", "is_open", "loop", "op", "transport")

    transport: asyncio.Transport

    def __init__(self, loop: OpenLoop, door: Door) -> None:
        self.loop = loop
        self.door = door
        self.op = IDLE
        self.is_open = False
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Carry the request that waits for a connection."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it
        self.is_open = True
        self.door.all.add(self)
        self.loop.release(self, time.monotonic_ns() - self.loop.t0_ns)

    def send(self, op: int) -> None:
        """Send request `op`; the connection must be idle, and open as far as it knows."""
        loop = self.loop
        self.op = op
        loop.sent_ns[op] = time.monotonic_ns() - loop.t0_ns
        try:
            self.transport.write(loop.requests[op])
        except RuntimeError:
            # uvloop has closed it and is about to say so: `connection_lost` ends the request.
            self.is_open = False

    def data_received(self, data: bytes) -> None:
        """Take bytes of a response, however they are cut."""
        if self._rest:
            data = self._rest + data
        op = self.op
        if op == IDLE:
            self.drop(GARBAGE)  # a response without a request: the server says why it closes
            return
        try:
            response = parse_response(data)
        except BadResponse:
            self.drop(GARBAGE)
            return
        if response is None:
            self._rest = data
            return
        loop = self.loop
        now = time.monotonic_ns() - loop.t0_ns
        loop.end(op, response, now)
        self.op = IDLE
        self._rest = b""
        if response.keep_alive and response.size == len(data) and not loop.connection_per_request:
            loop.release(self, now)
        else:
            self.drop(RESET)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request: a response that ends with its connection is complete now, any other is lost."""
        if self.op != IDLE and exc is None and self._rest:
            with contextlib.suppress(BadResponse):
                if response := parse_response(self._rest, closed=True):
                    self.loop.end(self.op, response, time.monotonic_ns() - self.loop.t0_ns)
                    self.op = IDLE
        self._forget(GARBAGE if self._rest and not self._rest.startswith(b"HTTP/") else RESET)
        self.door.all.discard(self)

    def drop(self, end: int) -> None:
        """Close at once; the request that it carries, if any, is lost; `end` is why, a place in ENDS."""
        self._forget(end)
        self.transport.abort()

    def _forget(self, end: int) -> None:
        self.is_open = False
        self._rest = b""
        if self.op != IDLE:
            op, self.op = self.op, IDLE
            self.loop.lose(op, end)


def make_context(tls: Tls) -> ssl.SSLContext:
    """Return what encrypts connections. Raises OSError where the file of certificates is of no use."""
    return ssl.create_default_context(cafile=tls.ca)
