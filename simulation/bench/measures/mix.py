"""The mix: an open loop of few purchases and many looks, as a crowd is, and what else took its time.

Driver, front door and Redis share a small machine with all other stages. Once they run as they are; once at
real-time priority, where the system allows it, so that no other process makes them wait. A hypervisor may
take time away all the same, which is shown; and an acceptance waits for the disk, which is timed by itself in
the same round.
"""

import asyncio
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import pandas as pd
import psutil

from simulation.bench.measures.disk import time_writes
from simulation.bench.measures.open_loop import CONNECTIONS, PERCENTILES, find_faults
from simulation.bench.results import Mixed
from simulation.bench.rounds import Rounds, Say
from simulation.bench.samples import Cost, Spread
from simulation.bench.subjects import FRONT_DOOR, STATES, Engine
from simulation.drive.driver import LoadSpec, drive
from simulation.drive.plan import Plan
from simulation.drive.progress import Progress
from simulation.judge.numbers.latency import lag_ms, response_ms
from simulation.model.history import BUY, KINDS, STOCK
from simulation.scenario.arrivals import Constant, draw_arrivals
from simulation.scenario.reads import Reads
from simulation.scenario.schema import DriverOptions
from simulation.target.machine import MachineMeter

OPTIONS: Final = DriverOptions(connections=CONNECTIONS, timeout_ms=60_000)
LOOK_AFTER_NS: Final = 300_000_000
"""When a buyer looks at the order: most are settled by then."""
CALM_PERCENT: Final = 2.0
"""A round of which more was stolen tells of the host."""
AS_THEY_ARE: Final = "as they are"
REAL_TIME: Final = "real-time"
PRIORITIES: Final = {"redis": 3, "driver": 2, FRONT_DOOR: 1}
"""Redis works in short bursts, for which the front door waits; the driver must not be late."""
BOUGHT: Final = {"sold out": "SOLD_OUT", "accepting": "ACCEPTED"}
"""What a purchase is answered in each state."""


class Rates(NamedTuple):
    """Requests per second."""

    buys: float
    looks: float

    def stock(self, accepting: bool) -> float:
        """Return how many of the looks are at the stock: where purchases are accepted, each buyer looks once
        at the order."""
        return self.looks - self.buys * accepting


class _Round(NamedTuple):
    """What one measurement found."""

    history: pd.DataFrame
    machine: dict[str, float]
    cpu_s: dict[str, float]
    disk_p99_ms: float | None


async def measure_mix(
    engine: Engine, rates: Rates, rounds: Rounds, note: Say
) -> tuple[list[Mixed], Spread | None, list[Cost]]:
    """Measure both states under both priorities, in turn; return response times by kind of request, the p99
    of a bare fsync beside two other logs, and processor time.

    `note` is told if real-time priority is not allowed.
    """
    priorities = [AS_THEY_ARE]
    try:
        with at_once(engine.gate_pids()):
            priorities.append(REAL_TIME)
    except (OSError, AttributeError) as error:
        note(f"the mix is measured without real-time priority, which is not allowed here: {error}")
    rows = [(state, priority) for state in STATES for priority in priorities]
    found = await rounds.repeat(
        {
            f"mix, {state}, {priority}": partial(_load, engine, rates, rounds.seconds, state, priority)
            for state, priority in rows
        }
    )
    mixed, costs = [], []
    for (state, priority), results in zip(rows, found, strict=True):
        mixed += _describe(state, priority, rates, results)
        spent = [(result.cpu_s, len(result.history)) for result in results]
        costs.append(Cost.of(f"mix, {state}, {priority}", CONNECTIONS, spent))
    disk_ms = [result.disk_p99_ms for results in found for result in results if result.disk_p99_ms]
    return mixed, Spread.of(disk_ms) if disk_ms else None, costs


async def _load(engine: Engine, rates: Rates, seconds: float, state: str, priority: str) -> _Round:
    """Load the engine once; of a sale that accepts, time the bare disk afterwards."""
    await engine.open_sale(STATES[state])
    plan = plan_mix(rates, seconds, STATES[state] > 0)
    watch = Watch(seconds, priority == REAL_TIME)
    async with engine.count_cpu() as cpu_s:
        with at_once(engine.gate_pids() if priority == REAL_TIME else {}):
            load = LoadSpec(plan, (engine.url,), OPTIONS, on_progress=watch.look)
            history = (await drive(load)).history
        await engine.drain()
    cpu_s["driver"] = watch.driver_cores * seconds
    disk_p99_ms = None
    if STATES[state]:
        _, disk_p99_ms, _ = await asyncio.to_thread(time_writes, seconds, 2)
    return _Round(history, watch.machine(), cpu_s, disk_p99_ms)


