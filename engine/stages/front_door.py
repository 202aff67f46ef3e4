"""The front door's stage: serves HTTP on a listening socket until it is told to stop."""

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web

from engine.gate.gate import Gate
from engine.http.app import FrontDoor
from engine.http.listener import listen
from engine.ledger.ledger import Ledger
from engine.settings import Settings


async def run_front_door(
    settings: Settings, listener: socket.socket, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Serve on a listening socket until `stop` is set; then answer what was asked, and close.

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
