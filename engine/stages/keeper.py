"""The keeper: audits the gate, closes it if it is wrong, rebuilds it, and opens it again."""

import asyncio
import logging

from engine.gate.clearing import Clearing
from engine.settings import Settings
from engine.stages.lifecycle import Outage, Pause
from engine.stages.reconciliation import Reconciliation, reconciling

log = logging.getLogger(__name__)


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
    await pause.begin()
    if (await reconciliation.read_traffic()).drained:
        await reconciliation.rebuild()
