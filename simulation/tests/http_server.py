"""A small real HTTP server for the driver's tests: what it does with a request is up to the test."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Request:
    number: int
    connection: int
    line: str
    headers: dict[str, str]
    body: bytes
    writer: asyncio.StreamWriter

    @property
    def user(self) -> int:
        user: int = json.loads(self.body)["userId"]
        return user

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def reset(self) -> None:
        self.writer.transport.abort()


Reaction = Callable[[Request], Awaitable[None]]


@dataclass
class HttpServer:
    """Counts the requests that came, and how many it held at once."""

    react: Reaction
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    held: int = 0
    most_held: int = 0
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def users(self) -> list[int]:
        return [request.user for request in self.requests]

    async def stop(self) -> None:
        """Listen no more and drop every connection."""
        if self.server:
            self.server.close()
            self.server = None
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self.tasks.add(task)
        self.connections += 1
        connection = self.connections
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *lines = head.strip().split("\r\n")
                headers = {name.lower(): value for name, value in (each.split(": ", 1) for each in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                request = Request(len(self.requests), connection, line, headers, body, writer)
                self.requests.append(request)
                self.held += 1
                self.most_held = max(self.most_held, self.held)
                try:
                    await self.react(request)
                finally:
                    self.held -= 1
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self.tasks.discard(task)


@asynccontextmanager
async def http_server(react: Reaction, port: int = 0) -> AsyncIterator[HttpServer]:
    """Listen on loopback while the block runs; port 0 is a free one."""
    served = HttpServer(react)
    served.server = await asyncio.start_server(served.serve, "127.0.0.1", port, backlog=1_000)
    served.port = served.server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        await served.stop()


def answer(status: int, body: bytes, *headers: str) -> bytes:
    """Return a response with its length."""
    lines = [f"HTTP/1.1 {status} Something", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


ACCEPTED = answer(200, b'{"status":"ACCEPTED","orderId":"order-1"}', "Content-Type: application/json")
SOLD_OUT = answer(429, b'{"status":"SOLD_OUT"}')
NOT_STARTED = answer(403, b'{"code":"NOT_STARTED"}')
