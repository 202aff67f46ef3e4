"""What was answered in a span of time, and the processor time that each kind of process used meanwhile."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from simulation.bench.page import read_bench
from simulation.bench.results import DOORS, SHARDS, Bench, ScaledPoint, ScaledRound, Scaling
from simulation.bench.samples import Sample
from simulation.errors import RunError
from simulation.record.facts import read_timeline
from simulation.record.history import read_history

ROLES: Final = ("front-door", "redis", "relay", "rabbitmq", "fulfilment", "postgres")
"""The processes that a purchase takes time of."""
_USED: Final = "cpu_percent "
TICK_S: Final = 0.01
"""Of the kernel's clock of processor time."""
PRECISE_S: Final = 0.001
"""Throttled processes are timed by the scheduler."""
PERIOD_S: Final = 0.1
"""Of a control group: a process that has used its share waits for the next one."""
_ENGINE: Final = "engine, "
_NOT_FULL: Final = {DOORS: "redis", SHARDS: "front-door"}
"""The role that waits for throttled machines: what it does little at a time costs more than it has to."""


class Observation(NamedTuple):
    """A span of a run, or a round of a benchmark."""

    point: str
    """What it is one of: a run, or the rounds of one measurement."""
    seconds: float
    accepted: float
    refused: float
    """By front doors that repeat for a while what the gate has told them."""
    asked: float
    """Refused by the gate itself, which was asked for each of them."""
    looked: float
    """Reads of stock and orders."""
    settled: float
    cpu_s: dict[str, float]
    """By role; all processes of the role together. Without roles that say nothing of their costs here."""
    processes: dict[str, int]
    """Their number."""
    resumed: float = 0.0
    """How often a throttled process went on, after it had waited for the next period."""
    tick_s: float = TICK_S
    """By how much its processor time may be off."""


def read_observations(folder: Path) -> list[Observation]:
    """Return what a run or a benchmark observed, by its folder. Raises RunError or BenchError."""
    if (folder / "bench.json").exists():
        found = observe_bench(read_bench(folder), str(folder))
    else:
        history = read_history(folder / "history.parquet")
        found = observe_run(history, read_timeline(folder), str(folder))
    if not any(each.cpu_s for each in found):
        raise RunError(f"{folder}: no processor time was recorded of the engine's processes")
    return found


def observe_run(history: pd.DataFrame, timeline: pd.DataFrame, point: str) -> list[Observation]:
    """Return an observation for each span between two readings of the probes."""
    at_s = timeline["t_s"].to_numpy()
    spans = np.diff(at_s)
    done_s = history["done_ns"].to_numpy("float64", na_value=np.nan) / 1e9
    bought = (history["kind"] == "buy").to_numpy()
    refused = bought & history["status"].between(400, 499).to_numpy()
    causes = {
        "accepted": bought & (history["outcome"] == "ACCEPTED").to_numpy(),
        "refused": refused,
        "asked": np.zeros_like(bought),
        "looked": ~bought,
    }
    counts = {name: np.histogram(done_s[which], at_s)[0] for name, which in causes.items()}
    # What happens behind the gate happens a little later: it goes with what was settled.
    settled = np.diff(timeline["ledger_confirmed"].to_numpy("float64", na_value=np.nan))
    counts["settled"] = np.nan_to_num(settled)
    names = [name for name in map(str, timeline) if name.startswith(_USED)]
    used = {name.removeprefix(_USED): timeline[name].to_numpy("float64")[1:] for name in names}
    found = []
    for row, seconds in enumerate(spans.tolist()):
        spent = {name: each[row] / 100 * seconds for name, each in used.items() if np.isfinite(each[row])}
        cpu_s, processes = _by_role(spent)
        numbers = {name: float(each[row]) for name, each in counts.items()}
        found.append(Observation(point=point, seconds=seconds, cpu_s=cpu_s, processes=processes, **numbers))
    return found


def observe_bench(bench: Bench, folder: str) -> list[Observation]:
    """Return an observation for each round at the engine: at saturation, and of throttled machines."""
    found = [
        _observe(sample, f"{folder}: {row.subject}", sample.requests / sample.rps + (sample.drain_s or 0.0))
        for row in bench.front_door
        if row.subject.startswith(_ENGINE)
        for sample in row.samples
    ]
    for curve in bench.scaling:
        for point in curve.points:
            found += observe_point(curve, point, folder)
        found += _observe_throttled(curve, curve.idle, 0, folder)
    return found


def observe_point(curve: Scaling, point: ScaledPoint, folder: str) -> list[Observation]:
    """Return an observation for each round of so many throttled machines."""
    return _observe_throttled(curve, point.rounds, point.size, folder)


def name_point(folder: str, curve: Scaling, size: int) -> str:
    """Return the name of the rounds in which so many of a benchmark's machines were loaded."""
    return f"{folder}: {size} {curve.machines} of {curve.share:g} cores"


def _observe(found: Sample | ScaledRound, point: str, seconds: float, asked: bool = False) -> Observation:
    accepted, refused = float(found.accepted), float(found.refused)
    refusals = (0.0, refused) if asked else (refused, 0.0)
    return Observation(point, seconds, accepted, *refusals, 0.0, accepted, *_by_role(found.cpu_s))


def _observe_throttled(
    curve: Scaling, rounds: Sequence[ScaledRound], size: int, folder: str
) -> list[Observation]:
    name, found = name_point(folder, curve, size), []
    for each in [each for each in rounds if not each.fault]:
        seen = _observe(each, name, each.seconds, asked=curve.machines == SHARDS)
        cpu_s = {role: spent for role, spent in seen.cpu_s.items() if role != _NOT_FULL[curve.machines]}
        resumed = size * each.throttled * each.seconds / PERIOD_S
        found.append(seen._replace(cpu_s=cpu_s, resumed=resumed, tick_s=PRECISE_S))
    return found


def _by_role(cpu_s: Mapping[str, float]) -> tuple[dict[str, float], dict[str, int]]:
    """Return the processor time and the number of the processes of each role; names may end in a number."""
    spent: dict[str, float] = {}
    processes = Counter[str]()
    for name, each_s in cpu_s.items():
        role = re.sub(r" \d+$", "", name)
        if role in ROLES:
            spent[role] = spent.get(role, 0.0) + float(each_s)
            processes[role] += 1
    return spent, dict(processes)
