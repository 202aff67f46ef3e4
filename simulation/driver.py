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
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol, cast
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

OPEN_LOOP: Final = "open-loop driver"
"""The driver that this module is."""
READY_S: Final = 60.0
"""Longest time in which the processes must be ready."""
HEAD_START_S: Final = 0.3
"""From the moment at which all are ready to the start."""
RECENT: Final = round(1 / SNAPSHOT_S)
"""Snapshots that "recent" spans: a second."""


Address = tuple[str, int, str, str]
"""Numeric address, port, Host header and path of the purchases."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, all processes together."""

    t0_ns: int
    """The run's start on time.monotonic_ns()."""
    t_s: float
    """Seconds from then to the moment of which the counts are; below 0 before the start."""
    planned: int
    """Requests of the plan, and the retries that clients have decided on so far."""
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
    driver: str = OPEN_LOOP
    """What drove it, in words."""


class Drive(Protocol):
    """What drives a load as `drive` does."""

    async def __call__(
        self,
        plan: Plan,
        url: str,
        options: DriverOptions,
        *,
        t0_ns: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        stop: asyncio.Event | None = None,
    ) -> DriveResult:
        """Sends the plan to the engine at `url`."""


async def drive(
    plan: Plan,
    url: str,
    options: DriverOptions,
    *,
    t0_ns: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> DriveResult:
    """Sends the plan to the engine at `url` (http://host:port) and returns when every request has ended,
    and every retry of a client that comes again.

    The run starts at `t0_ns` (time.monotonic_ns), or as soon as all processes are ready. `on_progress` is
    called about four times a second and once more at the end. Once `stop` is set, which is looked at as
    often, no further request is made, and those that were not made are not in the history. Raises DriverError
    if the URL is of no use, a process dies, or `t0_ns` comes too soon. When it is cancelled the processes are
    ended.
    """
    address = await resolve(url)
    count = min(options.processes, max(len(plan), 1))
    with tempfile.TemporaryDirectory(prefix="flashsim-") as folder:
        children: list[Child] = []
        try:
            for number in range(count):
                # Dealt in turn, so that each process gets the whole curve at a share of its rate.
                child = Child(number, np.arange(number, len(plan), count), Path(folder))
                children.append(child)
                await child.start(make_job(child, plan, address, options))
            return await carry_out(plan, children, t0_ns=t0_ns, on_progress=on_progress, stop=stop)
        finally:
            await asyncio.gather(*(child.end() for child in children))


def make_job(child: "Child", plan: Plan, address: Address, options: DriverOptions) -> Job:
    """The job of a process; writes its part of the plan for it to read."""
    host, port, authority, path = address
    return Job(
        plan=str(child.write_plan(plan)),
        result=str(child.result),
        host=host,
        port=port,
        authority=authority,
        path=path,
        connections=options.connections,
        timeout_ms=options.timeout_ms,
        connection_per_request=options.connection_per_request,
        retry_after=frozenset(plan.patience.after if plan.patience else ()),
        most_retries=plan.patience.most if plan.patience else 0,
    )


async def carry_out(
    plan: Plan,
    children: "list[Child]",
    *,
    parts: "list[Child] | None" = None,
    ready_s: float = READY_S,
    t0_ns: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
) -> DriveResult:
    """Starts the processes, which have their jobs, as soon as all are ready, and merges what they saw.

    What was seen lies with the `parts`, where the children are not these themselves.
    """
    await until_first_error([child.await_ready() for child in children], ready_s)
    start = time.monotonic_ns() + round(HEAD_START_S * 1e9) if t0_ns is None else t0_ns
    ahead_s = (start - time.monotonic_ns()) / 1e9
    if ahead_s < 0:
        raise DriverError(f"the start had passed {-ahead_s:.2f} s before the driver was ready")
    started_at = datetime.now(UTC) + timedelta(seconds=ahead_s)
    follow = [child.follow(start) for child in children]
    gauge = _Gauge(children, len(plan), start)
    await until_first_error(follow, beside=gauge.report(on_progress or (lambda _: None), stop))
    history = _merge(plan, parts or children)
    if on_progress is not None:
        on_progress(replace(gauge.read(), planned=len(history), done=len(history)))
    return DriveResult(history, start, started_at)


class Child:
    """A process of a driver, seen from its parent: `module`, which does the requests `ops` of the plan."""

    process: asyncio.subprocess.Process

    def __init__(
        self,
        number: int,
        ops: npt.NDArray[np.int64],
        folder: Path,
        *,
        module: str = "simulation.driver_process",
        title: str = "",
    ) -> None:
        self.number = number
        self.ops = ops
        self.module = module
        self.title = title or f"driver process {number}"
        self.plan = folder / f"plan-{number}.npz"
        self.result = folder / f"result-{number}.npz"
        self.errors = folder / f"errors-{number}.txt"
        self.snapshot = Snapshot(0, 0, 0, [0] * len(OUTCOMES), [0] * (len(RESPONSE_EDGES_MS) + 1))
        self.heard_ns: int | None = None
        """When the snapshot came."""

    def write_plan(self, plan: Plan) -> Path:
        """Writes its part of the plan for it to read."""
        np.savez(
            self.plan,
            intended_ns=plan.intended_ns[self.ops],
            user_id=plan.user_id[self.ops],
            product_id=plan.product_id[self.ops],
            key=np.array([plan.key[op] or "" for op in self.ops.tolist()], np.str_),
            pause_ns=np.empty(0) if plan.pause_ns is None else plan.pause_ns[self.ops],
        )
        return self.plan

    async def start(self, job: msgspec.Struct) -> None:
        """Starts the process and gives it its job."""
        with self.errors.open("wb") as errors:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self.module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
            )
        await self._tell(msgspec.json.encode(job))

    async def await_ready(self) -> None:
        """Waits until it waits for the start. Raises DriverError if it ends before."""
        if await self.hear() != b"ready\n":
            await self._fail()

    async def follow(self, t0_ns: int) -> None:
        """Starts it, and keeps its latest snapshot until it ends."""
        await self._tell(b"%d" % t0_ns)
        while line := await self.hear():
            self.snapshot, self.heard_ns = msgspec.json.decode(line, type=Snapshot), time.monotonic_ns()
        await self.await_end()

    async def await_end(self) -> None:
        """Raises DriverError, with its last words, unless it ends in order."""
        if await self.process.wait() != 0:
            await self._fail()

    async def stop(self) -> None:
        """Lets it make no further request."""
        await self._tell(b"stop")

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

    async def hear(self) -> bytes:
        """Its next line; empty where it says no more."""
        return await cast(asyncio.StreamReader, self.process.stdout).readline()

    async def _fail(self) -> None:
        code = await self.process.wait()
        said = self.errors.read_text(errors="replace").strip().splitlines()
        raise DriverError(f"{self.title} ended with code {code}: {said[-1] if said else 'no word'}")


