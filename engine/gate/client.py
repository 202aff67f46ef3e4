"""How the engine talks to Redis: one way to connect, one way to run a script."""

import asyncio
import hashlib
import math
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, Final, cast

from hiredis import Reader, pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool, DefaultParser
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ResponseError,
)

from engine.errors import SettingsError
from engine.settings import PREFIX

Argument = str | bytes | int
Execute = Callable[..., Awaitable[Any]]
"""Runs a command, given as its words, and returns the answer."""

REFUSALS: Final = (ResponseError, BusyLoadingError, AuthenticationError)
"""Redis answered, and did not do what it was asked."""
_ELSEWHERE_TOO: Final = ("CLOSED", "NOGROUP", "BUSYGROUP")
"""Refusals that say nothing of the server; so do those of NoScriptError and OutOfMemoryError."""


def connect_redis(url: str | None, timeout_ms: int = 5_000) -> Redis:
    """Return a client that answers in bytes and connects at its first command.

    It never repeats a command by itself: a script whose answer is lost may have run, and only the caller
    knows whether it may run twice. `timeout_ms` bounds the connect and the wait for each answer, which ends
    in redis.exceptions.TimeoutError; a blocking read must ask for less. A server that refuses a command, such
    as a demoted primary, is left: the next command connects anew. Raises SettingsError without a URL.
    """
    if url is None:
        raise SettingsError(f"{PREFIX}REDIS_URL is not set")
    timeout_s = timeout_ms / 1000
    pool = ConnectionPool.from_url(
        url,
        protocol=2,
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )
    pool.connection_class = _leave_when_refused(pool.connection_class)
    return _Client.from_pool(pool)


def connect_beside(redis: Redis) -> Redis:
    """Return a client with connections of its own to the same server: both leave it once it refuses one."""
    pool = redis.connection_pool

    class Connection(pool.connection_class):  # type: ignore[misc, name-defined]
        latest_connect, latest_reconnect = time.monotonic(), -math.inf

    return _Client.from_pool(ConnectionPool(connection_class=Connection, **pool.connection_kwargs))


class _Client(Redis):
    """A client that has no open connection once it is closed, even if a cancellation interrupts that.

    The library closes each connection in a task. A task that is cancelled before its first step does nothing,
    and neither does the end of `async with` while the library counts its users.
    """

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        """Close every connection, also those in use."""
        pool = self.connection_pool
        try:
            await super().aclose(close_connection_pool)
        finally:
            for connection in (*pool._available_connections, *pool._in_use_connections):
                # This waits for nothing, and so nothing interrupts it.
                await connection.disconnect(nowait=True)


def _leave_when_refused(connection_class: Any) -> Any:
    """Return a class of connections that end at their next use once one of them was refused a command.

    Their next connect looks the server's name up again. A refusal that each server would give ends none.
    """
    refusals = 0

    class Connection(connection_class):  # type: ignore[misc]
        latest_connect, latest_reconnect = time.monotonic(), -math.inf
        has_connected = False
        connected_after: int | None = None
        """Refusals before it connected; None while it connects, when the client library tries what it may."""

        async def connect(self) -> None:
            if self.connected_after == refusals and self.is_connected:
                return
            await self.disconnect()
            self.connected_after, before = None, refusals
            await super().connect()
            self.connected_after, type(self).latest_connect = before, time.monotonic()
            if self.has_connected:
                type(self).latest_reconnect = type(self).latest_connect
            self.has_connected = True

        async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
            with _lose_closed():
                await super().send_packed_command(*arguments, **options)

        async def read_response(self, *arguments: Any, **options: Any) -> Any:
            nonlocal refusals
            try:
                with _lose_closed():
                    return await super().read_response(*arguments, **options)
            except REFUSALS as error:
                if self.connected_after is not None and _is_of_server(error):
                    refusals += 1
                raise

    return Connection


def _is_of_server(refusal: object) -> bool:
    """Return whether another server might not refuse."""
    return not (
        isinstance(refusal, (NoScriptError, OutOfMemoryError)) or str(refusal).startswith(_ELSEWHERE_TOO)
    )


@contextmanager
def _lose_closed() -> Iterator[None]:
    """Raise ConnectionError where uvloop says in words of its own that the connection has been closed."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error


def latest_connect(redis: Redis) -> float:
    """Return when a connection of the client was made last, on time.monotonic.

    The server has been in charge since then at least, unless it says otherwise.
    """
    connection_class: Any = redis.connection_pool.connection_class
    return float(connection_class.latest_connect)


def latest_reconnect(redis: Redis) -> float:
    """Return when a connection of the client took the place of a lost one last, on time.monotonic."""
    connection_class: Any = redis.connection_pool.connection_class
    return float(connection_class.latest_reconnect)


class Wire(asyncio.Protocol):
    """One connection that sends commands in one piece and reads their answers without a stream between.

    To pack and to read costs the client library several times as much. So it only connects, with all that a
    URL may ask for, and then hands its transport over. One caller at a time; nothing is sent twice.
    """

    def __init__(self, redis: Redis) -> None:
        self._connection: Any = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        self._transport: asyncio.Transport | None = None
        self._reader = Reader(replyError=DefaultParser.parse_error)
        self._answers: list[Any] = []
        self._asked = 0
        self._answered: asyncio.Future[None] | None = None
        self._refused = False

    async def connect(self) -> None:
        """Look the server's name up and connect, once. Raises RedisError."""
        try:
            await self._connection.connect()
            self._transport = self._connection._writer.transport
            self._transport.set_protocol(self)
        except BaseException:
            await self._connection.disconnect(nowait=True)
            raise

    @property
    def is_open(self) -> bool:
        """Whether it is neither lost nor was refused a command by a server that may be the wrong one."""
        return self._transport is not None and not self._refused

    async def ask(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """Return the answers to all commands; an error that Redis answers stands in its place.

        A wait that ends early closes the connection. Raises ConnectionError if that is lost.
        """
        if self._transport is None:
            raise ConnectionError("the connection is closed")
        self._answers, self._asked = [], len(commands)
        self._answered = asyncio.get_running_loop().create_future()
        try:
            with _lose_closed():
                # Its type says tuples of one word.
                self._transport.write(b"".join(map(cast(Any, pack_command), commands)))
            await self._answered
        except BaseException:
            self.close()
            raise
        return self._answers

    def close(self) -> None:
        """Disconnect at once."""
        if self._transport is not None:
            self._transport.abort()
            self._forget()

    def _forget(self) -> None:
        # The library's connection must not take its transport, which is gone, for one that was left open.
        self._connection._reader = self._connection._writer = self._transport = None

    def data_received(self, data: bytes) -> None:
        """Read the answers that are complete."""
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            if isinstance(answer, REFUSALS) and _is_of_server(answer):
                self._refused = True
            self._answers.append(answer)
        if len(self._answers) == self._asked and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait for answers."""
        self._forget()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(str(exc or "the server closed the connection")))


class Script:
    """A Lua script of this package, run by its digest, or whole on a server that does not know it yet."""

    def __init__(self, file_name: str) -> None:
        self._source = files("engine.gate").joinpath(file_name).read_bytes()
        self._digest = hashlib.sha1(self._source, usedforsecurity=False).hexdigest()

    async def run(self, execute: Execute, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
        """Run the script once by a function that executes a command, and return its answer."""
        try:
            return await execute("EVALSHA", self._digest, len(keys), *keys, *arguments)
        except NoScriptError:
            # The server, new or restarted, refused before it ran anything. EVAL runs and keeps the script.
            return await execute("EVAL", self._source, len(keys), *keys, *arguments)
