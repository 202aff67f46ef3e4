"""The model against throttled machines that it has not seen: their rate, predicted and measured."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from simulation.bench.results import DOORS, SHARDS, Bench
from simulation.capacity.fit import IDLE, fit_role, interval
from simulation.capacity.observations import Observation, name_point, observe_point

CAUSES: Final = {
    (DOORS, "accepting"): ("front-door", "accepted"),
    (DOORS, "sold out"): ("front-door", "refused"),
    (SHARDS, "accepting within a limit"): ("redis", "accepted"),
    (SHARDS, "limit reached"): ("redis", "asked"),
}
"""Who is full, and of what, by machines and state."""


class Prediction(NamedTuple):
    """The rate of so many throttled machines, from a load's start until all of it is settled."""

    machines: str
    share: float
    """Of a core, for each."""
    state: str
    size: int
    measured_rps: float
    predicted_rps: float
    low_rps: float
    high_rps: float
    doubt: str
    """Why the measurement does not count; empty if it does."""

    @property
    def error(self) -> float:
        """By what share of the measured rate the prediction is too high."""
        return self.predicted_rps / self.measured_rps - 1


def check_model(observations: Sequence[Observation], bench: Bench, folder: str) -> list[Prediction]:
    """Predict what more throttled machines of a benchmark in a folder give for the time that they used.

    Observations that were made when as many of these machines were loaded, or more, are left out.
    """
    found = []
    for curve in bench.scaling:
        role, cause = CAUSES[curve.machines, curve.state]
        alike = [each for each in bench.scaling if each.machines == curve.machines]
        for point in curve.points[1:]:
            unseen = {
                name_point(folder, each, other.size)
                for each in alike
                for other in each.points
                if other.size >= point.size
            }
            cost = fit_role([each for each in observations if each.point not in unseen], role)
            rounds = observe_point(curve, point, folder)
            seconds = sum(each.seconds for each in rounds)
            other_s = cost[IDLE] * sum(each.seconds * each.processes[role] for each in rounds)
            other_s += cost["resumed"] * sum(each.resumed for each in rounds)
            counts = (sum(each.cpu_s[role] for each in rounds) - other_s) / np.maximum(cost[cause], 1e-12)
            found.append(
                Prediction(
                    curve.machines,
                    curve.share,
                    curve.state,
                    point.size,
                    sum(getattr(each, cause) for each in rounds) / seconds,
                    float(counts[0]) / seconds,
                    *interval(counts / seconds),
                    point.doubt,
                )
            )
    return found
