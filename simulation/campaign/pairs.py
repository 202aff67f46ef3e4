"""Faults in pairs: every two kinds of faults once, the second one soon after the first one or during it.

The seed draws their order, their components and the time between them, for each pair by itself: alone it is
the same as among all others. Writes pairs.json, pairs.md and pairs.html into its folder, beside what is kept
of each run (simulation.campaign.suite).
"""

import random
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any, Final

import msgspec

from simulation.campaign.suite import Suite, judge_planned, read_counts, tell_duration
from simulation.errors import SimulationError
from simulation.report.page import write_tables
from simulation.run import Say
from simulation.scenario.fault import TARGETS, Fault, is_over_at_once, overlap
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.services import Services

CHANGES: Final[dict[str, Any]] = {
    "arrivals.0.seconds": 9,
    "arrivals.0.rate_rps": 1_500,
    "sales.0.stock": 9_000,
    "engine.payment_decline_rate": 0.02,
    "drain_s": 30,
}
"""Changes of the scenario single-fault: longer and slower, with payments that fail."""
LENGTH_S: Final = 1.5
"""Length of a fault that lasts."""
APART_S: Final = (0.1, 1.5)
"""Bounds of the time from the end of the first fault to the start of the second one, soon after it."""
RUN_S: Final = 18
"""What a run takes, with its start and its end, where both faults pass."""


class Pair(msgspec.Struct, frozen=True):
    """Two faults, and what a run with them gave; the numbers are None where there is none."""

    kinds: str
    """As --only takes them."""
    first: str
    second: str
    """Kind and component, and when it began."""
    verdict: str
    verdict_in_words: str
    accepted: int | None = None
    refused: int | None = None
    """Answered 503, or not taken, so that surely nothing was reserved."""
    unknown: int | None = None
    sold: int | None = None
    oversold: int | None = None
    healed_s: float | None = None
    """From the end of the later fault until the engine works as before."""
    drained_s: float | None = None
    """From the end of the load until every purchase was settled."""
    folder: str = ""
    """Where its report is, beside the table; empty without one."""


class Pairs(Suite, kw_only=True):
    """All pairs, and where they come from."""

    pairs: list[Pair] = msgspec.field(default_factory=list)


def list_pairs() -> list[str]:
    """List every unordered pair of kinds, as KIND+KIND."""
    return ["+".join(kinds) for kinds in combinations_with_replacement(TARGETS, 2)]


def draw_pair(kinds: str, seed: int) -> tuple[Fault, Fault]:
    """Return the two faults that a seed gives a pair, in the order of their starts."""
    random_ = random.Random(f"pair {kinds} {seed}")
    first, second = (_draw_fault(kind, random_) for kind in random_.sample(kinds.split("+"), 2))
    first = msgspec.structs.replace(first, at_s=1.5)
    during_s = round(first.at_s + random_.uniform(0.1, 0.9) * first.seconds, 2)
    after_s = round(first.end_s + random_.uniform(*APART_S), 2)
    during = msgspec.structs.replace(second, at_s=during_s)
    if random_.random() < 0.5 and first.seconds and not overlap(first, during):
        return first, during
    return first, msgspec.structs.replace(second, at_s=after_s)


def _draw_fault(kind: str, random_: random.Random) -> Fault:
    on = random_.choice(TARGETS[kind])
    return Fault(kind=kind, on=on, at_s=0, seconds=0 if is_over_at_once(kind, on) else LENGTH_S)


async def run_pairs(
    names: Sequence[str], seed: int, folder: Path, services: Services, say: Say, command: str
) -> Pairs:
    """Run each of the pairs and write the tables; a run that can't be made is a pair that says why."""
    scenario, result = load_scenario("single-fault", CHANGES), Pairs(command=command)
    tell_duration(len(names), RUN_S, say)
    for number, kinds in enumerate(names, 1):
        pair = await _run_pair(scenario, kinds, seed, folder, services)
        result.pairs.append(pair)
        say(f"{number} of {len(names)}: {pair.first}, {pair.second}, {pair.verdict}: {pair.verdict_in_words}")
        # Written after each: what was measured stays if the matrix is interrupted.
        write_pairs(result, folder)
    return result


async def _run_pair(scenario: Scenario, kinds: str, seed: int, folder: Path, services: Services) -> Pair:
    first, second = faults = draw_pair(kinds, seed)
    where = folder / "+".join(f"{fault.kind}-{fault.on}" for fault in faults)
    when = f"{second.at_s - first.end_s:.2f} s later" if second.at_s >= first.end_s else "meanwhile"
    names = (kinds, _describe(first), f"{_describe(second)} {when}")
    try:
        judged = await judge_planned(
            msgspec.structs.replace(scenario, faults=list(faults)),
            where,
            services,
            f"flashsim matrix --pairs --only {kinds} --seed {seed}",
        )
    except SimulationError as error:
        return Pair(*names, verdict="unknown", verdict_in_words=str(error))
    last = max(judged.summary["faults"], key=lambda fault: fault["end_s"])
    counts = read_counts(judged.summary)
    return Pair(*names, healed_s=last["healed_s"], folder=judged.folder.name, **counts)


def _describe(fault: Fault) -> str:
    return f"{fault.kind} {fault.on}".replace("_", " ")


def write_pairs(result: Pairs, folder: Path) -> None:
    """Write the pairs as JSON, Markdown and HTML."""
    verdicts = [pair.verdict for pair in result.pairs]
    write_tables("pairs", result, folder, good=verdicts.count("pass"), total=len(verdicts))