def plan_mix(rates: Rates, seconds: float, accepting: bool) -> Plan:
    """Return purchases and looks as Poisson streams."""
    buys, looks = (
        draw_arrivals([Constant(seconds=seconds, rate_rps=rate_rps)], np.random.SeedSequence(seed))
        for seed, rate_rps in ((1, rates.buys), (2, rates.stock(accepting)))
    )
    order = np.argsort(np.concatenate([buys, looks]), kind="stable")
    kind = np.repeat(np.array([BUY, STOCK], np.uint8), [len(buys), len(looks)])[order]
    size = len(order)
    return Plan(
        intended_ns=np.concatenate([buys, looks])[order],
        kind=kind,
        user_id=np.where(kind == BUY, np.random.default_rng(1).integers(1, 1_000_000, size), 0),
        product_id=np.ones(size, np.int64),
        key=[None] * size,
        reads=Reads(order_share=1.0, most=1) if accepting else None,
        poll_ns=np.where(kind == BUY, LOOK_AFTER_NS, 0) if accepting else None,
    )


class Watch:
    """Watches the machine and the driver's process during a load, and gives the latter its priority."""

    def __init__(self, seconds: float, real_time: bool) -> None:
        self._seconds = seconds
        self._real_time = real_time
        self._driver: psutil.Process | None = None
        self._machine = MachineMeter()
        self._spans: list[tuple[float, dict[str, float]]] = []
        self._looked_s = self._started_s = 0.0
        self._idle_s = 0.0
        self.driver_cores = 0.0
        """Processor time of the driver for each second of the load."""

    def look(self, progress: Progress) -> None:
        """Take a look; the first one is before the start."""
        now_s = time.monotonic()
        if self._driver is None:
            self._driver = find_driver()
            if self._driver and self._real_time:
                _set_priority(self._driver.pid, PRIORITIES["driver"])
        if progress.t_s < 0 or self._driver is None:
            return
        if not self._looked_s:
            self._machine.read()
            self._started_s, self._idle_s = now_s, _cpu_s(self._driver) or 0.0
        elif progress.t_s < self._seconds + 0.1:
            self._spans.append((now_s - self._looked_s, self._machine.read()))
            if spent_s := _cpu_s(self._driver):
                self.driver_cores = (spent_s - self._idle_s) / (now_s - self._started_s)
        self._looked_s = now_s

    def machine(self) -> dict[str, float]:
        """Return what the machine did during the load, in percent; 0 where it could not be read."""
        weights = [seconds for seconds, _ in self._spans] or [1.0]
        spans = [read for _, read in self._spans] or [{}]
        # The kernel adds up pressure a few times a second: a span may seem to hold more than its time.
        return {
            name: min(100.0, float(np.average([read.get(name, 0.0) for read in spans], weights=weights)))
            for name in ("stolen_percent", "cpu_pressure_percent", "io_pressure_percent")
        }


def find_driver() -> psutil.Process | None:
    """Return the process of the open-loop driver that runs."""
    for child in psutil.Process().children():
        try:
            if "simulation.drive.process" in child.cmdline():
                return child
        except psutil.NoSuchProcess:
            continue
    return None


def _cpu_s(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return None
    return float(times.user + times.system)


@contextmanager
def at_once(pids: Mapping[str, int]) -> Iterator[None]:
    """Run the processes, by their names in PRIORITIES, before all ordinary ones. Raises OSError."""
    try:
        for name, pid in pids.items():
            _set_priority(pid, PRIORITIES[name])
        yield
    finally:
        for pid in pids.values() if hasattr(os, "sched_setscheduler") else ():
            os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))


def _set_priority(pid: int, priority: int) -> None:
    # What it forks, as Redis does to write its file anew, is ordinary.
    os.sched_setscheduler(pid, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


def _describe(state: str, priority: str, rates: Rates, results: Sequence[_Round]) -> list[Mixed]:
    """Return a row for each kind of request."""
    machine = {name: Spread.of(result.machine[name] for result in results) for name in results[0].machine}
    lags_ms = Spread.of(np.percentile(lag_ms(result.history), 99) for result in results)
    faults = find_faults((result.history for result in results), OPTIONS)
    offered_rps = {"buy": rates.buys, "stock": rates.stock(STATES[state] > 0), "order": rates.buys}
    rows = []
    for kind in KINDS if STATES[state] else KINDS[:2]:
        parts = [result.history[result.history["kind"] == kind] for result in results]
        times = [response_ms(part, OPTIONS.timeout_ms) for part in parts]
        p99_ms = [float(np.percentile(took, 99)) for took in times]
        calm = [
            (p99, result.disk_p99_ms)
            for p99, result in zip(p99_ms, results, strict=True)
            if result.machine["stolen_percent"] < CALM_PERCENT
        ]
        over = [p99 - disk for p99, disk in calm if disk is not None and kind == "buy"]
        expected = BOUGHT[state] if kind == "buy" else "SHOWN"
        rows.append(
            Mixed(
                state=state,
                priorities=priority,
                kind=kind,
                offered_rps=offered_rps[kind],
                ms={
                    name: Spread.of(np.percentile(took, rank) for took in times)
                    for name, rank in PERCENTILES.items()
                },
                calm_p99_ms=Spread.of(p99 for p99, _ in calm) if calm else None,
                over_disk_ms=Spread.of(over) if over else None,
                lag_p99_ms=lags_ms,
                lost=sum(int((part["outcome"] != expected).sum()) for part in parts),
                faults=faults,
                **machine,
            )
        )
    return rows
