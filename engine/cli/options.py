"""What the commands share: their options, and the services that they work on."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, ParamSpec

import click
import msgspec

from engine.errors import LedgerUnavailable, SettingsError
from engine.gate.client import Shards, connect_shards
from engine.gate.fence import read_owner
from engine.gate.looks.reads import translate_errors
from engine.ledger.ledger import Ledger
from engine.settings import PREFIX, Settings, read_settings
from engine.startup import OTHER_LEDGER, find_services

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
async def open_services(settings: Settings) -> AsyncIterator[tuple[Settings, Shards]]:
    """Find the services of an engine that is set up; yield the settings with their URLs, and the gate.

    Raises SettingsError if there are none, or if the gate is another ledger's; GateUnavailable if Redis does
    not answer.
    """
    settings, identity = find_services(settings), ""
    async with await Ledger.connect(settings.postgres_url, connections=1) as ledger:
        # An operator works on the gate as it is.
        with suppress(LedgerUnavailable):
            count = await ledger.claim_shards(None) or settings.gate_shards
            settings = msgspec.structs.replace(settings, gate_shards=count)
            identity = await ledger.read_identity()
    with translate_errors():
        async with connect_shards(settings) as shards:
            if identity and await read_owner(shards[0]) not in ("", identity):
                raise SettingsError(f"{PREFIX}REDIS_URL: {OTHER_LEDGER}")
            yield settings, shards
