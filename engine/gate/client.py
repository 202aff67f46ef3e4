"""How the engine talks to Redis: one way to connect, one way to run a script."""

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError


def connect_redis(url: str, timeout_ms: int) -> Redis:
    """A client with bytes in its answers, which connects at its first command.

    It never repeats a command by itself: a script whose answer is lost may have run, and only the caller
    knows whether it may run twice. `timeout_ms` bounds the connect and the wait for each answer, which ends
    in redis.exceptions.TimeoutError; a blocking read must ask for less.
    """
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
    """A Lua script of this package, run by its digest; a server that doesn't know it is taught on the way."""

    def __init__(self, file_name: str) -> None:
        self.source = files("engine.gate").joinpath(file_name).read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()

    async def run(self, redis: Redis, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """Run the script once and return its answer. Raises redis.exceptions.RedisError."""
        try:
            return await redis.execute_command(  # type: ignore[no-untyped-call]
                "EVALSHA", self.sha, len(keys), *keys, *args
            )
        except NoScriptError:
            # The server refused before it ran anything (new, or restarted); EVAL runs and keeps the script.
            return await redis.execute_command(  # type: ignore[no-untyped-call]
                "EVAL", self.source, len(keys), *keys, *args
            )
