"""Drives a load through Locust: starts its master and workers, and merges what they saw into a history.

A worker sends up to a few thousand requests a second; more of them, here or on other machines, share a plan.
"""

import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from simulation.drive.child import Child, run_together, start_child
from simulation.drive.driver import READY_S, DriveResult, LoadSpec, carry_out, resolve
from simulation.drive.locust.job import LOOPBACK, Follow, Lead, Listening
from simulation.drive.parts import deal

MODULE: Final = "simulation.drive.locust.process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Locust:
    """How a load is driven through Locust."""

    say: Callable[[str], None]
    """Hears where Locust is to be found."""
    awaits_workers: bool = False
    """Whether all workers are started elsewhere; otherwise as many as the options say are started here."""
    bind: str = LOOPBACK
    port: int = 0
    """Where the master waits for workers; 0 is a free port."""
    web_port: int | None = None
    """Of Locust's page, on loopback; 0 is a free one, None: no page."""
    wait_s: float = 60.0
    """Longest wait for workers."""

    async def drive(self, load: LoadSpec) -> DriveResult:
        """Send a load as the open-loop driver does; `options.processes` is the number of workers."""
        async with AsyncExitStack() as cleanup:
            folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="flashsim-"))
            parts = deal(load.plan, await resolve(load.url), load.options, Path(folder))
            count = f"{len(parts)} worker{'s' * (len(parts) != 1)}"
            job = Lead(
                parts=[part.job for part in parts],
                url=load.url,
                bind=self.bind,
                port=self.port,
                web_port=self.web_port,
                wait_s=self.wait_s,
            )
            master = await cleanup.enter_async_context(start_child(MODULE, "Locust's master", job))
            listening = msgspec.json.decode(await master.expect(), type=Listening)
            if listening.web_port is not None:
                self.say(f"Locust's page: http://{LOOPBACK}:{listening.web_port}/")
            workers: list[Child] = []
            if self.awaits_workers:
                self.say(
                    f"waiting for {count} at {self.bind}:{listening.port}:"
                    f" flashsim locust --worker --master-host HOST --port {listening.port}"
                )
            else:
                follow = Follow(host=LOOPBACK, port=listening.port, wait_s=self.wait_s)
                workers = [
                    await cleanup.enter_async_context(start_child(MODULE, "a worker", follow)) for _ in parts
                ]
            driving = carry_out(load, [master], parts, self.wait_s + READY_S)
            driven: DriveResult = (await run_together(driving, *(worker.await_end() for worker in workers)))[
                0
            ]
            return replace(driven, driver=f"Locust {version('locust')}, {count}")


async def work(host: str, port: int, wait_s: float) -> None:
    """Work for the master at that address until the load is over. Raises DriverError.

    When it is cancelled the master hears of it.
    """
    async with start_child(MODULE, "the worker", Follow(host=host, port=port, wait_s=wait_s)) as worker:
        await worker.await_end()
