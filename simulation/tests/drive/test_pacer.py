"""The pacer beats at its moments, never before, and not in between."""

import asyncio
import time

import pytest
import uvloop

from simulation.drive.pacer import IS_EXACT, pace

PACERS = [False, pytest.param(True, marks=pytest.mark.skipif(not IS_EXACT, reason="no such timers here"))]


@pytest.mark.parametrize("exact", PACERS)
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_it_beats_once_at_each_moment_and_never_early(run: type, exact: bool) -> None:
    start_ns = time.monotonic_ns()
    # One is due already, and some are due together.
    moments = [start_ns + each * 1_000 for each in (-5, 200, 200, 900, 20_000, 20_050)]
    waits, beats = iter([*moments, None]), [start_ns]

    def beat() -> int | None:
        beats.append(time.monotonic_ns())
        return next(waits)

    run(pace(beat, exact))
    assert len(beats) - 2 == len(moments), "it does not spin"
    if exact:
        assert all(at_ns >= moment for at_ns, moment in zip(beats[2:], moments, strict=True))


@pytest.mark.parametrize("exact", PACERS)
async def test_what_a_beat_raises_ends_it(exact: bool) -> None:
    waits = iter([time.monotonic_ns()])

    def fail() -> int | None:
        return next(waits, 0) or 1 // 0

    with pytest.raises(ZeroDivisionError):
        await pace(fail, exact)


@pytest.mark.parametrize("exact", PACERS)
async def test_it_can_be_cancelled_and_beats_no_more(exact: bool) -> None:
    beats = []

    def beat() -> int:
        beats.append(time.monotonic_ns())
        return time.monotonic_ns() + 1_000_000

    pacing = asyncio.create_task(pace(beat, exact))
    while len(beats) < 3:  # noqa: ASYNC110 - the pacer tells of nothing else
        await asyncio.sleep(0)
    pacing.cancel()
    await asyncio.gather(pacing, return_exceptions=True)
    heard = len(beats)
    await asyncio.sleep(0.005)
    assert len(beats) <= heard + (not exact)
