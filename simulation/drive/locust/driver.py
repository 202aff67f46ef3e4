"""Drives a load through Locust, in processes of its own, and merges what they saw into a history.

One process sends up to a few thousand requests a second; more of them, on this machine or on others, share
a plan as workers of a master.
"""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from simulation.drive.child import Child
from simulation.drive.driver import READY_S, DriveResult, carry_out, make_job, resolve, until_first_error
from simulation.drive.locust.job import Follow, Lead, Listening, count_users
from simulation.drive.plan import Plan
from simulation.drive.progress import Progress
from simulation.errors import DriverError
from simulation.scenario.schema import DriverOptions

MODULE: Final = "simulation.drive.locust.process"
LOOPBACK: Final = "127.0.0.1"
STOP_S: Final = 5.0
"""What a worker may take to tell its master that it goes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Locust:
    """How a load is driven through Locust."""

    say: Callable[[str], None]
    """Hears where Locust is to be found."""
    awaits_workers: bool = False
    """Whether all workers are started by somebody else; otherwise as many as the options say, here."""
    bind: str = LOOPBACK
    port: int = 0
    """Where the master waits for workers; 0 is a free port."""
    web_port: int | None = None
    """Of Locust's page, on loopback; 0 is a free one, None: no page."""
    wait_s: float = 60.0
    """Longest wait for workers."""

    async def drive(
        self,
        plan: Plan,
        url: str,
        options: DriverOptions,
        *,
        t0_ns: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        stop: asyncio.Event | None = None,
    ) -> DriveResult:
        """Sends the plan as `simulation.driver.drive` does; `options.processes` is the number of workers."""
        address = await resolve(url)
        count = min(options.processes, max(len(plan), 1))
        is_master = self.awaits_workers or count > 1
        with tempfile.TemporaryDirectory(prefix="flashsim-") as name:
            folder = Path(name)
            parts = [
                Child(number, np.arange(number, len(plan), count), folder, module=MODULE, title="a worker")
                for number in range(count)
            ]
            title = "Locust's master" if is_master else "Locust"
            leader = Child(count, np.arange(len(plan)), folder, module=MODULE, title=title)
            job = Lead(
                parts=[make_job(part, plan, address, options) for part in parts],
                url=url,
                is_master=is_master,
                bind=self.bind,
                port=self.port,
                web_port=self.web_port,
                wait_s=self.wait_s,
            )
            try:
                await leader.start(job)
                listening = await _hear_where(leader)
                self._introduce(listening, plan, count)
                workers = parts if is_master and not self.awaits_workers else []
                for worker in workers:
                    await worker.start(Follow(host=LOOPBACK, port=listening.port or 0, wait_s=self.wait_s))
                driving = asyncio.ensure_future(
                    carry_out(
                        plan,
                        [leader],
                        parts=parts,
                        ready_s=self.wait_s + READY_S,
                        t0_ns=t0_ns,
                        on_progress=on_progress,
                        stop=stop,
                    )
                )
                await until_first_error([driving], beside=_watch(workers))
                words = f"Locust {version('locust')}, {_count(count)}"
                return replace(driving.result(), driver=words)
            finally:
                await asyncio.gather(*(child.end() for child in [leader, *parts]))

    def _introduce(self, listening: Listening, plan: Plan, count: int) -> None:
        if listening.web_port is not None:
            _, unit_rps = count_users(plan.intended_ns)
            self.say(
                f"Locust's page: http://{LOOPBACK}:{listening.web_port}/"
                f" (a user stands for {unit_rps:,} requests/s that are due)"
            )
        if self.awaits_workers:
            self.say(
                f"waiting for {_count(count)} at {self.bind}:{listening.port}:"
                f" flashsim locust --worker --master-host HOST --port {listening.port}"
            )


async def work(host: str, port: int, wait_s: float) -> None:
    """Works for the master at that address until the load is over. Raises DriverError.

    When it is cancelled the master hears of it.
    """
    with tempfile.TemporaryDirectory(prefix="flashsim-") as folder:
        worker = Child(0, np.empty(0, np.int64), Path(folder), module=MODULE, title="the worker")
        try:
            await worker.start(Follow(host=host, port=port, wait_s=wait_s))
            await worker.await_end()
        except asyncio.CancelledError:
            if worker.process.stdin:
                worker.process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(worker.process.wait(), STOP_S)
            raise
        finally:
            await worker.end()


async def _hear_where(leader: Child) -> Listening:
    if line := await leader.hear():
        return msgspec.json.decode(line, type=Listening)
    await leader.await_end()
    raise DriverError(f"{leader.title} ended without a word")


async def _watch(workers: list[Child]) -> None:
    """Raises DriverError when a worker does not end in order; never returns."""
    await asyncio.gather(*(worker.await_end() for worker in workers))
    await asyncio.Event().wait()


def _count(workers: int) -> str:
    return f"{workers} worker{'s' * (workers != 1)}"
