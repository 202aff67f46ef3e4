"""How the engine talks to Redis: one way to connect, one way to run a script."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from engine.errors import SettingsError
from engine.settings import PREFIX

Argument = str | bytes | int


def connect_redis(url: str | None, timeout_ms: int = 5_000) -> Redis:
    """Return a client that answers in bytes and connects at its first command.

    It never repeats a command by itself: a script whose answer is lost may have run, and only the caller
    knows whether it may run twice. `timeout_ms` bounds the connect and the wait for each answer, which ends
    in redis.exceptions.TimeoutError; a blocking read must ask for less. Raises SettingsError without a URL.
    """
    if url is None:
        raise SettingsError(f"{PREFIX}REDIS_URL is not set")
    timeout_s = timeout_ms / 1000
    return Redis.from_url(
        url,
        protocol=2,
        decode_responses=False,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
    )


class Script:
    """A Lua script of this package, run by its digest, or whole on a server that does not know it yet."""

    def __init__(self, file_name: str) -> None:
        self._source = files("engine.gate").joinpath(file_name).read_bytes()
        self._digest = hashlib.sha1(self._source, usedforsecurity=False).hexdigest()

    async def run(
        self, execute: Callable[..., Awaitable[Any]], keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Any:
        """Run the script once by a function that executes a command, and return its answer."""
        try:
            return await execute("EVALSHA", self._digest, len(keys), *keys, *arguments)
        except NoScriptError:
            # The server, new or restarted, refused before it ran anything. EVAL runs and keeps the script.
            return await execute("EVAL", self._source, len(keys), *keys, *arguments)
