"""Looking: a bounded wait for those who do not buy."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from engine.errors import GateUnavailable, LedgerUnavailable


@asynccontextmanager
async def look(
    slots: asyncio.Semaphore, until_s: float, silence: type[GateUnavailable | LedgerUnavailable]
) -> AsyncIterator[None]:
    """Wait for a slot and hold it for the block. Raises `silence` if the time is up before.

    A third of the time is kept for the block. Where a store is silent, all who wait are given up sooner or
    later, and nobody gets a slot only to begin a connect, which costs much, and to break it off at once.
    """
    now_s = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(until_s - (until_s - now_s) / 3) as bound, slots:
            bound.reschedule(until_s)
            yield
    except TimeoutError:
        raise silence("no answer in time") from None
