"""The keeper: audits the gate, closes it if it is wrong, rebuilds it, and opens it again."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from redis.exceptions import RedisError

from engine.bus.checks import find_risk
from engine.errors import FlashgridError, SettingsError
from engine.gate.clearing import Clearing
from engine.gate.client import Shard
from engine.gate.configuration import check_configuration
from engine.gate.fence import claim_gate
from engine.ledger.ledger import Ledger
from engine.metrics import UNSAFE
from engine.settings import Settings
from engine.stages.lifecycle import Outage, Pause
from engine.stages.reconciliation import Reconciliation, reconciling

log = logging.getLogger(__name__)

_WATCH_S: Final = 5.0
"""Between two looks at the services' settings."""
_REST_S: Final = 5.0
"""Longest wait until fulfilment rests, which it does not while it has something to do."""


async def run_keeper(settings: Settings, clearing: Clearing, pause: Pause) -> None:
    """Keep the gate forever, with connections of its own.

    It runs in the process of a fulfilment, whose clearing tells whether the gate forgot what it was told, and
    which has to pause before the gate is rebuilt.
    """
    outage = Outage("the keeper")
    was_closed, compared = False, None
    async with reconciling(settings) as reconciliation:
        while True:
            try:
                generation = await reconciliation.read_generation()
                # This asks Redis alone: PostgreSQL may be away.
                if not await clearing.is_remembered():
                    log.warning("the gate has forgotten orders that it was told are settled")
                    await reconciliation.close(generation, clearing.generation)
                servers = await reconciliation.read_servers()
                # A gate that is closed is rebuilt from the ledger anyway.
                if generation and servers != compared and await reconciliation.is_outdated():
                    log.warning("the ledger knows newer orders than the gate")
                    await reconciliation.close(generation)
                is_open = await reconciliation.is_open()
                if is_open:
                    pause.end()
                    await reconciliation.offer_left()
                    found = await reconciliation.audit.run(generation)
                    if found:
                        log.warning(
                            "gate and ledger disagree on %d sales, the first one: %s", len(found), found[0]
                        )
                        await reconciliation.close(generation)
                    await reconciliation.end_doubt()
                    if servers != compared:
                        # Last, since it may take long.
                        await reconciliation.clear_settled(clearing)
                        compared = servers
                else:
                    if not was_closed:
                        log.warning("the gate is closed until it is rebuilt from the ledger")
                    await _drain_and_rebuild(reconciliation, pause)
                was_closed = not is_open
                outage.end()
                await asyncio.sleep(0.5 if is_open else 0.1)
            except Exception as error:
                # Whatever it is, without a keeper a gate that is closed stays closed.
                pause.end()
                await outage.wait(error)


async def _drain_and_rebuild(reconciliation: Reconciliation, pause: Pause) -> None:
    """Take one step towards an open gate."""
    traffic = await reconciliation.read_traffic()
    if traffic.entries or traffic.messages:
        pause.end()
        return
    try:
        async with asyncio.timeout(_REST_S):
            await pause.begin()
    except TimeoutError:
        return  # meanwhile, another keeper may have opened the gate
    if (await reconciliation.read_traffic()).drained:
        await reconciliation.rebuild()


async def watch_settings(shards: Sequence[Shard], ledger: Ledger, amqp_url: str | None = None) -> None:
    """Say when what the start has checked of the services changes, forever."""
    # The start has said the others' risks. It refuses those of a bus, if that answers.
    said, identity = {"RabbitMQ": ""}, ""

    async def identify() -> str:
        nonlocal identity
        identity = identity or await ledger.read_identity()
        return identity

    async def find_risk_of_gate() -> str:
        return await _find_risk_of_gate(shards, await identify())

    async def find_risk_of_bus() -> str:
        return await find_risk(amqp_url or "", await identify())

    risks: dict[str, Callable[[], Awaitable[str]]] = {
        "Redis": find_risk_of_gate,
        "PostgreSQL": partial(_find_risk_of_ledger, ledger),
    }
    if amqp_url:
        risks["RabbitMQ"] = find_risk_of_bus
    while True:
        for service, find in risks.items():
            with suppress(FlashgridError, RedisError, OSError):
                risk = await find()
                UNSAFE.labels(service).set(bool(risk))
                if risk != said.setdefault(service, risk):
                    log.warning("%s", risk or f"the settings of {service} are safe again")
                    said[service] = risk
        await asyncio.sleep(_WATCH_S)


async def _find_risk_of_gate(shards: Sequence[Shard], identity: str) -> str:
    # One that was emptied knows its ledger no more.
    if await claim_gate(shards[0], identity) != identity:
        return "Redis holds the gate of another ledger"
    try:
        risks = {await check_configuration(redis) for redis in {shard.redis for shard in shards}}
    except SettingsError as error:
        return str(error)
    return "; ".join(risks - {""})


async def _find_risk_of_ledger(ledger: Ledger) -> str:
    unsafe = " and ".join(await ledger.find_unsafe())
    return f"PostgreSQL may lose settled orders: set {unsafe} to on" if unsafe else ""
