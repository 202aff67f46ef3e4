"""The front door's stage: serves HTTP on a listening socket until it is told to stop."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web

from engine.gate.gate import Gate
from engine.http.app import LEAVING, LEDGER_LOOKS, FrontDoor
from engine.http.listener import listen
from engine.ledger.ledger import Ledger
from engine.settings import Settings
from engine.stages.lifecycle import running

LEDGER_CONNECTIONS: Final = LEDGER_LOOKS + 2
"""Those who look leave two for those who operate."""


async def run_front_door(
    settings: Settings,
    listeners: Sequence[socket.socket],
    retiring: asyncio.Event,
    stop: asyncio.Event,
    ready: Callable[[], None],
    siblings: Sequence[socket.socket] = (),
) -> None:
    """Serve on listening sockets until `stop` is set; then answer what was asked, and close.

    Once `retiring` is set, each answer closes its connection, and readiness turns. The first socket is for
    buyers. If there is a second one, it alone is for operations. `siblings` are the sockets that other
    workers have for buyers. Raises SettingsError without the URLs of Redis and PostgreSQL.
    """
    gate = Gate(settings)
    timeout_ms = settings.look_timeout_ms
    async with await Ledger.connect(settings.postgres_url, LEDGER_CONNECTIONS, timeout_ms) as ledger:
        front_door = FrontDoor(settings, gate, ledger, retiring)
        apps = [front_door.make_app(operations=len(listeners) == 1), front_door.make_app(buyers=False)]
        try:
            async with AsyncExitStack() as listening:
                for app, listener, others in zip(apps, listeners, (siblings, ()), strict=False):
                    runner = web.AppRunner(app, shutdown_timeout=settings.drain_s)
                    timeouts_s = settings.keepalive_s, settings.client_timeout_ms / 1000
                    await listening.enter_async_context(listen(runner, gate, listener, *timeouts_s, others))
                leaving = _take_leave(retiring, [app[LEAVING] for app in apps])
                async with running(front_door.readiness.watch(), leaving):
                    ready()
                    await stop.wait()
        finally:
            await gate.close()


async def _take_leave(retiring: asyncio.Event, leaving: Iterable[asyncio.Event]) -> None:
    await retiring.wait()
    for event in leaving:
        event.set()
