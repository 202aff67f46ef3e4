"""The model against throttled machines that it has not seen: their rate, predicted and measured."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from simulation.bench.results import DOORS, SHARDS, Bench
from simulation.capacity.fit import IDLE, fit_costs, interval
from simulation.capacity.observations import Observation, name_point

CAUSES: Final = {
    (DOORS, "accepting"): ("front-door", "accepted"),
    (DOORS, "sold out"): ("front-door", "refused"),
    (SHARDS, "accepting"): ("redis", "accepted"),
    (SHARDS, "sold out"): ("redis", "asked"),
}
"""Who is full, and of what, by machines and state."""


class Prediction(NamedTuple):
    """The rate of so many throttled machines."""

    machines: str
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
    """Predict each throttled point of a benchmark by the observations, without those of as many machines."""
    found = []
    for curve in bench.scaling:
        for point in curve.points:
            name = name_point(folder, curve.machines, point.size)
            role, cause = CAUSES[curve.machines, curve.state]
            cost = fit_costs([each for each in observations if each.point != name])[role]
            rates = point.size * (curve.share - cost[IDLE]) / np.maximum(cost[cause], 1e-12)
            found.append(
                Prediction(
                    curve.machines,
                    curve.state,
                    point.size,
                    point.rps.median,
                    float(rates[0]),
                    *interval(rates),
                    point.doubt,
                )
            )
    return found
