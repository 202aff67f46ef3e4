"""The driver: deals a plan to processes, starts them at one instant, and merges their results."""

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import pandas as pd

from simulation.drive.child import Child, run_together, start_child
from simulation.drive.pacer import IS_EXACT
from simulation.drive.parts import Job, deal, merge_results
from simulation.drive.plan import Plan
from simulation.drive.progress import SNAPSHOT_S, Gauge, Progress
from simulation.errors import DriverError
from simulation.model.address import Address, Tls
from simulation.model.contract import FLASHGRID, Contract
from simulation.model.history import BUY, take_buys
from simulation.scenario.schema import DriverOptions

OPEN_LOOP: Final = "open-loop driver"
"""The driver of this module, in words."""
READY_S: Final = 60.0
"""Longest time in which the processes must be ready."""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What a driver is to send, where to, how, and who watches it."""

    plan: Plan
    urls: tuple[str, ...]
    """The engine's front doors, each as http://host:port or https://host:port."""
    options: DriverOptions
    t0_ns: int | None = None
    """The run's start on time.monotonic_ns(); None: as soon as all processes are ready."""
    on_progress: Callable[[Progress], None] = field(default=lambda _: None)
    """Is called about four times a second, and once more at the end."""
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Once it is set, which is looked at as often, no further request is made; the history leaves out those
    that were not made."""
    exact: bool = IS_EXACT
    """Whether the open loop's starts are exact (simulation.drive.pacer)."""
    contract: Contract = FLASHGRID
    """How requests and answers look there."""
    ca: str | None = None
    """For https: a file with the certificate of an authority; None: the system's authorities."""


class DriveResult(NamedTuple):
    """What a driver saw."""

    history: pd.DataFrame
    t0_ns: int
    """The run's start on time.monotonic_ns()."""
    started_at: datetime
    """The same instant, UTC."""
    driver: str
    """The driver, in words."""


Drive = Callable[[LoadSpec], Awaitable[DriveResult]]
"""A driver: sends a load as `drive` does."""


async def drive(load: LoadSpec) -> DriveResult:
    """Send a load and return when every request has ended, and every retry.

    Raises DriverError if the URL is of no use, a process dies, or the start passes before all are ready. When
    it is cancelled the processes are ended.
    """
    async with AsyncExitStack() as cleanup:
        folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="flashsim-"))
        jobs = deal(load.plan, await find_doors(load), load.options, Path(folder), load.exact)
        children = [
            await cleanup.enter_async_context(
                start_child("simulation.drive.process", f"driver process {number}", job)
            )
            for number, job in enumerate(jobs)
        ]
        return await carry_out(load, children, jobs)


async def carry_out(
    load: LoadSpec, children: Sequence[Child], jobs: list[Job], ready_s: float = READY_S
) -> DriveResult:
    """Start the children, which have their jobs, as soon as all are ready, and merge the results of the
    jobs. Raises DriverError."""
    try:
        async with asyncio.timeout(ready_s):
            await run_together(*(child.expect() for child in children))
    except TimeoutError:
        raise DriverError(f"a driver process was not ready in {ready_s:g} s") from None
    now = time.monotonic_ns()
    # All processes receive the start within 0.3 s.
    start = now + 300_000_000 if load.t0_ns is None else load.t0_ns
    ahead_s = (start - now) / 1e9
    if ahead_s < 0:
        raise DriverError(f"the start passed {-ahead_s:.2f} s before the driver was ready")
    started_at = datetime.now(UTC) + timedelta(seconds=ahead_s)
    gauge = Gauge(len(children), int(np.count_nonzero(load.plan.kind == BUY)), start)

    async def follow(number: int, child: Child) -> None:
        await child.tell(b"%d" % start)
        while line := await child.hear():
            gauge.hear(number, line)
        await child.await_end()

    async def follow_all() -> None:
        await run_together(*(follow(number, child) for number, child in enumerate(children)))

    following = asyncio.create_task(follow_all())
    try:
        while not following.done():
            load.on_progress(gauge.read())
            if load.stop.is_set():
                await run_together(*(child.tell(b"stop") for child in children))
            await asyncio.wait({following}, timeout=SNAPSHOT_S)
        await following
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    history = merge_results(load.plan, jobs)
    bought = len(take_buys(history))
    load.on_progress(gauge.read()._replace(planned=bought, done=bought))
    return DriveResult(history, start, started_at, OPEN_LOOP)


async def find_doors(load: LoadSpec) -> list[Address]:
    """Look up where the requests of a load go. Raises DriverError."""
    return [await _resolve(url, load) for url in load.urls]


async def _resolve(url: str, load: LoadSpec) -> Address:
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise DriverError(f"{url}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise DriverError(f"{url}: must look like http://host:port or https://host:port")
    tls = Tls(parts.hostname, load.ca) if parts.scheme == "https" else None
    hosts = [str(address[0]) for *_, address in found]
    # A name may stand for addresses that nobody listens on: "localhost" is often ::1 and 127.0.0.1.
    for host in hosts if len(hosts) > 1 else []:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
            await writer.wait_closed()
            hosts = [host]
            break
    return Address(hosts[0], port, parts.netloc, parts.path.rstrip("/"), load.contract, tls)
