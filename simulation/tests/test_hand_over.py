"""A sale in which other servers take over from those that go on answering: nobody loses or waits long."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from engine.settings import Settings
from engine.tests.proxy import Proxy
from engine.tests.replicas import run_redis_pair, run_standby
from engine.tests.test_in_charge import count_orders
from simulation.drive.progress import Progress
from simulation.judge.numbers.recovery import measure_recovery
from simulation.model.events import Interval
from simulation.model.history import take_buys
from simulation.record.facts import read_timeline
from simulation.record.history import read_history
from simulation.record.state import read_state
from simulation.run import run
from simulation.scenario.loading import load_scenario
from simulation.target.probes import Sample
from simulation.target.services import Services
from simulation.verdict import judge_run

pytestmark = pytest.mark.slow

SALE: Final = {
    # So slow that a hand-over that takes as long as it may turns away no more than one request in ten.
    "arrivals.0.seconds": 50,
    "arrivals.0.rate_rps": 240,
    "sales.0.stock": 10_000,
    # What this machine has time for, while it runs the tests, says nothing about the engine.
    "driver.late_p99_ms": 60_000,
    "driver.timeout_ms": 20_000,
}
SETTLES_WITHIN_S: Final = 10.0
WORKS_WITHIN_S: Final = {"redis": 5.0, "postgres": SETTLES_WITHIN_S}
"""From the hand-over's beginning."""


class Sold:
    """Tells how far a run's sale is."""

    def __init__(self) -> None:
        self.progress: Progress | None = None
        self._heard = asyncio.Event()

    def watch(self, progress: Progress | None, _sample: Sample | None, _ended: Sequence[Interval]) -> None:
        self.progress = progress
        self._heard.set()

    async def reach(self, accepted: int) -> None:
        """Return once so many purchases were accepted."""
        while self.progress is None or self.progress.outcomes["ACCEPTED"] < accepted:
            self._heard.clear()
            await self._heard.wait()

    async def do(self, on: str, act: Callable[[], Awaitable[None]]) -> Interval:
        """Let another server take over: when that was."""
        assert self.progress is not None
        started_ns = time.monotonic_ns()
        await act()
        start_s, end_s = ((at - self.progress.t0_ns) / 1e9 for at in (started_ns, time.monotonic_ns()))
        return Interval(kind="hand over", on=on, start_s=start_s, end_s=end_s)


async def test_both_stores_hand_over_in_one_sale(settings: Settings, stack_dir: Path, tmp_path: Path) -> None:
    assert settings.postgres_url
    folder, sold = tmp_path / "run", Sold()
    async with (
        run_redis_pair(stack_dir) as pair,
        run_standby(settings.postgres_url, stack_dir) as standby,
        Proxy(pair.url).listen() as redis,
        Proxy(standby.primary_url).listen() as postgres,
    ):

        async def hand_over() -> list[Interval]:
            await sold.reach(2_000)
            redis.point_to(pair.replica_port)
            first = await sold.do("redis", pair.hand_over)
            await sold.reach(5_000)
            postgres.point_to(standby.port)
            return [first, await sold.do("postgres", standby.take_over)]

        services = Services(redis_url=redis.url, postgres_url=postgres.url, amqp_url=settings.amqp_url)
        handing = asyncio.create_task(hand_over())
        scenario = load_scenario("single-fault", SALE)
        await run(scenario, folder, print, watch=sold.watch, services=services)
        changes = await asyncio.wait_for(handing, 10)
        stale, current = await count_orders(standby.primary_url), await count_orders(standby.url)

    summary = judge_run(folder)
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    assert 2_000 < stale < current == 10_000
    history, state = take_buys(read_history(folder / "history.parquet")), read_state(folder)
    for change in measure_recovery(history, read_timeline(folder), changes):
        assert change.recovered_after_s is not None
        took_s = change.end_s - change.start_s + change.recovered_after_s
        assert took_s < WORKS_WITHIN_S[change.on]
    assert state.orders is not None
    assert (state.orders["settled_us"] - state.orders["accepted_us"]).max() < SETTLES_WITHIN_S * 1e6
