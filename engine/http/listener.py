"""The front door's listening sockets, and the connections that it accepts."""

import asyncio
import ctypes
import logging
import math
import os
import resource
import select
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from time import monotonic
from typing import Final, NamedTuple, cast

from aiohttp import web

from engine.errors import SettingsError
from engine.gate.gate import Gate
from engine.http.app import LEAVING
from engine.http.fast_path import Connection, Door
from engine.http.looking import Looking
from engine.http.ordinary import Ordinary
from engine.http.requests import is_loopback
from engine.settings import PREFIX, Settings
from engine.tasks import cancel

log = logging.getLogger(__name__)

_BACKLOG: Final = 65_535
"""A crowd connects within one second; the kernel cuts this to net.core.somaxconn."""
_CLOSED_AT_ONCE: Final = 8
"""Connections, in a turn of the event loop."""
_LOOKED_AT_AT_ONCE: Final = 1_000
_AGES: Final = 4
"""How often a connection is found idle before it is closed the next time."""
_HELP_S: Final = 0.25
"""A connection that waits as long for the worker of its socket is accepted by another."""
_OTHERS: Final = 16
"""Connections to ledger and bus, and files that are opened for a moment."""
_HANDSHAKE_S: Final = 0.25
"""For so long, connections that have begun are waited for before their port closes."""
_ATTACH_FILTER: Final = 26
"""SO_ATTACH_FILTER of Linux, socket(7)."""
_NO_SYN: Final = b"".join(
    # bpf(4): code, two jumps, operand. Byte 13 of TCP's header has the flags (RFC 9293, 3.1), SYN is 2.
    struct.pack("HBBI", *step)
    for step in ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
)
"""A filter of packets that drops what asks for a connection, and nothing else."""
_PAUSES, _PAUSE_S = 10, 0.5
"""A client that asks nothing for so long is idle; for how often clients are waited for."""


class Listeners(NamedTuple):
    """The sockets of all front-door workers.

    They belong to the server, so that a connection that waits for a worker outlives the worker that died.
    """

    buyers: list[socket.socket]
    """One for each worker: the kernel spreads connections evenly over them."""
    operations: list[socket.socket]
    """One for all workers, if it is set."""

    def close(self) -> None:
        """Close all of them."""
        for listener in (*self.buyers, *self.operations):
            listener.close()


def bind(settings: Settings) -> Listeners:
    """Return the sockets of all workers: for buyers and, if set, for operations.

    Each listens once a worker accepts from it; until then connections are refused, and nobody waits for a
    server that is not ready. Raises SettingsError if an address is taken, or not loopback while there is no
    admin token.
    """
    first = _bind_to(settings, settings.host, settings.port, "HOST")
    listeners = Listeners([first], [])
    try:
        if settings.workers > 1:
            # Only now, so that the first one found out whether another server has the address.
            first.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            port = first.getsockname()[1]
            for _ in range(1, settings.workers):
                listeners.buyers.append(_bind_to(settings, settings.host, port, "HOST", reuse_port=True))
        if settings.operations_bind is not None:
            host, _, port = settings.operations_bind.rpartition(":")
            listeners.operations.append(_bind_to(settings, host, int(port), "OPERATIONS_BIND"))
    except SettingsError:
        listeners.close()
        raise
    return listeners


def _bind_to(
    settings: Settings, host: str, port: int, setting: str, reuse_port: bool = False
) -> socket.socket:
    host = host.strip("[]")  # as a URL has it
    if settings.admin_token is None and not is_loopback(host):
        raise SettingsError(
            f"{PREFIX}{setting} is {host}, which others can reach: set {PREFIX}ADMIN_TOKEN, that opens sales"
        )
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        host.encode("idna")
        # Connections of a server before may not be forgotten yet.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if listener.family == socket.AF_INET6 and socket.has_dualstack_ipv6():
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind((host, port))
    except (OSError, OverflowError, UnicodeError) as error:
        listener.close()
        raise _say_taken((host, port), error) from None
    return listener


def _say_taken(place: tuple[str, int], error: Exception) -> SettingsError:
    host, port = place
    return SettingsError(f"can't listen on {host}:{port}: {getattr(error, 'strerror', None) or error}")


