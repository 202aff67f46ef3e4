"""Drives a load through Locust: starts its master and workers, and merges what they saw into a history.

A worker sends up to a few thousand requests a second; more of them, here or on other machines, share a plan.
"""

import tempfile
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from simulation.drive.child import Child, run_together, start_child
from simulation.drive.driver import READY_S, DriveResult, LoadSpec, carry_out, find_doors
from simulation.drive.locust.job import LOOPBACK, Follow, Lead, Listening
from simulation.drive.parts import deal

MODULE: Final = "simulation.drive.locust.process"


async def drive_locust(
    load: LoadSpec,
    *,
    say: Callable[[str], None],
    awaits_workers: bool = False,
    bind: str = LOOPBACK,
    port: int = 0,
    web: bool = False,
    wait_s: float = 60.0,
    client: str = "own",
) -> DriveResult:
    """Send a load through Locust as the open-loop driver does; `options.processes` is the number of workers.

    `say` is told where Locust listens. The master waits for workers at `bind` and `port`, 0 being a free
    one, for at most `wait_s`; `awaits_workers` if all of them are started elsewhere. `web` serves Locust's
    page, on loopback. `client` is Job.client. Raises DriverError.
    """
    async with AsyncExitStack() as cleanup:
        folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="flashsim-"))
        jobs = deal(load.plan, await find_doors(load), load.options, Path(folder))
        jobs = [msgspec.structs.replace(job, client=client) for job in jobs]
        count = f"{len(jobs)} worker{'s' * (len(jobs) != 1)}"
        job = Lead(parts=jobs, url=", ".join(load.urls), bind=bind, port=port, web=web, wait_s=wait_s)
        master = await cleanup.enter_async_context(start_child(MODULE, "Locust's master", job))
        listening = msgspec.json.decode(await master.expect(), type=Listening)
        if listening.web_port is not None:
            say(f"Locust's page: http://{LOOPBACK}:{listening.web_port}/")
        workers: list[Child] = []
        if awaits_workers:
            say(
                f"waiting for {count} at {bind}:{listening.port}:"
                f" flashsim locust --worker --master-host HOST --port {listening.port}"
            )
        else:
            follow = Follow(host=LOOPBACK, port=listening.port, wait_s=wait_s)
            workers = [
                await cleanup.enter_async_context(start_child(MODULE, "a worker", follow)) for _ in jobs
            ]
        driving = carry_out(load, [master], jobs, wait_s + READY_S)
        driven: DriveResult = (await run_together(driving, *(worker.await_end() for worker in workers)))[0]
        by = "" if client == "own" else f" with its client {client}"
        return driven._replace(driver=f"Locust {version('locust')}{by}, {count}")


async def work(host: str, port: int, wait_s: float) -> None:
    """Work for the master at that address until the load is over. Raises DriverError.

    When it is cancelled the master is told.
    """
    async with start_child(MODULE, "the worker", Follow(host=host, port=port, wait_s=wait_s)) as worker:
        await worker.await_end()
