"""Stops a load that is hopeless: conditions on what the driver has seen so far."""

from collections.abc import Sequence
from typing import Final

from simulation.drive.progress import Progress
from simulation.model.events import Abort
from simulation.model.outcome import OUTCOMES, REFUSALS
from simulation.scenario.condition import Condition, quantile_of

GRACE_S: Final = 3.0
"""How long every load may go on, from its start: the first requests meet cold connections."""


def find_abort(conditions: Sequence[Condition], progress: Progress) -> Abort | None:
    """Return the first of the conditions that is true of the load so far."""
    if progress.t_s < GRACE_S:
        return None
    for condition in conditions:
        value = measure_progress(condition.metric, progress)
        if value is not None and condition.holds(value):
            return Abort(condition=str(condition), value=value, at_s=progress.t_s)
    return None


def measure_progress(metric: str, progress: Progress) -> float | None:
    """Return a metric of `parse_abort`: counts and shares of all requests that have ended, response times in
    ms of those that ended in the last second; None where there are none."""
    name, _, rest = metric.partition(".")
    if rest.startswith("response."):
        return progress.response_ms(quantile_of(rest.removeprefix("response.")))
    outcomes = {"all": OUTCOMES, "rejected": REFUSALS, "error": ("UNAVAILABLE",)}.get(name, (name.upper(),))
    count = sum(progress.outcomes[outcome] for outcome in outcomes)
    if rest == "count":
        return count
    total = sum(progress.outcomes.values())
    return count / total if total else None
