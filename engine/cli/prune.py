"""The command `flashgrid prune`: takes old orders out of the ledger."""

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import click

from engine.cli.options import open_services, run_async, settings_option
from engine.errors import GateUnavailable, InputError
from engine.gate.clearing import find_oldest
from engine.gate.fence import read_generations
from engine.ledger.ledger import Ledger
from engine.model.order_id import make_bound, read_time_ms
from engine.settings import Settings

_STEP: Final = 10_000
"""Orders in one transaction."""
_DAY_S: Final = 86_400
_SAY_EVERY_S: Final = 1.0


def _read_date(_context: click.Context, _option: click.Parameter, text: str) -> int:
    """Return the Unix milliseconds of a date, or of a time, in UTC unless it says otherwise."""
    time_ms = -1
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        time_ms = round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
    if time_ms < 0:
        raise click.BadParameter(f"{text!r} is no date: write it like 2026-11-30, or 2026-11-30T18:00:00Z")
    return time_ms


@click.command()
@click.option(
    "--before",
    "before_ms",
    required=True,
    metavar="DATE",
    callback=_read_date,
    help="Orders accepted before this go, such as 2026-11-30, or 2026-11-30T18:00:00Z; UTC unless it says"
    " otherwise.",
)
@settings_option
@run_async
async def prune(before_ms: int, settings: Settings) -> None:
    """Delete old settled orders from the ledger.

    Engines may serve meanwhile. Whoever asks for a pruned order hears 404 with the code PRUNED. What sales
    have sold stays counted, and the orders of a sale that is still on offer stay if it limits what a user may
    buy. Orders of the last day, or of as long as an Idempotency-Key is remembered, can't be pruned, nor what
    is older than an order that is still pending, such as one in a dead letter: settle that first.

    It may be stopped at any time, and run again: what is gone is gone. PostgreSQL's autovacuum makes the
    space free for new orders.
    """
    keep_s = max(_DAY_S, settings.idempotency_s)
    latest_ms = int((time.time() - keep_s) * 1000)
    if before_ms > latest_ms:
        raise InputError(
            "--before",
            f"orders of the last {keep_s / 3600:g} h are still needed;"
            f" the latest is {_write_time(latest_ms)}",
        )
    async with open_services(settings) as (found, shards):
        if not all(await read_generations(shards)):
            raise GateUnavailable(
                "the gate is closed, and so what is pending is not known: wait until it opens"
            )
        oldest = await find_oldest(shards)
        if oldest and read_time_ms(oldest) < before_ms:
            raise InputError(
                "--before",
                f"an order of {_write_time(read_time_ms(oldest))} is still pending: see"
                " `flashgrid dead-letters list`; the latest is that time",
            )
        async with await Ledger.connect(found.postgres_url, timeout_ms=60_000) as ledger:
            await _prune(ledger, before_ms)


async def _prune(ledger: Ledger, before_ms: int) -> None:
    """Prune step by step, and say how far it is."""
    before, last, gone, kept = make_bound(before_ms), make_bound(0), 0, 0
    await ledger.begin_pruning(before)
    say_at_s = time.monotonic() + _SAY_EVERY_S
    while True:
        step = await ledger.prune(last, before, _STEP)
        if step.last is None:
            break
        last, gone, kept = step.last, gone + step.gone, kept + step.kept
        if time.monotonic() >= say_at_s:
            click.echo(f"{gone:,} orders pruned, up to {_write_time(read_time_ms(last))}")
            say_at_s = time.monotonic() + _SAY_EVERY_S
    click.echo(f"{gone:,} orders pruned, all up to {_write_time(before_ms)}")
    if kept:
        click.echo(f"{kept:,} orders stay, of sales on offer that limit what a user may buy")


def _write_time(time_ms: int) -> str:
    return f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
