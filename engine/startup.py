"""What the server provides and checks before it starts a stage, and what the operator's commands work on."""

import logging
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from engine.checks import (
    MIGRATION_S,
    check_bus_if_it_answers,
    check_shard,
    insist,
)
from engine.errors import SettingsError
from engine.gate.client import Shard, Shards, connect_shards, find_silent_nodes
from engine.gate.fence import claim_gate, read_owner
from engine.ledger.checks import check_postgres, prepare_schema
from engine.ledger.ledger import Ledger
from engine.settings import PREFIX, Settings
from engine.stages.front_door import LEDGER_CONNECTIONS
from engine.stages.process import Role
from engine.stages.reconciliation import KEEPER_CONNECTIONS, reconciling
from engine.urls import read_redis_url, split_hosts

log = logging.getLogger(__name__)

OTHER_LEDGER: Final = (
    "Redis holds the gate of another ledger: give each engine a database of its own (redis://host:6379/1), or"
    " empty this one if that ledger is no more, or run `flashgrid claim` if this ledger was restored from a"
    " backup of before migration 0070 and has got another identity"
)


async def provide_services(settings: Settings, roles: Collection[Role], cleanup: AsyncExitStack) -> Settings:
    """Start a private service for each URL that these roles need and the settings lack; return the settings.

    Raises StackError if one can't be started, SettingsError if a relay would have no bus.
    """
    # An engine on services of the operator's own has a bus only if they name one.
    bus_is_wanted = settings.redis_url is None and settings.postgres_url is None
    needs = {
        "redis": settings.redis_url is None,
        "postgres": settings.postgres_url is None and set(roles) != {Role.RELAY},
        "rabbitmq": settings.amqp_url is None and bus_is_wanted and set(roles) != {Role.FRONT_DOOR},
    }
    if missing := [name for name, needed in needs.items() if needed]:
        from engine.local.stack import start_stack

        log.info("starting private services under %s: %s", settings.data_dir, ", ".join(missing))
        stack = await start_stack(Path(settings.data_dir), missing)
        cleanup.push_async_callback(stack.stop)
        for note in stack.notes:
            log.warning("%s", note)
        settings = _fill_in(settings, stack.urls)
    if Role.RELAY in roles and settings.amqp_url is None:
        if Role.FULFILMENT not in roles:
            raise SettingsError(f"a relay needs a bus: set {PREFIX}AMQP_URL")
        log.warning("no RabbitMQ: fulfilment reads the outbox itself; set %sAMQP_URL to use a bus", PREFIX)
    return settings


def find_services(settings: Settings) -> Settings:
    """Return the settings with the URLs of the private services that run, if they name no services.

    Raises SettingsError if Redis or PostgreSQL are neither named nor run.
    """
    if settings.redis_url is None and settings.postgres_url is None:
        from engine.local.stack import stack_status

        rows = stack_status(Path(settings.data_dir))
        settings = _fill_in(settings, {row.name: row.url for row in rows if row.url})
    if settings.redis_url is None or settings.postgres_url is None:
        raise SettingsError(
            f"no services run under {settings.data_dir}: set {PREFIX}REDIS_URL and {PREFIX}POSTGRES_URL"
        )
    return settings


async def prepare_stores(settings: Settings, roles: Collection[Role], bus_is_private: bool = False) -> None:
    """Check the services, apply the migrations that the ledger lacks, and open the gate if it is new.

    A gate that is closed for any other reason waits for the keeper. Raises SettingsError if a service can't
    be used as it is, FlashgridError if Redis or PostgreSQL does not answer in time.
    """
    async with connect_shards(settings, settings.gate_timeout_ms) as shards:
        await _check_redis(shards, settings.redis_url or "")
        if settings.postgres_url:
            await prepare_ledger(settings.postgres_url, _count_sessions(settings, roles))
            await insist("PostgreSQL", f"{PREFIX}GATE_SHARDS", partial(_check_shards, settings))
            await insist("the gate", f"{PREFIX}REDIS_URL", partial(_check_owner, settings, shards[0]))
            async with reconciling(settings) as reconciliation:
                await insist("the gate", f"{PREFIX}REDIS_URL", reconciliation.open_new)
        ledger = await insist("Redis", f"{PREFIX}REDIS_URL", partial(read_owner, shards[0]))
    if settings.amqp_url and set(roles) != {Role.FRONT_DOOR}:
        await check_bus_if_it_answers(settings.amqp_url, f"{PREFIX}AMQP_URL", ledger, bus_is_private)


async def _check_redis(shards: Shards, url: str) -> None:
    """Check the primary of each shard, and name each node of the URL that does not answer."""
    setting, kind = f"{PREFIX}REDIS_URL", read_redis_url(url).kind
    warnings = set[str]()
    for shard in {shard.redis: shard for shard in shards}.values():
        await insist("Redis", setting, shard.redis.ping, url=url)
        warnings.add(await insist("Redis", setting, partial(check_shard, shard, kind)))
    if kind:
        warnings |= {f"a node of {setting} does not answer: {node}" for node in await find_silent_nodes(url)}
    for warning in warnings - {""}:
        log.warning("%s", warning)


async def _check_shards(settings: Settings) -> None:
    """Raise SettingsError if the gate has another number of shards; the first to ask decides it."""
    told = settings.gate_shards
    async with await Ledger.connect(settings.postgres_url, connections=1) as ledger:
        shards = await ledger.claim_shards(told)
    if shards != told:
        raise SettingsError(
            f"is {told}, but the gate has {shards} shards: set {shards}, or change the gate by"
            f" `flashgrid reconcile --shards {told}`"
        )


async def _check_owner(settings: Settings, first: Shard) -> None:
    """Raise SettingsError if this is the gate of another ledger; the first to ask decides it."""
    async with await Ledger.connect(settings.postgres_url, connections=1) as ledger:
        mine = await ledger.read_identity()
    if await claim_gate(first, mine) != mine:
        raise SettingsError(OTHER_LEDGER)


async def prepare_ledger(url: str, sessions: int = 1) -> list[str]:
    """Check PostgreSQL and that it serves `sessions`, apply the migrations that its schema lacks; return
    their names.

    Raises SettingsError if it can't be used as it is, FlashgridError if it does not answer in time.
    """
    setting = f"{PREFIX}POSTGRES_URL"
    await insist("PostgreSQL", setting, partial(check_postgres, url, sessions), url=url)
    async with await Ledger.connect(url) as ledger:
        return await insist("PostgreSQL", setting, partial(prepare_schema, url, ledger), MIGRATION_S)


def _count_sessions(settings: Settings, roles: Collection[Role]) -> int:
    """Return how many connections to PostgreSQL these roles may use at once."""
    # Each ledger asks each of several hosts whether it is in charge; fulfilment's process has two ledgers.
    asking = len(split_hosts(settings.postgres_url or "")) > 1
    needs = {
        Role.FRONT_DOOR: settings.workers * (LEDGER_CONNECTIONS + asking),
        Role.RELAY: 0,
        Role.FULFILMENT: settings.fulfilment_in_flight + KEEPER_CONNECTIONS + 2 * asking,
    }
    return max(1, sum(needs[role] for role in roles))


def _fill_in(settings: Settings, urls: Mapping[str, str]) -> Settings:
    return msgspec.structs.replace(
        settings,
        redis_url=settings.redis_url or urls.get("redis"),
        postgres_url=settings.postgres_url or urls.get("postgres"),
        amqp_url=settings.amqp_url or urls.get("rabbitmq"),
    )
