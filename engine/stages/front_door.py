"""The front door's stage: serves HTTP on a listening socket until it is told to stop."""

import asyncio
import socket
from collections.abc import Callable

from aiohttp import web

from engine.gate.gate import Gate
from engine.http.app import LEDGER_LOOKS, FrontDoor
from engine.http.listener import listen
from engine.ledger.ledger import Ledger
from engine.settings import Settings


async def run_front_door(
    settings: Settings, listener: socket.socket, stop: asyncio.Event, ready: Callable[[], None]
) -> None:
    """Serve on a listening socket until `stop` is set; then answer what was asked, and close.

    Raises SettingsError without the URLs of Redis and PostgreSQL.
    """
    gate = Gate(settings)
    # Those who look leave connections for those who operate.
    connections, timeout_ms = LEDGER_LOOKS + 2, settings.look_timeout_ms
    async with await Ledger.connect(settings.postgres_url, connections, timeout_ms) as ledger:
        app = FrontDoor(settings, gate, ledger).make_app()
        runner = web.AppRunner(app, shutdown_timeout=settings.drain_s)
        try:
            async with listen(runner, gate, listener, settings.keepalive_s):
                ready()
                await stop.wait()
        finally:
            await gate.close()
