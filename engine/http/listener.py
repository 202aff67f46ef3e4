"""The front door's listening socket, and the connections that it accepts."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, cast

from aiohttp import web

from engine.errors import SettingsError
from engine.gate.gate import Gate
from engine.http.app import LEAVING
from engine.http.fast_path import FastPath
from engine.http.heads import Heads
from engine.http.requests import is_loopback
from engine.settings import PREFIX, Settings

_BACKLOG: Final = 65_535
"""A crowd connects within one second; the kernel cuts this to net.core.somaxconn."""
_CLOSED_AT_ONCE: Final = 8
"""Connections, in a turn of the event loop."""
_PAUSES, _PAUSE_S = 10, 0.5
"""A client that asks nothing for so long is idle; for how often clients are waited for."""
LINGER_S: Final = 1.0
"""How long a body that was refused may still come, so that its client gets to read why."""


def bind(settings: Settings) -> list[socket.socket]:
    """Return the listening sockets that all front-door workers share: for buyers and, if set, for operations.

    They belong to the server, so that a connection that waits for a worker outlives the worker that died.
    Raises SettingsError if an address is taken, or not loopback while there is no admin token.
    """
    listeners = [_listen_on(settings, settings.host, settings.port, "HOST")]
    if settings.operations_bind is not None:
        host, _, port = settings.operations_bind.rpartition(":")
        try:
            listeners.append(_listen_on(settings, host, int(port), "OPERATIONS_BIND"))
        except SettingsError:
            listeners[0].close()
            raise
    return listeners


def _listen_on(settings: Settings, host: str, port: int, setting: str) -> socket.socket:
    host = host.strip("[]")  # as a URL has it
    if settings.admin_token is None and not is_loopback(host):
        raise SettingsError(
            f"{PREFIX}{setting} is {host}, which others can reach: set {PREFIX}ADMIN_TOKEN, that opens sales"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server(
            (host, port),
            family=family,
            backlog=_BACKLOG,
            dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, OverflowError) as error:
        # Python adds the address once more, in brackets.
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise SettingsError(f"can't listen on {host}:{port}: {reason}") from None


@asynccontextmanager
async def listen(
    runner: web.AppRunner, gate: Gate, listener: socket.socket, keepalive_s: float, client_timeout_s: float
) -> AsyncIterator[None]:
    """Accept connections, each with a fast path, until the block ends; then answer what is under way.

    A connection is closed if it has begun no request for `keepalive_s`, if a request that has begun has not
    come whole after `client_timeout_s`, or if its client has not read its answers for `keepalive_s`. At the
    end, each answer tells its client to connect anew.
    """
    await runner.setup()
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Accepted sockets inherit it. It holds for what waits in the kernel or after a close, too.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(keepalive_s * 1000))
    loop = asyncio.get_running_loop()
    heads = Heads()
    leaving = runner.app[LEAVING]

    def connect() -> FastPath:
        return FastPath(
            runner.server,
            loop=loop,
            gate=gate,
            heads=heads,
            leaving=leaving,
            client_timeout_s=client_timeout_s,
            access_log=None,
            keepalive_timeout=keepalive_s,
            lingering_time=LINGER_S,
        )

    # Connections that nobody has accepted yet are reset when the last descriptor of their socket is closed.
    last = listener.dup()
    server = await loop.create_server(connect, sock=listener, backlog=_BACKLOG)
    try:
        yield
    finally:
        leaving.set()
        server.close()
        await _accept_rest(last, connect)
        await _let_go(runner)
        await runner.cleanup()


async def _let_go(runner: web.AppRunner) -> None:
    """Wait while clients use up their connections, each of which ends with its next answer; then close those
    that are idle.

    A connection that is closed as its client sends a request resets it. And to close all of a crowd's at once
    takes so long that requests arrive which nobody reads.
    """
    if runner.server is None:
        return
    for _ in range(_PAUSES):
        before = len(runner.server.connections)
        await asyncio.sleep(_PAUSE_S)
        if len(runner.server.connections) in (0, before):
            break
    for number, connection in enumerate(cast(list[FastPath], runner.server.connections)):
        connection.end_if_idle()
        if number % _CLOSED_AT_ONCE == 0:
            await asyncio.sleep(0)


async def _accept_rest(listener: socket.socket, connect: Callable[[], FastPath]) -> None:
    """Accept the connections that wait, and close the socket."""
    with listener, suppress(BlockingIOError):
        listener.setblocking(False)
        while True:
            connection, _ = listener.accept()
            await asyncio.get_running_loop().connect_accepted_socket(connect, connection)
