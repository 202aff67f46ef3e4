"""What the commands share: their options, and the services that they work on."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final, ParamSpec

import click
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.errors import GateUnavailable
from engine.gate.client import connect_redis
from engine.settings import Settings, read_settings
from engine.startup import find_services

_REDIS_TIMEOUT_MS: Final = 10_000
P = ParamSpec("P")

settings_option = click.option(
    "--data-dir",
    "settings",
    callback=lambda _context, _option, data_dir: read_settings(data_dir=data_dir),
    help="Folder of the private backing services [default: FLASHGRID_DATA_DIR, or .flashgrid].",
)
"""Gives the command the settings of its environment."""


def run_async(command: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Let a command be a coroutine function."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        asyncio.run(command(*args, **kwargs))

    return run


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[tuple[Settings, Redis]]:
    """Find the services of an engine that is set up; yield the settings with their URLs, and a Redis client.

    Raises SettingsError if there are none, GateUnavailable if Redis does not answer.
    """
    settings = find_services(settings)
    try:
        async with connect_redis(settings.redis_url or "", _REDIS_TIMEOUT_MS) as redis:
            yield settings, redis
    except (RedisError, OSError) as error:
        raise GateUnavailable(f"Redis: {error}") from error
