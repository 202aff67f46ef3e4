"""Aborting a load that is hopeless: conditions on what the driver has seen so far."""

from collections.abc import Sequence
from typing import Final

from simulation.drive.progress import Progress
from simulation.model.events import Abort
from simulation.model.outcome import REFUSALS
from simulation.scenario.condition import Condition, quantile_of

GRACE_S: Final = 3.0
"""How long every load may go on, from its start: the first requests meet cold connections."""
_NAMED: Final = {"ACCEPTED": "accepted", "SOLD_OUT": "sold_out", "UNKNOWN": "unknown"}


def find_abort(conditions: Sequence[Condition], progress: Progress) -> Abort | None:
    """The first of the conditions that is true of the load so far."""
    if progress.t_s < GRACE_S:
        return None
    for condition in conditions:
        value = measure_progress(condition.metric, progress)
        if value is not None and condition.holds(value):
            return Abort(condition=str(condition), value=value, at_s=progress.t_s)
    return None


def measure_progress(metric: str, progress: Progress) -> float | None:
    """A metric of `parse_abort`: counts and shares of all requests that ended so far, response times of those
    of the last second, in ms; None where there are none."""
    name, _, rest = metric.partition(".")
    if rest.startswith("response."):
        return progress.response_ms(quantile_of(rest.removeprefix("response.")))
    counts = dict.fromkeys(("accepted", "sold_out", "rejected", "error", "unknown"), 0)
    for outcome, count in progress.outcomes.items():
        counts[_NAMED.get(outcome, "rejected" if outcome in REFUSALS else "error")] += count
    counts["all"] = total = sum(counts.values())
    if rest == "count":
        return counts[name]
    return counts[name] / total if total else None
