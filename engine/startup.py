"""What the server provides and checks before it starts a stage, and what the operator's commands work on."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.errors import FlashgridError, SettingsError
from engine.gate.client import connect_redis
from engine.ledger.ledger import Ledger
from engine.settings import PREFIX, Settings
from engine.stages.lifecycle import Outage
from engine.stages.process import Role
from engine.stages.reconciliation import reconciling

log = logging.getLogger(__name__)


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


async def prepare_stores(settings: Settings) -> None:
    """Check Redis, create what is missing of the ledger's schema, and open the gate if it is new.

    A gate that is closed for any other reason waits for the keeper. Raises SettingsError if Redis may evict
    gate data, FlashgridError if a service does not answer in time.
    """
    async with connect_redis(settings.redis_url, settings.gate_timeout_ms) as redis:
        await _insist("Redis", redis.ping)
        await _check_redis(redis)
        if settings.postgres_url is not None:
            async with await Ledger.connect(settings.postgres_url) as ledger:
                await _insist("PostgreSQL", ledger.create_schema)
            async with reconciling(settings) as reconciliation:
                await _insist("the gate", reconciliation.open_new)


def _fill_in(settings: Settings, urls: Mapping[str, str]) -> Settings:
    return msgspec.structs.replace(
        settings,
        redis_url=settings.redis_url or urls.get("redis"),
        postgres_url=settings.postgres_url or urls.get("postgres"),
        amqp_url=settings.amqp_url or urls.get("rabbitmq"),
    )


async def _check_redis(redis: Redis) -> None:
    """Refuse a Redis that may evict gate data; warn of one that may forget an accepted purchase."""
    try:
        config = {
            name: value.decode() if isinstance(value, bytes) else value
            for name in ("maxmemory-policy", "appendonly", "appendfsync")
            for value in (await redis.config_get(name)).values()
        }
    except RedisError as error:
        log.warning("can't read Redis' settings (%s): make sure that maxmemory-policy is noeviction", error)
        return
    if config["maxmemory-policy"] != "noeviction":
        raise SettingsError(
            "Redis may evict gate data: its maxmemory-policy must be noeviction,"
            f" and is {config['maxmemory-policy']}"
        )
    if config["appendonly"] != "yes" or config["appendfsync"] != "always":
        log.warning(
            "Redis may lose accepted purchases if it dies: set appendonly to yes (is %s),"
            " appendfsync to always (is %s)",
            config["appendonly"], config["appendfsync"],
        )  # fmt: skip


async def _insist(name: str, attempt: Callable[[], Any]) -> None:
    """Await `attempt()` until it works. Raises FlashgridError if it does not within half a minute."""
    outage = Outage(name)
    try:
        errors = FlashgridError, RedisError, OSError
        await asyncio.wait_for(outage.insist(attempt, errors), timeout=30)
    except TimeoutError:
        raise FlashgridError(f"{name} does not answer within 30 s: {outage.error or 'no answer'}") from None
