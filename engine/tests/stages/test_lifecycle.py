"""A stage ends even where something in it does not heed its cancellation at once."""

import asyncio

from engine.stages.lifecycle import drain, running


async def lose_one_cancellation() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


async def test_a_lost_cancellation_is_repeated() -> None:
    async with running(lose_one_cancellation()):
        await asyncio.sleep(0)
    stop = asyncio.Event()
    stop.set()
    await drain(lose_one_cancellation(), stop, drain_s=0.1)
