"""What is checked of the services before a stage starts: that they answer, and allow enough.

ledger/checks.py checks PostgreSQL, bus/checks.py RabbitMQ.
"""

import asyncio
import logging
import re
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final, TypeVar

import asyncpg
from aiormq import exceptions as amqp
from redis import exceptions as redis_errors

from engine.bus.checks import check_bus
from engine.errors import BusUnavailable, FlashgridError, SettingsError
from engine.gate.client import Shard, TooFewCopies
from engine.gate.configuration import check_configuration
from engine.identity import check_identity
from engine.stages.lifecycle import Outage

T = TypeVar("T")

log = logging.getLogger(__name__)

_PATIENCE_S: Final = 30.0
MIGRATION_S: Final = 600.0
"""Longest time for the migrations of the schema, by this process or by another."""
_SHORT_PATIENCE_S: Final = 5.0
"""For what is rarely mended by itself: a name that nobody knows, a service that can't write."""
_FINAL: Final = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.SyntaxOrAccessError,  # a missing right, or a table of another program
    asyncpg.InvalidSchemaNameError,
    asyncpg.ClientConfigurationError,
    asyncpg.ProtocolViolationError,  # how PgBouncer says that it knows no such user or database
    redis_errors.AuthenticationError,
    redis_errors.NoPermissionError,
    redis_errors.InvalidResponse,  # this is no Redis
    amqp.AuthenticationError,
    amqp.ProbableAuthenticationError,
    amqp.InvalidFrameError,  # how the client library says that a virtual host is not opened
    amqp.ConnectionNotAllowed,
    amqp.IncompatibleProtocolError,
    amqp.ChannelAccessRefused,
    amqp.ChannelPreconditionFailed,
    ssl.SSLError,
)
"""Errors that no time mends."""
_FINAL_TEXTS: Final = re.compile(
    "DB index|rejected SSL upgrade|No such master|cluster support disabled|unknown command '?SENTINEL", re.I
)
_FOR_NOW: Final = re.compile(r"limit \(\d+\) is reached|maximum allowed|is down")
"""How RabbitMQ refuses a connection that it may take later."""
_IN_CLUSTER: Final = (
    "this is one node of a Redis Cluster: write redis+cluster://host:port,host:port,host:port"
)
_NOTHING_THERE: Final = ("NOGROUP", "NOSCRIPT", "No matching script", "no such key", "The XGROUP")
"""How Redis says that it would do what it is asked, if there were such a key or script."""
_SLOW: Final = (socket.gaierror, redis_errors.ReadOnlyError, asyncpg.ReadOnlySQLTransactionError)


async def insist(
    name: str,
    setting: str,
    attempt: Callable[[], Awaitable[T]],
    patience_s: float = _PATIENCE_S,
    url: str | None = None,
) -> T:
    """Await `attempt()` until it works, and return what it returns.

    Raises SettingsError at once for what no time mends, such as another service at the URL's address,
    FlashgridError if it does not work in `patience_s`.
    """
    outage = Outage(name)
    loop = asyncio.get_running_loop()
    started = loop.time()
    last = "it does not answer"
    try:
        async with asyncio.timeout(patience_s):
            while True:
                try:
                    result = await attempt()
                except SettingsError as error:
                    raise SettingsError(f"{setting}: {error}") from None
                except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                    # The client library can't use the URL.
                    raise SettingsError(f"{setting}: {type(error).__name__}: {error}") from error
                except (FlashgridError, redis_errors.RedisError, OSError) as error:
                    await _check_identity(url, setting)
                    last = " ".join(str(error).split())
                    slow = any(isinstance(cause, _SLOW) for cause in _causes(error))
                    if is_final(error) or (slow and loop.time() - started > _SHORT_PATIENCE_S):
                        raise SettingsError(f"{setting}: {last}") from None
                    await outage.wait(error)
                else:
                    outage.end()
                    return result
    except TimeoutError:
        raise FlashgridError(f"{name} does not answer after {patience_s:.0f} s: {last}") from None


async def _check_identity(url: str | None, setting: str) -> None:
    try:
        await check_identity(url or "")
    except SettingsError as error:
        raise SettingsError(f"{setting}: {error}") from None


def is_final(error: BaseException) -> bool:
    """Return whether no time mends what an error says."""
    return any(isinstance(cause, _FINAL) or _FINAL_TEXTS.search(str(cause)) for cause in _causes(error))


