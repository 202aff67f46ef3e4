"""The commands that work on an engine's data: `flashgrid reconcile`, `flashgrid dead-letters …`."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import click
import msgspec
from redis.exceptions import RedisError

from engine.cli.dead_letters import Store, StoredDeadLetter, open_stores
from engine.errors import GateUnavailable, InputError, SettingsError
from engine.gate.clearing import Clearing
from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys
from engine.ledger.ledger import Ledger
from engine.model.lot import count_orders, without_orders
from engine.settings import PREFIX, Settings, read_settings
from engine.stages.reconciliation import Comparison, Reconciliation, Traffic, reconciling

_REDIS_TIMEOUT_MS: Final = 10_000
_POLL_S: Final = 0.2
_DROPPED: Final = "dropped by an operator"


@click.command()
@click.option("--dry-run", is_flag=True, help="Only print what would be done.")
@click.option(
    "--wait", "wait_s", default=60.0, show_default=True, help="Longest wait for purchases under way, s."
)
@click.option("--data-dir", help="Folder of the private backing services [default: .flashgrid].")
def reconcile(dry_run: bool, wait_s: float, data_dir: str | None) -> None:
    """Close the gate, rebuild it from the ledger, and open it again.

    Purchases are answered 503 meanwhile. What is under way is waited for, so relay and fulfilment must run;
    if they don't manage within the wait, the gate stays closed, and opens by itself once they have.
    """
    # What it does is printed; the same as log lines would be too much.
    logging.getLogger("engine").setLevel(logging.ERROR)
    asyncio.run(_reconcile(find_services(read_settings(data_dir=data_dir)), dry_run, wait_s))


async def _reconcile(settings: Settings, dry_run: bool, wait_s: float) -> None:
    try:
        async with reconciling(settings) as reconciliation:
            generation = await reconciliation.read_generation()
            click.echo("the gate is open" if generation else "the gate is closed")
            traffic = await reconciliation.read_traffic()
            click.echo(_describe(traffic))
            if dry_run:
                _print(await reconciliation.compare())
                return
            await reconciliation.close(generation)
            try:
                await asyncio.wait_for(_rebuild(reconciliation), wait_s)
            except TimeoutError:
                traffic = await reconciliation.read_traffic()
                raise GateUnavailable(f"still under way after {wait_s:g} s: {_describe(traffic)}") from None
            _print(await reconciliation.compare())
    except (RedisError, OSError) as error:
        raise GateUnavailable(f"Redis: {error}") from error


async def _rebuild(reconciliation: Reconciliation) -> None:
    """Wait until nothing is under way and the gate is open again, by this process or a fulfilment."""
    while not await reconciliation.is_open():
        if not (await reconciliation.read_traffic()).drained or not await reconciliation.rebuild():
            await asyncio.sleep(_POLL_S)


@click.group()
def dead_letters() -> None:
    """Look after records that could not be fulfilled.

    A letter is named by its id, or by as much of its begin as is unique. Letters with the same text have the
    same id.
    """


_data_dir = click.option("--data-dir", help="Folder of the private backing services [default: .flashgrid].")
_ids = click.argument("ids", nargs=-1)
_all = click.option("--all", "every", is_flag=True, help="All letters.")


@dead_letters.command("list")
@_data_dir
def list_letters(data_dir: str | None) -> None:
    """One line for each letter: id, where it is, its purchases, why it is there."""

    async def show(_: Store, letter: StoredDeadLetter) -> None:
        click.echo(f"{letter.letter_id}  {letter.where:6}  {count_orders(letter.lots):>5}  {letter.reason}")

    asyncio.run(_for_letters(data_dir, (), True, show))


@dead_letters.command("show")
@_ids
@_data_dir
def show_letter(ids: tuple[str, ...], data_dir: str | None) -> None:
    """Print letters whole."""

    async def show(_: Store, letter: StoredDeadLetter) -> None:
        click.echo(f"id      {letter.letter_id}\nwhere   {letter.where}\nreason  {letter.reason}")
        click.echo(f"body    {letter.body.decode(errors='backslashreplace')}")
        for lot in letter.lots:
            for order_id, user_id in zip(lot.order_ids, lot.user_ids, strict=True):
                click.echo(
                    f"order   {order_id}  user {user_id}  product {lot.product_id}  sale {lot.sale_id}"
                    f"  quantity {lot.quantity}  accepted at {lot.accepted_ms} ms"
                )

    asyncio.run(_for_letters(data_dir, ids, False, show))


@dead_letters.command()
@_ids
@_all
@_data_dir
def replay(ids: tuple[str, ...], every: bool, data_dir: str | None) -> None:
    """Send the purchases of letters to fulfilment once more.

    However often a purchase is replayed, it is settled once. What can't be read stays.
    """

    async def send(store: Store, letter: StoredDeadLetter) -> None:
        if letter.lots:
            await store.replay(letter)
            click.echo(f"{letter.letter_id} replayed: {count_orders(letter.lots)} purchases")
        else:
            click.echo(f"{letter.letter_id} stays: it holds no purchase that can be read")

    asyncio.run(_for_letters(data_dir, ids, every, send))


@dead_letters.command()
@_ids
@_all
@_data_dir
def drop(ids: tuple[str, ...], every: bool, data_dir: str | None) -> None:
    """Delete letters. Orders in them that are not settled yet end as FAILED; their units are sold on."""
    settings = find_services(read_settings(data_dir=data_dir))

    async def run() -> None:
        redis = connect_redis(settings.redis_url or "", _REDIS_TIMEOUT_MS)
        ledger = await Ledger.connect(settings.postgres_url or "")
        clearing = Clearing(redis, [ShardKeys(shard) for shard in range(settings.gate_shards)])

        async def delete(store: Store, letter: StoredDeadLetter) -> None:
            declines = {order_id: _DROPPED for lot in letter.lots for order_id in lot.order_ids}
            settlement = await ledger.settle(letter.lots, declines)
            settled = without_orders(letter.lots, settlement.dead_letters.keys())
            await clearing.clear(settled, settlement.failed)
            await store.delete(letter)
            click.echo(f"{letter.letter_id} dropped: {settlement.settled.total()} orders failed")

        try:
            await _for_letters(data_dir, ids, every, delete)
        finally:
            await ledger.close()
            await redis.aclose()

    asyncio.run(run())


async def _for_letters(
    data_dir: str | None,
    ids: tuple[str, ...],
    every: bool,
    act: Callable[[Store, StoredDeadLetter], Awaitable[None]],
) -> None:
    """Do something with every letter, or with those that are named. Raises InputError for a name of none."""
    if not ids and not every:
        raise InputError("ids", "name the letters, or give --all")
    settings = find_services(read_settings(data_dir=data_dir))
    redis = connect_redis(settings.redis_url or "", _REDIS_TIMEOUT_MS)
    try:
        async with open_stores(settings, redis) as stores:
            letters = [(store, letter) for store in stores for letter in await store.read()]
            for name in ids:
                found = {letter.letter_id for _, letter in letters if letter.letter_id.startswith(name)}
                if len(found) != 1:
                    raise InputError("ids", f"{len(found)} letters are named {name}")
            for store, letter in letters:
                if every or letter.letter_id.startswith(ids):
                    await act(store, letter)
    except (RedisError, OSError) as error:
        raise GateUnavailable(f"Redis: {error}") from error
    finally:
        await redis.aclose()


def find_services(settings: Settings) -> Settings:
    """The settings with the private services that run for the data folder, where no URL is given.

    Raises SettingsError where Redis or PostgreSQL are neither given nor run.
    """
    if settings.redis_url is None and settings.postgres_url is None:
        from engine.local.stack import stack_status

        urls = {service.name: service.url for service in stack_status(Path(settings.data_dir)) if service.url}
        settings = msgspec.structs.replace(
            settings,
            redis_url=urls.get("redis"),
            postgres_url=urls.get("postgres"),
            amqp_url=settings.amqp_url or urls.get("rabbitmq"),
        )
    if settings.redis_url is None or settings.postgres_url is None:
        raise SettingsError(
            f"no services run under {settings.data_dir}; set {PREFIX}REDIS_URL and {PREFIX}POSTGRES_URL"
        )
    return settings


def _describe(traffic: Traffic) -> str:
    return (
        f"{traffic.entries} outbox entries, {traffic.messages} messages in the queue,"
        f" {traffic.consumers} consumers, {traffic.pending} orders pending"
    )


def _print(comparisons: list[Comparison]) -> None:
    row = "{:>12} {:>8} {:>12} {:>12} {:>12} {:>12} {:>12}"
    click.echo(row.format("product", "sale", "stock", "confirmed", "ledger left", "gate left", "difference"))
    for comparison in comparisons:
        (sale, sold), gate_has_it = comparison.balance, comparison.sale_id == comparison.balance.sale.sale_id
        gate = comparison.remaining if gate_has_it else "no such sale"
        difference = comparison.expected - comparison.remaining if gate_has_it else comparison.expected
        numbers = (sale.terms.product_id, sale.sale_id, sale.terms.stock, sold, comparison.expected, gate)
        click.echo(row.format(*numbers, f"{difference:+d}" if difference else "0"))
