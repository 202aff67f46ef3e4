"""A plan and a check in words, for the terminal and as tables in Markdown."""

import math
from collections.abc import Mapping, Sequence

from simulation.capacity.check import Prediction
from simulation.capacity.fit import IDLE, Costs, Draws, interval
from simulation.capacity.observations import Observation
from simulation.capacity.plan import BUSY, NAMES, Crowd, Need, find_bound

_LEAST_S = 0.1
"""A shorter span tells nothing of a rate."""


def describe_costs(costs: Costs) -> list[str]:
    """Return a line for each role: what a purchase costs it."""
    lines = [f"{'µs of processor time':18} {'accepted':>20} {'refused':>20} {'idle':>20}"]
    for role, cost in costs.items():
        accepted = cost.get("settled", cost.get("accepted"))
        cells = [_between(accepted, 1e6), _between(cost.get("refused"), 1e6), _between(cost[IDLE], 100, " %")]
        lines.append(" ".join([f"{role:18}", *(f"{cell:>20}" for cell in cells)]))
    return lines


def _between(values: Draws | None, factor: float, unit: str = "") -> str:
    if values is None:
        return ""
    value, low, high = (f"{each * factor:.3g}" for each in (values[0], *interval(values)))
    return f"{value}{unit} ({low}–{high})"


def describe_plan(crowd: Crowd, needs: Mapping[str, Need], measured_rps: float) -> list[str]:
    """Return the lines that tell what a crowd needs, and what is full first."""
    lines = [f"{crowd.people:,.0f} shoppers in {crowd.seconds:g} s, {crowd.stock:,.0f} units:"]
    for role, need in needs.items():
        lines.append(f"  {NAMES[role]:18} {_count(need):>16}   one is enough for {_people(need.most_people)}")
    bound = find_bound(needs)
    lines.append(f"  full first: {NAMES[bound.role]}, at {_people(bound.most_people)}")
    return [*lines, f"  {_beyond(crowd, measured_rps)}"]


def _count(need: Need) -> str:
    return f"{need.needed:,}" + ("" if need.low == need.high else f" ({need.low:,}–{need.high:,})")


def _people(people: float) -> str:
    return "any crowd" if math.isinf(people) else f"{people:,.0f} shoppers"


def _beyond(crowd: Crowd, measured_rps: float) -> str:
    times = crowd.people / crowd.seconds / measured_rps
    if times <= 1:
        return f"measured: the runs answered up to {measured_rps:,.0f} a second"
    return f"extrapolated: {times:,.1f} times the {measured_rps:,.0f} a second that the runs answered at most"


def find_measured_rps(observations: Sequence[Observation]) -> float:
    """Return the highest rate of answers that was observed."""
    return max(
        (each.accepted + each.refused + each.asked) / each.seconds
        for each in observations
        if each.seconds >= _LEAST_S
    )


def write_table(crowds: Sequence[Crowd], plans: Sequence[Mapping[str, Need]], measured_rps: float) -> str:
    """Return a table in Markdown: a row for each crowd; the last column says how far it is extrapolated."""
    first = crowds[0]
    head = [
        f"shoppers in {first.seconds:g} s, {first.stock:,.0f} units",
        *NAMES.values(),
        "full first",
        "basis",
    ]
    rows = [head, ["---:"] * (len(head) - 2) + ["---", "---"]]
    for crowd, needs in zip(crowds, plans, strict=True):
        times = crowd.people / crowd.seconds / measured_rps
        rows.append(
            [
                f"{crowd.people:,.0f}",
                *(_count(need) for need in needs.values()),
                NAMES[find_bound(needs).role],
                "measured rate" if times <= 1 else f"{times:,.1f} × the measured rate",
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def describe_check(predictions: Sequence[Prediction]) -> list[str]:
    """Return a line for each throttled point, and the largest error of those that count."""
    lines = [
        f"{each.size} {each.machines} of {each.share:g} cores, {each.state}: {each.measured_rps:,.0f}"
        f" measured, {each.predicted_rps:,.0f} predicted ({each.low_rps:,.0f}–{each.high_rps:,.0f}),"
        f" {each.error:+.1%}" + (f", does not count: {each.doubt}" if each.doubt else "")
        for each in predictions
    ]
    errors = [abs(each.error) for each in predictions if not each.doubt]
    return [*lines, f"largest error of {len(errors)} points: {max(errors, default=math.nan):.1%}"]


def describe_assumptions() -> str:
    """Return what the plan takes for granted."""
    return (
        f"Each process is busy at most {BUSY:.0%} of a core, connections are kept, and machines are like the"
        " one that was measured; network and load balancer are not counted."
    )
