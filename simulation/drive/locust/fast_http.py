"""Locust's own client, FastHttpSession, in the place of the driver's connections: a second opinion on both.

Schedule, timeouts and outcomes stay those of OpenLoop; how bytes are sent, read and timed is Locust's. Each
connection is a session in a greenlet of its own. A request counts as sent when its greenlet is woken, so that
what the client takes before it writes is service time.
"""

import asyncio
import time
from typing import Any, Final

import gevent
from gevent.queue import Queue
from locust.contrib.fasthttp import FastHttpSession

from simulation.drive.locust.green_loop import GreenLoop
from simulation.drive.open_loop import Connection, Door
from simulation.drive.response import Response
from simulation.drive.schedule import IDLE, NEVER, REFUSED, RESET, TIMEOUT
from simulation.model.history import KINDS

SET_BY_CLIENT: Final = ("host", "content-length")
"""Headers that the client writes itself."""


class FastTransport(asyncio.Transport):
    """Hands requests to the greenlet of a session."""

    def __init__(self, greenlet: Any) -> None:
        super().__init__()
        self.waiting: Queue[bytes] = Queue()
        self._greenlet = greenlet

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Wake the greenlet."""
        self.waiting.put(bytes(data))

    def abort(self) -> None:
        """End the greenlet, and its session with it."""
        self._greenlet.kill(block=False)


class FastHttpLoop(GreenLoop):
    """A GreenLoop whose requests go through Locust's client."""

    fire: Any
    """Locust's event of requests: the client reports to it."""

    def _live(self, door: Door) -> None:
        """Send what the loop gives, one request after the other, until the connection is dropped."""
        greenlet = gevent.getcurrent()
        door.connecting.discard(greenlet)
        scheme = "https" if door.tls else "http"
        timeout_s = self.timeout_ns / 1e9
        session = FastHttpSession(
            f"{scheme}://{door.address.authority}",
            self.fire,
            None,
            insecure=False,
            ssl_context_factory=lambda: door.tls,
            max_retries=0,
            concurrency=1,
            connection_timeout=timeout_s,
            network_timeout=timeout_s,
        )
        connection, transport = Connection(self, door), FastTransport(greenlet)
        try:
            connection.connection_made(transport)
            while connection.is_open:
                self._carry_one(session, connection, transport.waiting.get())
        finally:
            door.all.discard(connection)

    def _carry_one(self, session: Any, connection: Connection, request: bytes) -> None:
        op = connection.op
        head, _, body = request.partition(b"\r\n\r\n")
        line, *lines = head.decode().split("\r\n")
        method, path, _ = line.split(" ")
        headers = dict(each.split(": ", 1) for each in lines)
        response = session.request(
            method,
            path,
            name=KINDS[self.kind[op]],
            data=body or None,
            headers={name: value for name, value in headers.items() if name.lower() not in SET_BY_CLIENT},
            allow_redirects=False,
        )
        now = time.monotonic_ns() - self.t0_ns
        if connection.op != op:
            return
        if response.status_code:
            content = bytes(response.content or b"")
            connection.op = IDLE
            head = b""
            if self.keeps_heads:
                head = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items()).encode()
            self.end(op, Response(response.status_code, content, len(content), True, head), now)
            if self.connection_per_request:
                connection.drop(RESET)
            else:
                self.release(connection, now)
        elif isinstance(response.error, ConnectionRefusedError):
            self.sent_ns[op], self.done_ns[op] = NEVER, now
            connection.drop(REFUSED)
        else:
            connection.drop(TIMEOUT if isinstance(response.error, TimeoutError) else RESET)