async def check_shard(shard: Shard, kind: str) -> str:
    """Raise SettingsError for a Redis that lacks what the engine needs, or may evict gate data.

    `kind` is that of its URL. Returns a warning of one that may forget an accepted purchase, or that can't be
    checked; nothing if all is well. Raises RedisError.
    """
    execute: Callable[..., Awaitable[object]] = shard.redis.execute_command
    await _check_mode(shard, kind)
    for command in list_commands(f"{shard.prefix}check"):
        try:
            await execute(*command)
        except (redis_errors.NoPermissionError, redis_errors.ReadOnlyError):
            raise
        except redis_errors.ResponseError as error:
            text = str(error)
            if "unknown command" in text.lower():
                raise SettingsError(f"this Redis has no {command[0]}; Redis 6.2 or newer is needed") from None
            if isinstance(error, redis_errors.MovedError) and not kind:
                raise SettingsError(_IN_CLUSTER) from None
            if not text.startswith(_NOTHING_THERE):
                raise
    try:
        async with shard.redis.pipeline(transaction=True) as pipe:
            pipe.xlen(f"{shard.prefix}check")
            await pipe.execute()
    except redis_errors.ResponseError as error:
        if isinstance(error, redis_errors.ExecAbortError) or re.search(
            "without MULTI|unknown command", str(error)
        ):
            raise SettingsError(f"Redis must do 'MULTI' and 'EXEC', and says: {error}") from None
        raise
    if shard.await_all:
        try:
            async with shard.redis.pipeline(transaction=False) as pipe:
                await shard.confirm(pipe)
        except TooFewCopies as error:
            log.warning("nothing is sold until that changes: %s", error)
    return await check_configuration(shard.redis)


async def _check_mode(shard: Shard, kind: str) -> None:
    """Raise SettingsError if this is no Redis that a URL of this kind may lead to.

    Warns of one that does not say which server it is. Raises RedisError.
    """
    execute: Callable[..., Awaitable[object]] = shard.redis.execute_command
    refusal, server = "", dict[str, Any]()
    try:
        server = await shard.redis.info("server")
        refusal = "" if "run_id" in server else "it names no run_id"
    except redis_errors.ResponseError as error:
        refusal = str(error)
    if server.get("redis_mode") == "sentinel":
        raise SettingsError("this is a Sentinel: write redis+sentinel://host:port,host:port/name")
    if server.get("redis_mode") == "cluster" and not kind:
        cluster: Any = await execute("CLUSTER", "INFO")
        if b"cluster_size:1\r" not in cluster:
            raise SettingsError(_IN_CLUSTER)
    if refusal:
        log.warning(
            "can't read Redis' INFO (%s): a new Redis may sell before every front door has asked what it"
            " remembers; let the user run INFO",
            refusal,
        )


def list_commands(key: str) -> Iterator[tuple[str, ...]]:
    """Yield each command that the engine needs, with a key that does not exist: they leave nothing behind."""
    yield "EVAL", "return 1", "0"
    yield "EVALSHA", "0" * 40, "0"
    yield ("TIME",)
    yield "XADD", key, "NOMKSTREAM", "*", "check", ""
    yield "XGROUP", "CREATE", key, "check", "$"
    yield "XREADGROUP", "GROUP", "check", "check", "STREAMS", key, ">"
    yield "XAUTOCLAIM", key, "check", "check", "0", "0-0"
    yield "XPENDING", key, "check"
    yield "XACK", key, "check", "0-1"
    yield "XDEL", key, "0-1"
    yield "XLEN", key
    yield "XRANGE", key, "-", "+", "COUNT", "1"
    yield "XINFO", "STREAM", key
    yield "HDEL", key, "check"
    yield "HEXISTS", key, "check"
    yield "HGET", key, "check"
    yield "HGETALL", key
    yield "HKEYS", key
    yield "HLEN", key
    yield "HMGET", key, "check"
    yield "HRANDFIELD", key, "1"
    yield "HSCAN", key, "0"
    yield "HVALS", key
    yield "GET", key
    yield "MGET", key
    yield "SET", key, "", "XX"
    yield "SCAN", "0", "MATCH", key, "COUNT", "1"
    yield "DEL", key
    # Another key: an engine that starts at the same time must not find the first one.
    yield "UNLINK", f"{key}:hash"
    yield "HSET", f"{key}:hash", "check", "0"
    yield "HINCRBY", f"{key}:hash", "check", "1"
    yield "UNLINK", f"{key}:hash"


async def check_bus_if_it_answers(url: str, setting: str, ledger: str, is_private: bool) -> None:
    """Raise SettingsError for a RabbitMQ that refuses; warn of one that does not answer yet."""
    try:
        async with asyncio.timeout(_SHORT_PATIENCE_S):
            await check_bus(url, ledger, is_private)
    except SettingsError as error:
        raise SettingsError(f"{setting}: {error}") from None
    except (BusUnavailable, TimeoutError) as error:
        await _check_identity(url, setting)
        said = " ".join(str(error).split()) or f"it says nothing for {_SHORT_PATIENCE_S:g} s"
        if is_final(error) and not _FOR_NOW.search(said):
            raise SettingsError(f"{setting}: {said}") from None
        log.warning("RabbitMQ does not answer (%s): purchases wait in the outbox until it does", said)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
