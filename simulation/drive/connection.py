"""A connection of the open loop: carries one request at a time."""

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, cast

from simulation.drive.answer import parse_answer
from simulation.errors import BadAnswer

if TYPE_CHECKING:
    from simulation.drive.open_loop import OpenLoop

IDLE = -1
"""In place of a request's number: there is none."""


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time."""

    __slots__ = ("_rest", "_socket", "is_open", "loop", "op", "transport")

    transport: asyncio.Transport

    def __init__(self, loop: "OpenLoop") -> None:
        self.loop = loop
        self.op = IDLE
        self.is_open = False
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open: it takes the request that waits for it."""
        self.transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass of it
        self.is_open = True
        self.loop.all.add(self)
        self.loop.release(self, time.monotonic_ns() - self.loop.t0_ns)

    def send(self, op: int) -> None:
        """Sends request `op`; the connection must be idle, and open as far as it knows."""
        loop = self.loop
        self.op = op
        loop.sent_ns[op] = time.monotonic_ns() - loop.t0_ns
        try:
            self.transport.write(loop.requests[op])
        except RuntimeError:
            # uvloop has closed it and is about to say so: `connection_lost` ends the request.
            self.is_open = False

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer, however they are cut."""
        if self._rest:
            data = self._rest + data
        op = self.op
        if op == IDLE:
            self.drop()  # nobody asked: a server that says why it closes
            return
        try:
            answer = parse_answer(data)
        except BadAnswer:
            self.drop()
            return
        if answer is None:
            self._rest = data
            return
        loop = self.loop
        now = time.monotonic_ns() - loop.t0_ns
        loop.end(op, answer, now)
        self.op = IDLE
        self._rest = b""
        if answer.keep_alive and answer.size == len(data) and not loop.connection_per_request:
            loop.release(self, now)
        else:
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is closed. An answer that ends with its connection is whole now; any other one is lost."""
        if self.op != IDLE and exc is None and self._rest:
            with contextlib.suppress(BadAnswer):
                if answer := parse_answer(self._rest, closed=True):
                    self.loop.end(self.op, answer, time.monotonic_ns() - self.loop.t0_ns)
                    self.op = IDLE
        self._forget()
        self.loop.all.discard(self)

    def drop(self) -> None:
        """Closes it at once; what it carried is lost."""
        self._forget()
        self.transport.abort()

    def _forget(self) -> None:
        self.is_open = False
        self._rest = b""
        if self.op != IDLE:
            op, self.op = self.op, IDLE
            self.loop.lose(op)
