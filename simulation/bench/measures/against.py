"""This checkout's engine beside that of another checkout: rates, and what an answer costs in processor time.

What one round finds of both is paired, so that a disturbance of the machine meets both sides of a ratio.
"""

from functools import partial
from typing import Final

from simulation.bench.measures.front_door import Servers, measure_servers
from simulation.bench.results import Against, FrontDoor, ProcessCost, Ratio
from simulation.bench.rounds import Rounds
from simulation.bench.samples import Spread
from simulation.bench.subjects import FRONT_DOOR, GATE, STATES, Engine

CONNECTIONS: Final = 256
COSTS: Final = {"front door": (FRONT_DOOR,), "Redis": ("redis",), "front door and Redis": GATE}


async def compare_engines(this: Engine, other: Engine, commit: str, rounds: Rounds) -> Against:
    """Measure both engines in both states, in turn; `commit` is the other one's."""
    servers: Servers = {
        f"{name}, {state}": partial(engine.measure_state, stock)
        for state, stock in STATES.items()
        for name, engine in (("this", this), ("other", other))
    }
    rows = await measure_servers(servers, rounds, [CONNECTIONS])
    found = {row.subject: row for row in rows}
    ratios = []
    for state in STATES:
        mine, theirs = found[f"this, {state}"], found[f"other, {state}"]
        ratios.append(_pair(f"{state}: answers per second", mine.rps, theirs.rps))
        for what, names in COSTS.items():
            costs = (Spread.of(sample.cpu_us(*names) for sample in row.samples) for row in (mine, theirs))
            ratios.append(_pair(f"{state}: processor time per answer of {what}", *costs))
    return Against(
        commit=commit,
        front_door=rows,
        ratios=ratios,
        processes=_compare_processes(found["this, accepting"], found["other, accepting"]),
    )


def _pair(name: str, mine: Spread, theirs: Spread) -> Ratio:
    ratio = mine.over(theirs)
    return Ratio(name=name, connections=CONNECTIONS, ratio=ratio, interval=ratio.interval())


def _compare_processes(mine: FrontDoor, theirs: FrontDoor) -> list[ProcessCost]:
    """Return what each process of both engines spends on an accepted purchase."""
    names = sorted({name for row in (mine, theirs) for sample in row.samples for name in sample.cpu_s})
    costs = {
        name: [
            Spread.of(1e6 * sample.cpu_s.get(name, 0.0) / max(sample.accepted, 1) for sample in row.samples)
            for row in (mine, theirs)
        ]
        for name in names
        if name != "flashsim"
    }
    return [ProcessCost(process=name, this_us=this, other_us=other) for name, (this, other) in costs.items()]
