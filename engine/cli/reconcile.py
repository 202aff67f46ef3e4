"""The command `flashgrid reconcile`: rebuilds the gate from the ledger by hand."""

import asyncio
import logging
from contextlib import suppress

import click
import msgspec
from redis.exceptions import ResponseError

from engine.cli.options import open_services, run_async, settings_option
from engine.errors import GateUnavailable, InputError
from engine.gate.client import connect_shards
from engine.settings import MOST_SHARDS, PREFIX, Settings
from engine.stages.audit import Comparison
from engine.stages.reconciliation import Reconciliation, Traffic, reconciling


@click.command()
@click.option("--dry-run", is_flag=True, help="Only show what differs.")
@click.option(
    "--wait", "wait_s", default=60.0, show_default=True, help="Longest wait for purchases under way, s."
)
@click.option(
    "--shards",
    type=click.IntRange(1, MOST_SHARDS),
    help="Give the gate so many shards. Every process of the engine must be told, and started again.",
)
@settings_option
@run_async
async def reconcile(dry_run: bool, wait_s: float, shards: int | None, settings: Settings) -> None:
    """Close the gate, rebuild it from the ledger, and open it again.

    Meanwhile the engine answers purchases with 503. The command waits for the purchases under way, so relay
    and fulfilment must run. If they take longer than the wait, the gate stays closed, and opens by itself
    once they are done.
    """
    # The command prints what it does; log lines would say it again.
    logging.getLogger("engine").setLevel(logging.ERROR)
    async with open_services(settings) as (found, _), reconciling(found) as reconciliation:
        generation = await reconciliation.read_generation()
        click.echo("the gate is open" if generation else "the gate is closed")
        click.echo(_describe(await reconciliation.read_traffic()))
        if not dry_run:
            await reconciliation.close(generation)
            try:
                if shards is None or shards == found.gate_shards:
                    await asyncio.wait_for(_rebuild(reconciliation), wait_s)
                else:
                    await asyncio.wait_for(_change_shards(reconciliation, found, shards), wait_s)
            except TimeoutError:
                traffic = _describe(await reconciliation.read_traffic())
                raise GateUnavailable(f"still under way after {wait_s:g} s: {traffic}") from None
            if shards is not None:
                click.echo(f"the gate has {shards} shards: set {PREFIX}GATE_SHARDS={shards}")
                return
        _print_table(await reconciliation.audit.compare())


async def _change_shards(reconciliation: Reconciliation, settings: Settings, count: int) -> None:
    """Wait until nothing is under way, and rebuild the gate with so many shards."""
    if not settings.amqp_url and await reconciliation.count_dead_letters():
        raise InputError("--shards", "dead letters wait in the first shard: replay or drop them before")
    async with connect_shards(msgspec.structs.replace(settings, gate_shards=count)) as shards:
        while True:
            # A keeper may have opened it again.
            await reconciliation.close(await reconciliation.read_generation())
            with suppress(ResponseError):
                is_drained = (await reconciliation.read_traffic()).drained
                if is_drained and await reconciliation.change_shards(shards):
                    return
            await asyncio.sleep(0.05)


async def _rebuild(reconciliation: Reconciliation) -> None:
    """Wait until nothing is under way and the gate is open again, by this process or by a keeper."""
    while not await reconciliation.is_open():
        if not (await reconciliation.read_traffic()).drained or not await reconciliation.rebuild():
            await asyncio.sleep(0.2)


def _describe(traffic: Traffic) -> str:
    return (
        f"{traffic.entries} outbox entries, {traffic.messages} messages in the queue,"
        f" {traffic.consumers} consumers, {traffic.pending} orders pending"
    )


def _print_table(comparisons: list[Comparison]) -> None:
    row = "{:>12} {:>8} {:>12} {:>12} {:>12} {:>12} {:>12}"
    click.echo(row.format("product", "sale", "stock", "confirmed", "ledger left", "gate left", "difference"))
    for comparison in comparisons:
        offer = comparison.offer
        known = comparison.sale_id == offer.sale_id
        gate = comparison.remaining if known else "no such sale"
        difference = comparison.missing if known else comparison.expected
        numbers = (offer.product_id, offer.sale_id, offer.stock, offer.sold, comparison.expected, gate)
        click.echo(row.format(*numbers, f"{difference:+d}" if difference else "0"))
