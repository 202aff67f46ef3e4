"""What the commands share: their options, and the services that they work on."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, ParamSpec

import click
from redis.asyncio import Redis

from engine.gate.client import connect_redis
from engine.gate.reads import translate_errors
from engine.settings import Settings, read_settings
from engine.startup import find_services

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
    with translate_errors():
        async with connect_redis(settings.redis_url) as redis:
            yield settings, redis
