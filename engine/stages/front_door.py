"""The front door's stage: serves HTTP on a listening socket until it is told to stop."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from engine.gate.gate import Gate
from engine.http.app import LAST_WORDS_S, LEAVING, LINGER_S, FrontDoor
from engine.http.fast_path import FastPath, Heads
from engine.ledger.ledger import Ledger
from engine.settings import Settings


async def run_front_door(
    settings: Settings, listener: socket.socket, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Serve on a listening socket until `stop` is set; then answer the requests under way and close.

    Raises LedgerUnavailable if the settings hold no ledger that can ever be reached.
    """
    if settings.postgres_url is None:
        raise ValueError("the front door needs postgres_url")
    gate = Gate(settings)
    ledger = await Ledger.connect(settings.postgres_url)
    runner = web.AppRunner(FrontDoor(settings, gate, ledger).make_app(), shutdown_timeout=settings.drain_s)
    try:
        async with listen(runner, gate, listener, settings.keepalive_s):
            ready()
            await stop.wait()
    finally:
        await gate.close()
        await ledger.close()


@asynccontextmanager
async def listen(
    runner: web.AppRunner, gate: Gate, listener: socket.socket, keepalive_s: float
) -> AsyncIterator[None]:
    """Accept connections, each with a fast path, until the context ends; then answer what is under way.

    A connection that has not sent a whole request head for `keepalive_s` is closed, and so is one whose
    client has not read its answers for that long. At the end, each answer tells its client to connect anew.
    """
    await runner.setup()
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Accepted sockets inherit it. It also bounds data that waits in the kernel or after a close.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(keepalive_s * 1000))
    loop = asyncio.get_running_loop()
    heads: Heads = {}
    leaving = runner.app[LEAVING]

    def connect() -> FastPath:
        return FastPath(
            runner.server,
            loop=loop,
            gate=gate,
            heads=heads,
            leaving=leaving,
            access_log=None,
            keepalive_timeout=keepalive_s,
            lingering_time=LINGER_S,
        )

    server = await loop.create_server(connect, sock=listener, backlog=65_535)
    try:
        yield
    finally:
        server.close()
        leaving.set()
        # A client that connected a moment ago has not sent its request yet.
        await asyncio.sleep(LAST_WORDS_S)
        await runner.cleanup()