async def until_first_error(
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

    def __init__(self, children: list[Child], planned: int, t0_ns: int) -> None:
        self.children = children
        self.planned = planned
        self.t0_ns = t0_ns
        zero = np.zeros(len(RESPONSE_EDGES_MS) + 1, np.int64)
        self.earlier = deque([zero], maxlen=RECENT)

    def read(self) -> Progress:
        snapshots = [child.snapshot for child in self.children]
        # A rate is taken over the time between snapshots, however late they are looked at.
        heard_ns = [child.heard_ns for child in self.children if child.heard_ns is not None]
        at_ns = sum(heard_ns) / len(heard_ns) if heard_ns else time.monotonic_ns()
        responses = np.array([snapshot.responses for snapshot in snapshots], np.int64).sum(axis=0)
        counts = np.array([snapshot.outcomes for snapshot in snapshots]).sum(axis=0).tolist()
        recent = responses - self.earlier[0]
        self.earlier.append(responses)
        return Progress(
            t0_ns=self.t0_ns,
            t_s=(at_ns - self.t0_ns) / 1e9,
            planned=self.planned + sum(snapshot.retries for snapshot in snapshots),
            intended=sum(snapshot.intended for snapshot in snapshots),
            sent=sum(snapshot.sent for snapshot in snapshots),
            done=sum(snapshot.done for snapshot in snapshots),
            outcomes=dict(zip(OUTCOMES, counts, strict=True)),
            recent_responses=recent,
        )

    async def report(self, on_progress: Callable[[Progress], None], stop: asyncio.Event | None) -> None:
        """Calls `on_progress` until it is cancelled, and stops the children once `stop` is set."""
        stopped = False
        while True:
            on_progress(self.read())
            if stop is not None and stop.is_set() and not stopped:
                stopped = True
                await asyncio.gather(*(child.stop() for child in self.children))
            await asyncio.sleep(SNAPSHOT_S)


def _merge(plan: Plan, children: list[Child]) -> pd.DataFrame:
    parts = [_read_result(child, plan) for child in children]
    saw = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if not (made := saw.pop("made")).all():
        saw = {name: values[made] for name, values in saw.items()}
    first, outcome = saw["first_op"], saw["outcome"]
    # Retries are numbered after what was planned, in the order in which they were meant to start.
    op = first.copy()
    retries = np.flatnonzero(saw["attempt"])
    op[retries[np.argsort(saw["intended_ns"][retries], kind="stable")]] = len(plan) + np.arange(len(retries))
    results = np.array([RESULTS.index(result_of(name)) for name in OUTCOMES], np.int8)
    return make_history(
        saw
        | {
            "op": op,
            "user_id": plan.user_id[first],
            "product_id": plan.product_id[first],
            "key": [plan.key[number] for number in first.tolist()],
            "outcome": pd.Categorical.from_codes(outcome, dtype=DTYPES["outcome"]),
            "result": pd.Categorical.from_codes(results[outcome], dtype=DTYPES["result"]),
        }
    )


def _read_result(child: Child, plan: Plan) -> dict[str, npt.NDArray[Any]]:
    """What a process saw, as columns: its requests in the order of the plan, and behind them the retries."""
    with np.load(child.result) as saw:
        size = len(saw["sent_ns"])
        planned = len(child.ops)
        intended_ns, attempt = plan.intended_ns[child.ops], np.zeros(planned, np.int16)
        first_op = child.ops
        if size > planned:
            intended_ns = np.concatenate([intended_ns, saw["retry_intended_ns"]])
            attempt = np.concatenate([attempt, saw["attempt"]])
            first_op = np.concatenate([first_op, child.ops[saw["first"]]])
        order_id = np.full(size, None, object)
        order_id[saw["accepted"]] = saw["order_id"].astype(object)
        made = np.ones(size, np.bool_)
        made[saw.get("withdrawn", [])] = False
        return {
            "driver": np.full(size, child.number, np.int16),
            "intended_ns": intended_ns,
            "sent_ns": saw["sent_ns"],
            "done_ns": saw["done_ns"],
            "status": saw["status"],
            "outcome": saw["outcome"],
            "order_id": order_id,
            "attempt": attempt,
            "first_op": first_op,
            "made": made,
        }


async def resolve(url: str) -> Address:
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
