"""The keeper: audits the gate, closes it where it is wrong, rebuilds it, and opens it again."""

import asyncio
from typing import Final, Protocol

from redis.exceptions import RedisError

from engine.errors import FlashgridError
from engine.stages.lifecycle import Outage
from engine.stages.reconciliation import Comparison, Reconciliation, log

_WATCH_S: Final = 0.5


_CLOSED_S: Final = 0.1


class Settler(Protocol):
    """The fulfilment of this process."""

    async def rest(self) -> None:
        """Leave the bus once nothing is under way; return when that is so."""
        ...

    def wake(self) -> None:
        """Go on after `rest`."""
        ...

    async def is_remembered(self) -> bool:
        """Whether the gate still knows what this fulfilment told it."""
        ...


async def keep_gate(reconciliation: Reconciliation, settler: Settler) -> None:
    """Watch over the gate for ever: rebuild it where it is closed, close it where it is wrong."""
    outage = Outage("the watch over the gate")
    suspects: list[Comparison] = []
    closed = compared = False
    while True:
        try:
            generation = await reconciliation.read_generation()
            if not compared and await reconciliation.is_outdated():
                log.warning("the ledger knows newer orders than the gate")
                await reconciliation.close(generation)
            compared = True
            if not await settler.is_remembered():
                log.warning("the gate has forgotten orders that it was told are settled")
                await reconciliation.close(generation)
            if await reconciliation.is_open():
                closed = False
                settler.wake()
                found = await reconciliation.audit()
                if found and found == suspects:
                    log.warning(
                        "gate and ledger disagree on %d sales, the first one: %s", len(found), found[0]
                    )
                    await reconciliation.close(generation)
                suspects = found
                pause_s = _WATCH_S
            else:
                if not closed:
                    log.warning("the gate is closed until it is rebuilt from the ledger")
                closed = True
                await _settle_and_rebuild(reconciliation, settler)
                pause_s = _CLOSED_S
            outage.end()
            await asyncio.sleep(pause_s)
        except (FlashgridError, RedisError) as error:
            settler.wake()
            await outage.wait(error)


async def _settle_and_rebuild(reconciliation: Reconciliation, settler: Settler) -> None:
    """One step on the way to an open gate."""
    traffic = await reconciliation.read_traffic()
    if traffic.entries or traffic.messages:
        settler.wake()
        return
    await settler.rest()
    if (await reconciliation.read_traffic()).drained:
        await reconciliation.rebuild()
