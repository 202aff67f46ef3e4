"""The front door's stage: serves HTTP on a listening socket until it is told to stop."""

import asyncio
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Final

from aiohttp import web

from engine.gate.gate import Gate
from engine.http.app import LEAVING, FrontDoor
from engine.http.listener import listen
from engine.http.looking import Looking
from engine.ledger.ledger import Ledger
from engine.settings import Settings
from engine.stages.lifecycle import running

_OPERATORS: Final = 2
LEDGER_CONNECTIONS: Final = _OPERATORS + 1
"""One is for the looks, which share it."""


async def run_front_door(
    settings: Settings,
    listeners: Sequence[socket.socket],
    retiring: asyncio.Event,
    stop: asyncio.Event,
    ready: Callable[[], None],
    siblings: Sequence[socket.socket] = (),
) -> None:
    """Serve on sockets until `stop` is set; then answer what was asked, and close.

    Once `retiring` is set, each answer closes its connection, and readiness turns. The first socket is for
    buyers. If there is a second one, it alone is for operations. `siblings` are the sockets that other
    workers have for buyers. Raises SettingsError without the URLs of Redis and PostgreSQL.
    """
    gate = Gate(settings)
    timeout_ms = settings.look_timeout_ms
    async with (
        await Ledger.connect(settings.postgres_url, _OPERATORS, timeout_ms) as ledger,
        await Ledger.connect(settings.postgres_url, 1, timeout_ms, beside=ledger) as looked_at,
    ):
        looking = Looking(settings, gate.reads, looked_at)
        front_door = FrontDoor(settings, gate, ledger, looking, retiring)
        apps = [front_door.make_app(operations=len(listeners) == 1), front_door.make_app(buyers=False)]
        try:
            async with AsyncExitStack() as listening:
                for app, listener, for_buyers in zip(apps, listeners, (True, False), strict=False):
                    runner = web.AppRunner(app, shutdown_timeout=settings.drain_s)
                    timeouts_s = settings.keepalive_s, settings.client_timeout_ms / 1000
                    await listening.enter_async_context(
                        listen(
                            runner,
                            gate,
                            looking,
                            listener,
                            *timeouts_s,
                            siblings if for_buyers else (),
                            for_buyers,
                        )
                    )
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
