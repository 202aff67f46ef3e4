"""The driver: deals a plan over processes, starts them at one instant, and merges what they saw into a
history."""

import asyncio
import contextlib
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.driver_process import RESPONSE_EDGES_MS, SNAPSHOT_S, Job, Snapshot
from simulation.errors import DriverError
from simulation.history import DTYPES, make_history
from simulation.outcome import OUTCOMES, RESULTS, result_of
from simulation.plan import Plan
from simulation.scenario import DriverOptions

READY_S: Final = 60.0
"""Longest time in which the processes must be ready."""
HEAD_START_S: Final = 0.3
"""From the moment at which all are ready to the start."""
RECENT: Final = round(1 / SNAPSHOT_S)
"""Snapshots that "recent" spans: a second."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, all processes together."""

    t0_ns: int
    """The run's start on time.monotonic_ns()."""
    t_s: float
    """Seconds since then; below 0 before the start."""
    planned: int
    intended: int
    """Requests whose intended start has passed."""
    sent: int
    done: int
    """Requests that ended, with an answer or without."""
    outcomes: dict[str, int]
    recent_responses: npt.NDArray[np.int64]
    """Response times of the last second: counts below each of RESPONSE_EDGES_MS, and at the end those
    above."""

    def response_ms(self, share: float) -> float | None:
        """The response time that `share` of the last second's answers stayed below, to 12 %; None without
        answers."""
        below = np.cumsum(self.recent_responses)
        if below[-1] == 0:
            return None
        bucket = int(np.searchsorted(below, share * below[-1]))
        return float(RESPONSE_EDGES_MS[min(bucket, len(RESPONSE_EDGES_MS) - 1)])


@dataclass(frozen=True, slots=True)
class DriveResult:
    """What the driver saw."""

    history: pd.DataFrame
    t0_ns: int
    """The run's start on time.monotonic_ns()."""
    started_at: datetime
    """The same instant, UTC."""


