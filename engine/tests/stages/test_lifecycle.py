"""A stage ends though something in it does not heed its cancellation, and says once what does not work."""

import asyncio

import pytest

from engine.errors import GateUnavailable
from engine.stages.lifecycle import Outage, drain, running


async def lose_one_cancellation() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


@pytest.mark.slow
async def test_a_lost_cancellation_is_repeated() -> None:
    async with running(lose_one_cancellation()):
        await asyncio.sleep(0)
    stop = asyncio.Event()
    stop.set()
    await drain(lose_one_cancellation(), stop, drain_s=0.1)


async def test_an_outage_lasts_while_one_step_fails_beside_others_that_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage, works, failed = Outage("clearing"), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        pass

    async def fail() -> None:
        if not works.is_set():
            failed.set()
            raise GateUnavailable("shard 1 is away")

    with caplog.at_level("INFO", "engine.stages.lifecycle"):
        failing = [asyncio.create_task(outage.insist(fail)) for _ in range(2)]
        await failed.wait()
        for _ in range(5):
            await outage.insist(work)
            assert outage.lasts_s
        failing[0].cancel()
        await asyncio.wait(failing[:1])
        await outage.insist(work)
        assert outage.lasts_s, "the other one still fails"
        works.set()
        await failing[1]
        assert not outage.lasts_s
    assert caplog.messages == [
        "clearing does not work and is tried again: shard 1 is away",
        "clearing works again",
    ]
