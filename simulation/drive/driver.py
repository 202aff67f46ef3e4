"""The driver: deals a plan over processes, starts them at one instant, and merges what they saw into a
history."""

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.drive.child import Child
from simulation.drive.job import Job
from simulation.drive.plan import Plan
from simulation.drive.progress import Gauge, Progress
from simulation.errors import DriverError
from simulation.model.history import DTYPES, make_history
from simulation.model.outcome import OUTCOMES, RESULTS, result_of
from simulation.scenario.schema import DriverOptions

OPEN_LOOP: Final = "open-loop driver"
"""The driver that this module is."""
READY_S: Final = 60.0
"""Longest time in which the processes must be ready."""
HEAD_START_S: Final = 0.3
"""From the moment at which all are ready to the start."""


Address = tuple[str, int, str, str]
"""Numeric address, port, Host header and path of the purchases."""


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
    gauge = Gauge(children, len(plan), start)
    await until_first_error(follow, beside=gauge.report(on_progress or (lambda _: None), stop))
    history = _merge(plan, parts or children)
    if on_progress is not None:
        on_progress(replace(gauge.read(), planned=len(history), done=len(history)))
    return DriveResult(history, start, started_at)


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
