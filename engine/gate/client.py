"""How the engine talks to Redis: one way to connect, one way to run a script, and a client for each shard."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from importlib.resources import files
from typing import Any, Final, Self, TypeVar

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import ConnectionPool, RedisSSLContext, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from engine.errors import SettingsError
from engine.gate.connection.following import leave_when_refused
from engine.gate.connection.lookup import Lookup
from engine.gate.connection.wire import Argument
from engine.gate.keys import ShardKeys
from engine.settings import PREFIX, Settings
from engine.urls import RedisUrl, read_redis_url

T = TypeVar("T")
U = TypeVar("U")

Command = tuple[Argument, ...]
Execute = Callable[..., Awaitable[Any]]
"""Runs a command, given as its words, and returns the answer."""
_FIRST_SLOT: Final = ShardKeys().slot


def connect_redis(url: str | None, timeout_ms: int = 5_000, slot: int = _FIRST_SLOT) -> Redis:
    """Return a client that answers in bytes and connects at its first command, to the primary of a slot.

    It never repeats a command by itself: a script whose answer is lost may have run, and only the caller
    knows whether it may run twice. `timeout_ms` bounds the connect and the wait for each answer, which ends
    in redis.exceptions.TimeoutError; a blocking read must ask for less. A server that refuses a command, such
    as a demoted primary, is left: the next command looks it up anew. Raises SettingsError without a URL.
    """
    if url is None:
        raise SettingsError(f"{PREFIX}REDIS_URL is not set")
    timeout_s, parts = timeout_ms / 1000, read_redis_url(url)
    pool = ConnectionPool.from_url(
        parts.plain,
        protocol=2,
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )
    pool.connection_class = share_context(pool.connection_class)
    lookup = _make_lookup(parts, slot, pool) if parts.kind else None
    pool.connection_class = leave_when_refused(pool.connection_class, lookup)
    return _Client.from_pool(pool)


def share_context(connection_class: Any) -> Any:
    """Return a class of connections, those by TLS with one context for all of them: to make one reads every
    certificate of the system, for 20 ms, and to connect to a cluster asks several nodes.
    """
    if not issubclass(connection_class, SSLConnection):
        return connection_class
    shared: RedisSSLContext | None = None

    class Connection(connection_class):  # type: ignore[misc]
        ssl_context: RedisSSLContext

        def __init__(self, *arguments: Any, **options: Any) -> None:
            nonlocal shared
            super().__init__(*arguments, **options)
            self.ssl_context = shared = shared or self.ssl_context

    return Connection


def _make_lookup(url: RedisUrl, slot: int, pool: ConnectionPool) -> Lookup:
    """Return the lookup of a primary; nodes are connected to as the pool's servers are."""
    connection_class, options = pool.connection_class, pool.connection_kwargs
    timeout_s = options.get("socket_timeout") or 1.0
    return Lookup(url, slot, lambda **place: connection_class(**options | place), timeout_s)


async def find_silent_nodes(url: str) -> list[str]:
    """Return the nodes of a cluster, or Sentinels and replicas, that don't answer, and why."""
    parts = read_redis_url(url)
    pool = ConnectionPool.from_url(parts.plain, protocol=2, retry=Retry(NoBackoff(), 0))
    return await _make_lookup(parts, _FIRST_SLOT, pool).find_silent()


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


class TooFewCopies(RedisError):
    """What was written, or seen, is not held by enough machines yet."""


class Shard(ShardKeys):
    """A shard: its keys, and a client that follows its primary."""

    def __init__(
        self, redis: Redis, shard: int = 0, of: int = 1, copies: int = 1, copies_ms: int = 500
    ) -> None:
        super().__init__(shard, of)
        self.redis = redis
        self._replicas = copies - 1
        self.await_copies: tuple[Command, ...] = ()
        """Asks how many replicas have what the same connection wrote before; nothing if none has to."""
        self.await_all: tuple[Command, ...] = ()
        """Asks how many have all that the primary holds: WAIT by itself knows of one connection's writes."""
        if copies > 1:
            self.await_copies = (("WAIT", self._replicas, copies_ms),)
            self.await_all = (("SET", self.probe, "", "PX", 1), *self.await_copies)
        self.write: Execute = self._write if copies > 1 else redis.execute_command
        """Executes a command, and returns its answer once enough machines hold what it wrote."""

    def check_copies(self, answers: Sequence[object]) -> None:
        """Raise TooFewCopies unless the last answer, that to WAIT, says that there are enough.

        And unless what it waits for was written: a slot that moves to another node takes no new key.
        """
        if answers:
            *written, count = answers
            error = next((answer for answer in written if isinstance(answer, Exception)), None)
            if error or not (isinstance(count, int) and count >= self._replicas):
                raise TooFewCopies(
                    f"what shard {self.shard} holds lacks copies, {self._replicas} wanted: {error or count}"
                )

    async def confirm(self, pipe: Pipeline, wrote: bool = False) -> list[Any]:
        """Return the answers to the commands in a pipeline once what they show has its copies.

        `wrote` says that showing it was a write. Raises RedisError, TooFewCopies among them.
        """
        asked = len(pipe)
        for command in self.await_copies if wrote else self.await_all:
            pipe.execute_command(*command)
        answers = await pipe.execute(raise_on_error=False)
        for answer in answers[:asked]:
            if isinstance(answer, Exception):
                raise answer
        self.check_copies(answers[asked:])
        return answers[:asked]

    async def _write(self, *command: Argument) -> Any:
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.execute_command(*command)
            [answer] = await self.confirm(pipe, wrote=True)
        return answer


async def ask_each(shards: Sequence[U], ask: Callable[[U], Awaitable[T]]) -> list[T]:
    """Return what each of the shards is asked, all of them at once."""
    if len(shards) == 1:
        return [await ask(shards[0])]
    return await asyncio.gather(*map(ask, shards))


class Shards(list[Shard]):
    """All shards; those of one server share their client."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Disconnect."""
        async with AsyncExitStack() as closing:
            for redis in {shard.redis for shard in self}:
                closing.push_async_callback(redis.aclose)


def connect_shards(settings: Settings, timeout_ms: int = 5_000) -> Shards:
    """Return all shards, each with a client that follows its primary (connect_redis).

    Raises SettingsError without a URL.
    """
    count, url = settings.gate_shards, settings.redis_url
    is_cluster = url is not None and read_redis_url(url).kind == "cluster"
    shards = Shards()
    for number in range(count):
        if shards and not is_cluster:
            redis = shards[0].redis
        else:
            redis = connect_redis(url, timeout_ms, ShardKeys(number, count).slot)
        shards.append(Shard(redis, number, count, settings.gate_copies, settings.gate_copies_ms))
    return shards
