"""The model against throttled machines that it has not seen: their rate, predicted and measured."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from simulation.bench.results import DOORS, SHARDS, Bench
from simulation.capacity.fit import IDLE, fit_role, interval
from simulation.capacity.observations import Observation, name_curve

CAUSES: Final = {
    (DOORS, "accepting"): ("front-door", "accepted"),
    (DOORS, "sold out"): ("front-door", "refused"),
    (SHARDS, "accepting within a limit"): ("redis", "accepted"),
    (SHARDS, "limit reached"): ("redis", "asked"),
}
"""Who is full, and of what, by machines and state."""


class Prediction(NamedTuple):
    """The rate of so many throttled machines."""

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
    """Predict each throttled point of a benchmark by the observations, without those of machines like these:
    those that have the same share of a core.
    """
    found = []
    for curve in bench.scaling:
        seen = name_curve(folder, curve)
        role, cause = CAUSES[curve.machines, curve.state]
        cost = fit_role([each for each in observations if not each.point.startswith(seen)], role)
        for point in curve.points:
            rates = point.size * (curve.share - cost[IDLE]) / np.maximum(cost[cause], 1e-12)
            found.append(
                Prediction(
                    curve.machines,
                    curve.share,
                    curve.state,
                    point.size,
                    point.rps.median,
                    float(rates[0]),
                    *interval(rates),
                    point.doubt,
                )
            )
    return found