@asynccontextmanager
async def listen(
    runner: web.AppRunner,
    gate: Gate,
    looking: Looking,
    listener: socket.socket,
    keepalive_s: float,
    client_timeout_s: float,
    siblings: Sequence[socket.socket] = (),
    for_buyers: bool = True,
) -> AsyncIterator[Door]:
    """Accept connections, each with a fast path, until the block ends; then answer what is under way.

    A connection is closed if it has begun no request for `keepalive_s`, if a request that has begun has not
    come whole after `client_timeout_s`, or if its client has not read its answers for `keepalive_s`. At the
    end, each answer tells its client to connect anew. `siblings` are the sockets of other workers. Unless it
    is `for_buyers`, nothing takes the fast path.
    """
    await runner.setup()
    loop = asyncio.get_running_loop()

    def make_handler(go_on: Callable[[], None]) -> Ordinary:
        return Ordinary(cast(web.Server, runner.server), loop, go_on)

    door = Door(gate, looking, runner.app[LEAVING], make_handler, for_buyers)
    door.room = _find_room(gate.connections)

    def connect() -> Connection:
        return Connection(door)

    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Accepted sockets inherit it. It holds for what waits in the kernel or after a close, too.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(keepalive_s * 1000))
    try:
        accepting = await loop.create_server(connect, sock=listener, backlog=_BACKLOG)
    except OSError as error:
        # Another server that had the address, too, was ready sooner.
        raise _say_taken(listener.getsockname()[:2], error) from None
    # Connections that nobody has accepted yet are reset when the last descriptor of their socket is closed.
    last = listener.dup()
    helping = asyncio.create_task(_help(siblings, connect), name="accept for siblings")
    closing = [
        asyncio.create_task(_close_idle(door, keepalive_s), name="close idle connections"),
        asyncio.create_task(_close_unfinished(door, client_timeout_s), name="close unfinished requests"),
    ]
    try:
        yield door
    finally:
        door.leaving.set()
        await cancel(helping)
        accepting.close()
        # Whoever closes the last descriptor of a socket resets what waits there.
        for waiting in (last, *siblings):
            with waiting:
                await _accept_waiting(waiting, connect)
        await _let_go(door)
        await cancel(*closing)
        await runner.cleanup()
        # Ordinary requests may have taken long; purchases have come meanwhile.
        await _await_answers(door)
        for connection in list(door.connections):
            connection.close()


async def turn_away(listeners: Sequence[socket.socket]) -> None:
    """Let no further connection begin, and wait for those that have begun, where the system can do so.

    As a port closes, the kernel resets a connection of which it has told the client and not heard back. A
    client that begins one now asks again after a second, and is refused.
    """
    if sys.platform != "linux" or not listeners:
        return
    code = ctypes.create_string_buffer(_NO_SYN)
    program = struct.pack("HP", len(_NO_SYN) // 8, ctypes.addressof(code))
    with suppress(OSError):
        for listener in listeners:
            listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, program)
        await asyncio.sleep(_HANDSHAKE_S)


def _find_room(gate: int) -> float:
    """Return how many clients may be connected: the gate and others need open files, too."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    free = limit - len(os.listdir("/dev/fd"))  # noqa: PTH208
    return max(free - gate - _OTHERS, free // 2)


async def _close_idle(door: Door, keepalive_s: float) -> None:
    """Close the connections that have begun no request for so long, or for up to a quarter longer."""
    while True:
        await asyncio.sleep(keepalive_s / _AGES)
        if len(door.connections) >= door.room:
            log.warning("%d clients are connected, as many as the limit of open files allows", door.room)
        for number, connection in enumerate(list(door.connections)):
            if not connection.is_quiet:
                connection.age = 0
            elif connection.age >= _AGES:
                connection.close()
            else:
                connection.age += 1
            if number % _LOOKED_AT_AT_ONCE == 0:
                await asyncio.sleep(0)


async def _close_unfinished(door: Door, client_timeout_s: float) -> None:
    """Close the connections whose request has begun and has not come whole for so long."""
    while True:
        await asyncio.sleep(client_timeout_s / 10)
        late = monotonic() - client_timeout_s
        while door.unfinished and next(iter(door.unfinished.values())) <= late:
            connection = next(iter(door.unfinished))
            del door.unfinished[connection]
            connection.drop_unfinished()


async def _let_go(door: Door) -> None:
    """Wait while clients use up their connections, each of which ends with its next answer; then close those
    that are idle, and wait for the requests that are under way.

    A connection that is closed as its client sends a request resets it. And to close all of a crowd's at once
    takes so long that requests arrive which nobody reads.
    """
    for _ in range(_PAUSES):
        before = len(door.connections)
        await asyncio.sleep(_PAUSE_S)
        if len(door.connections) in (0, before):
            break
    for number, connection in enumerate(list(door.connections)):
        connection.close_if_idle()
        if number % _CLOSED_AT_ONCE == 0:
            await asyncio.sleep(0)
    await _await_answers(door)


async def _await_answers(door: Door) -> None:
    while any(connection.is_under_way for connection in door.connections):  # noqa: ASYNC110 (the gate answers)
        await asyncio.sleep(_PAUSE_S / 10)


async def _help(siblings: Sequence[socket.socket], connect: Callable[[], Connection]) -> None:
    """Accept the connections that wait long for the workers of other sockets, which are dead or stuck."""
    poll = select.poll()
    for sibling in siblings:
        poll.register(sibling, select.POLLIN)
    before: set[int] = set()
    while siblings:
        await asyncio.sleep(_HELP_S)
        waiting = {descriptor for descriptor, _ in poll.poll(0)}
        for sibling in siblings:
            if sibling.fileno() in before & waiting:
                await _accept_waiting(sibling, connect)
        before = waiting


async def _accept_waiting(listener: socket.socket, connect: Callable[[], Connection]) -> None:
    """Accept the connections that wait for a socket."""
    listener.setblocking(False)
    with suppress(OSError):
        while True:
            connection, _ = listener.accept()
            await asyncio.get_running_loop().connect_accepted_socket(connect, connection)
