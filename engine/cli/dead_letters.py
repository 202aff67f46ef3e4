"""The commands `flashgrid dead-letters …`: what a person does with records that can't be fulfilled."""

from collections.abc import Iterable

import click

from engine.cli.options import open_services, run_async, settings_option
from engine.cli.stores import StoredDeadLetter, open_stores
from engine.errors import InputError
from engine.gate.clearing import Clearing
from engine.ledger.ledger import Ledger
from engine.model.lot import count_orders, without_orders
from engine.settings import Settings

_ids = click.argument("ids", nargs=-1)
_all = click.option("--all", "every", is_flag=True, help="All dead letters.")


@click.group()
def dead_letters() -> None:
    """Look after records that can't be fulfilled.

    Name a dead letter by its id, or by the first characters of it that no other has. Dead letters with the
    same body have the same id.
    """


@dead_letters.command("list")
@settings_option
@run_async
async def list_all(settings: Settings) -> None:
    """Print a line for each dead letter: id, place, number of purchases, reason."""
    async with open_services(settings) as services, open_stores(*services) as stored:
        for entry in stored:
            click.echo(f"{entry.id}  {entry.where:6}  {count_orders(entry.read()):>5}  {entry.reason}")


@dead_letters.command()
@_ids
@settings_option
@run_async
async def show(ids: tuple[str, ...], settings: Settings) -> None:
    """Print dead letters with their bodies and purchases."""
    async with open_services(settings) as services, open_stores(*services) as stored:
        for entry in _select(stored, ids, every=False):
            click.echo(f"id      {entry.id}\nwhere   {entry.where}\nreason  {entry.reason}")
            click.echo(f"body    {entry.body.decode(errors='backslashreplace')}")
            for lot in entry.read():
                for order_id, user_id in zip(lot.order_ids, lot.user_ids, strict=True):
                    click.echo(
                        f"order   {order_id}  user {user_id}  product {lot.product_id}  sale {lot.sale_id}"
                        f"  quantity {lot.quantity}  accepted at {lot.accepted_ms} ms"
                    )


@dead_letters.command()
@_ids
@_all
@settings_option
@run_async
async def replay(ids: tuple[str, ...], every: bool, settings: Settings) -> None:
    """Send the purchases of dead letters to fulfilment once more.

    However often a purchase is replayed, the ledger settles it once. A dead letter that can't be read stays.
    """
    async with open_services(settings) as services, open_stores(*services) as stored:
        for entry in _select(stored, ids, every):
            if lots := entry.read():
                await entry.send()
                await entry.delete()
                click.echo(f"{entry.id} replayed: {count_orders(lots)} purchases")
            else:
                click.echo(f"{entry.id} stays: it holds no purchase that can be read")


@dead_letters.command()
@_ids
@_all
@settings_option
@run_async
async def drop(ids: tuple[str, ...], every: bool, settings: Settings) -> None:
    """Delete dead letters.

    Their orders, unless they are settled already, end as FAILED, and their units go back to the gate.
    """
    async with (
        open_services(settings) as (found, shards),
        open_stores(found, shards) as stored,
        await Ledger.connect(found.postgres_url) as ledger,
    ):
        clearing = Clearing(shards)
        for entry in _select(stored, ids, every):
            lots = entry.read()
            declines = {order_id: "dropped by an operator" for lot in lots for order_id in lot.order_ids}
            settlement = await ledger.settle(lots, declines)
            settled = without_orders(lots, settlement.dead_letters.keys())
            await clearing.clear(settled, settlement.failed)
            await entry.delete()
            click.echo(f"{entry.id} dropped: {settlement.settled.total()} orders failed")


def _select(stored: Iterable[StoredDeadLetter], ids: tuple[str, ...], every: bool) -> list[StoredDeadLetter]:
    """Return the dead letters that `ids` name, or all. Raises InputError if a name is no dead letter's."""
    if not ids and not every:
        raise InputError("ids", "name the dead letters, or give --all")
    stored = list(stored)
    for name in ids:
        found = {entry.id for entry in stored if entry.id.startswith(name)}
        if len(found) != 1:
            raise InputError("ids", f"{len(found)} dead letters have an id that begins with {name}")
    return [entry for entry in stored if every or entry.id.startswith(ids)]