async def drive(
    plan: Plan,
    url: str,
    options: DriverOptions,
    *,
    t0_ns: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> DriveResult:
    """Sends the plan to the engine at `url` (http://host:port) and returns when every request has ended.

    The run starts at `t0_ns` (time.monotonic_ns), or as soon as all processes are ready. `on_progress` is
    called about four times a second and once more at the end. Raises DriverError if the URL is of no use, a
    process dies, or `t0_ns` comes too soon. When it is cancelled the processes are ended.
    """
    host, port, authority, path = await _resolve(url)
    count = min(options.processes, max(len(plan), 1))
    with tempfile.TemporaryDirectory(prefix="flashsim-") as folder:
        children: list[_Child] = []
        try:
            for number in range(count):
                # Dealt in turn, so that each process gets the whole curve at a share of its rate.
                child = _Child(number, np.arange(number, len(plan), count), Path(folder))
                children.append(child)
                job = Job(
                    plan=str(child.write_plan(plan)),
                    result=str(child.result),
                    host=host,
                    port=port,
                    authority=authority,
                    path=path,
                    connections=options.connections,
                    timeout_ms=options.timeout_ms,
                    connection_per_request=options.connection_per_request,
                )
                await child.start(job)
            await _until_first_error([child.await_ready() for child in children], READY_S)
            start = time.monotonic_ns() + round(HEAD_START_S * 1e9) if t0_ns is None else t0_ns
            ahead_s = (start - time.monotonic_ns()) / 1e9
            if ahead_s < 0:
                raise DriverError(f"the start had passed {-ahead_s:.2f} s before the driver was ready")
            started_at = datetime.now(UTC) + timedelta(seconds=ahead_s)
            follow = [child.follow(start) for child in children]
            if on_progress is None:
                await _until_first_error(follow)
            else:
                gauge = _Gauge(children, len(plan), start)
                await _until_first_error(follow, beside=gauge.report(on_progress))
                on_progress(gauge.read())
            return DriveResult(_merge(plan, children), start, started_at)
        finally:
            await asyncio.gather(*(child.end() for child in children))


class _Child:
    """A process of the driver, seen from its parent."""

    process: asyncio.subprocess.Process

    def __init__(self, number: int, ops: npt.NDArray[np.int64], folder: Path) -> None:
        self.number = number
        self.ops = ops
        self.plan = folder / f"plan-{number}.npz"
        self.result = folder / f"result-{number}.npz"
        self.errors = folder / f"errors-{number}.txt"
        self.snapshot = Snapshot(0, 0, 0, [0] * len(OUTCOMES), [0] * (len(RESPONSE_EDGES_MS) + 1))

    def write_plan(self, plan: Plan) -> Path:
        np.savez(
            self.plan,
            intended_ns=plan.intended_ns[self.ops],
            user_id=plan.user_id[self.ops],
            product_id=plan.product_id[self.ops],
            key=np.array([plan.key[op] or "" for op in self.ops.tolist()], np.str_),
        )
        return self.plan

    async def start(self, job: Job) -> None:
        with self.errors.open("wb") as errors:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "simulation.driver_process",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        await self._tell(msgspec.json.encode(job))

    async def await_ready(self) -> None:
        if await self._hear() != b"ready\n":
            await self._fail()

    async def follow(self, t0_ns: int) -> None:
        """Starts it, and keeps its latest snapshot until it ends."""
        await self._tell(b"%d" % t0_ns)
        while line := await self._hear():
            self.snapshot = msgspec.json.decode(line, type=Snapshot)
        if await self.process.wait() != 0:
            await self._fail()

    async def end(self) -> None:
        """Ends it if it still runs, and waits until it is gone."""
        if not hasattr(self, "process"):
            return
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        if self.process.stdin:
            self.process.stdin.close()
        await self.process.communicate()

    async def _tell(self, line: bytes) -> None:
        stdin = cast(asyncio.StreamWriter, self.process.stdin)
        with contextlib.suppress(ConnectionError):  # what it died of is found when it is listened to
            stdin.write(line + b"\n")
            await stdin.drain()

    async def _hear(self) -> bytes:
        return await cast(asyncio.StreamReader, self.process.stdout).readline()

    async def _fail(self) -> None:
        code = await self.process.wait()
        said = self.errors.read_text(errors="replace").strip().splitlines()
        raise DriverError(
            f"driver process {self.number} ended with code {code}: {said[-1] if said else 'no word'}"
        )


async def _until_first_error(
    work: list[Any], timeout_s: float | None = None, *, beside: Any | None = None
) -> None:
    """Awaits all of `work`; the first error cancels the rest. `beside` runs as long as they do."""
    tasks = [asyncio.ensure_future(each) for each in work]
    companion = asyncio.ensure_future(beside) if beside else None
    everything = asyncio.gather(*tasks)
    try:
        waiting = {everything, companion} if companion else {everything}
        done, _ = await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            raise DriverError(f"a driver process was not ready in {timeout_s:g} s")
        for each in done:
            each.result()
    finally:
        rest = [*tasks, *([companion] if companion else [])]
        for task in rest:
            task.cancel()
        await asyncio.gather(everything, *rest, return_exceptions=True)


class _Gauge:
    """Merges the snapshots of the children."""

    def __init__(self, children: list[_Child], planned: int, t0_ns: int) -> None:
        self.children = children
        self.planned = planned
        self.t0_ns = t0_ns
        zero = np.zeros(len(RESPONSE_EDGES_MS) + 1, np.int64)
        self.earlier = deque([zero], maxlen=RECENT)

    def read(self) -> Progress:
        snapshots = [child.snapshot for child in self.children]
        responses = np.array([snapshot.responses for snapshot in snapshots], np.int64).sum(axis=0)
        counts = np.array([snapshot.outcomes for snapshot in snapshots]).sum(axis=0).tolist()
        recent = responses - self.earlier[0]
        self.earlier.append(responses)
        return Progress(
            t0_ns=self.t0_ns,
            t_s=(time.monotonic_ns() - self.t0_ns) / 1e9,
            planned=self.planned,
            intended=sum(snapshot.intended for snapshot in snapshots),
            sent=sum(snapshot.sent for snapshot in snapshots),
            done=sum(snapshot.done for snapshot in snapshots),
            outcomes=dict(zip(OUTCOMES, counts, strict=True)),
            recent_responses=recent,
        )

    async def report(self, on_progress: Callable[[Progress], None]) -> None:
        """Calls `on_progress` until it is cancelled."""
        while True:
            on_progress(self.read())
            await asyncio.sleep(SNAPSHOT_S)


def _merge(plan: Plan, children: list[_Child]) -> pd.DataFrame:
    size = len(plan)
    sent_ns, done_ns = np.empty(size, np.int64), np.empty(size, np.int64)
    driver, status = np.empty(size, np.int16), np.empty(size, np.int16)
    outcome = np.empty(size, np.int8)
    order_id = np.full(size, None, object)
    for child in children:
        with np.load(child.result) as saw:
            driver[child.ops] = child.number
            sent_ns[child.ops], done_ns[child.ops] = saw["sent_ns"], saw["done_ns"]
            status[child.ops], outcome[child.ops] = saw["status"], saw["outcome"]
            order_id[child.ops[saw["accepted"]]] = saw["order_id"].astype(object)
    results = np.array([RESULTS.index(result_of(name)) for name in OUTCOMES], np.int8)
    return make_history(
        {
            "op": np.arange(size, dtype=np.int64),
            "driver": driver,
            "user_id": plan.user_id,
            "product_id": plan.product_id,
            "key": plan.key,
            "intended_ns": plan.intended_ns,
            "sent_ns": sent_ns,
            "done_ns": done_ns,
            "status": status,
            "outcome": pd.Categorical.from_codes(outcome, dtype=DTYPES["outcome"]),
            "result": pd.Categorical.from_codes(results[outcome], dtype=DTYPES["result"]),
            "order_id": order_id,
        }
    )


async def _resolve(url: str) -> tuple[str, int, str, str]:
    """Numeric address, port, Host header and path of the purchases."""
    try:
        parts = urlsplit(url)
        port = parts.port or 80
    except ValueError as error:
        raise DriverError(f"{url}: {error}") from None
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.username:
        raise DriverError(f"{url}: must look like http://host:port")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise DriverError(f"{url}: {error.strerror or error}") from None
    addresses = [str(address[0]) for *_, address in found]
    # A name may stand for addresses that nobody listens on: "localhost" is often ::1 and 127.0.0.1.
    for host in addresses if len(addresses) > 1 else []:
        with contextlib.suppress(OSError):
            async with asyncio.timeout(1):
                _, writer = await asyncio.open_connection(host, port)
            writer.close()
            await writer.wait_closed()
            addresses = [host]
            break
    return addresses[0], port, parts.netloc, f"{parts.path.rstrip('/')}/purchase/buy"
