"""Probes: what gate, outbox, bus, ledger and processes hold while a run goes on, several times a second.

The timeline has one row for each sample. The cells of a store that could not be read are empty.

t_s                     seconds from the run's start
stock_remaining         units left at the gate, of the run's sales
outbox_entries          batches accepted and not yet relayed
outbox_wait_ms          how long the first of them has waited, by the gate's clock; 0 without any
pending_orders          orders accepted and not yet settled
queue_messages          messages ready in the bus
ledger_confirmed        orders confirmed, by the ledger's own count of sold units
ledger_failed           orders whose payment failed, by the units that were released to the gate
cpu_percent NAME        CPU of the processes of that name; 100 is one core
rss_mib NAME            their resident memory
node NAME               the node in charge of NAME where there are several: shard N, queue, ledger; empty
                        where there is nobody, or nobody could tell
clock_shift_ms          by how much this machine's clock was set since the run's start
stolen_percent, cpu_pressure_percent, io_pressure_percent    what the machine did since the sample before
                        (simulation.target.machine)
"""

import asyncio
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final, Self

import msgspec
import pandas as pd

from engine.tasks import cancel
from simulation.target.cluster.roles import Roles
from simulation.target.machine import MachineMeter
from simulation.target.process_meter import ProcessMeter, Usage
from simulation.target.stores import Store, close_stores, read_stores

SAMPLE_S: Final = 0.2
TIMEOUT_S: Final = 0.5
LAST_S: Final = 10.0
"""Longest time of the last sample: no other comes after it that would show what it missed."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was read at one moment; None where a store could not be read."""

    at_ns: int
    """time.monotonic_ns()"""
    clock_ns: int = 0
    """time.time_ns()"""
    stock_remaining: int | None = None
    outbox_entries: int | None = None
    outbox_wait_ms: int | None = None
    pending_orders: int | None = None
    queue_messages: int | None = None
    ledger_confirmed: int | None = None
    ledger_failed: int | None = None
    closed_shards: int | None = None
    """Shards of the gate that sell nothing now, because their memory is in doubt."""
    in_charge: dict[str, str] = {}
    """The node in charge of each shard, of the queue and of the ledger, where there are several."""
    processes: dict[str, Usage] = {}
    machine: dict[str, float] = {}
    """What the machine did since the sample before, in percent; without what could not be read."""


_COUNTS: Final = [
    name
    for name in Sample.__struct_fields__
    if name not in ("at_ns", "clock_ns", "closed_shards", "in_charge", "processes", "machine")
]
"""The counts that are columns of the timeline."""


class Probe:
    """Takes a sample about five times a second until the end of `async with`, and one at its end.

    Without stores it reads processes alone.
    """

    def __init__(self, stores: Sequence[Store], meter: ProcessMeter, roles: Roles | None = None) -> None:
        self.samples: list[Sample] = []
        self._stores = stores
        self._meter = meter
        self._roles = roles or Roles(None, 1)
        self._machine = MachineMeter()

    @property
    def latest(self) -> Sample | None:
        """The newest sample."""
        return self.samples[-1] if self.samples else None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run(), name="probe")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            await cancel(self._task)
            if kind is None:
                # On the old connections an interrupted question may stand in the way.
                await close_stores(self._stores)
                await self._sample(LAST_S)
        finally:
            await close_stores(self._stores)
            await self._roles.close()

    def timeline(self, t0_ns: int, started_at: datetime) -> pd.DataFrame:
        """Return the samples since the run's start, `t0_ns` on time.monotonic_ns()."""
        rows = []
        start_ns = round(started_at.timestamp() * 1e6) * 1_000
        for sample in [sample for sample in self.samples if sample.at_ns >= t0_ns]:
            row = {name: getattr(sample, name) for name in _COUNTS}
            row["t_s"] = round((sample.at_ns - t0_ns) / 1e9, 3)
            row["clock_shift_ms"] = round((sample.clock_ns - start_ns - sample.at_ns + t0_ns) / 1e6, 3)
            for name, usage in sample.processes.items():
                row[f"cpu_percent {name}"] = usage.cpu_percent
                row[f"rss_mib {name}"] = usage.rss_mib
            row |= sample.machine | {f"node {role}": node for role, node in sample.in_charge.items()}
            rows.append(row)
        columns = ["t_s", *_COUNTS, *sorted({name for row in rows for name in row} - {"t_s", *_COUNTS})]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype(dict.fromkeys(_COUNTS, "Int64") | {"t_s": "float64"})

    async def _run(self) -> None:
        while True:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._sample(TIMEOUT_S))
                group.create_task(asyncio.sleep(SAMPLE_S))

    async def _sample(self, timeout_s: float) -> None:
        at_ns, clock_ns = time.monotonic_ns(), time.time_ns()
        processes, machine = self._meter.read(), self._machine.read()
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read_stores(self._stores, timeout_s))
            asking = group.create_task(self._roles.read())
        self.samples.append(
            Sample(
                at_ns=at_ns,
                clock_ns=clock_ns,
                in_charge=asking.result(),
                processes=processes,
                machine=machine,
                **reading.result(),
            )
        )
