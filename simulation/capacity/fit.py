"""The cost of a purchase: a plane through what was observed, by least squares, for each role.

A process takes so much time for each purchase that is accepted, for each that is refused, for each look, and
for each second that it runs. None of these is negative. A process behind the gate is charged for what is
settled.

An observation weighs less the more its time may be off: the kernel counts in ticks, and the same work takes
now a twentieth more and now a twentieth less. It weighs less, too, if it lies far from the plane, since the
host takes time away in single rounds (Huber, Robust estimation of a location parameter; the scale is that of
the median residual). The interval is that of a wild bootstrap: the plane is fitted
again to draws, in each of which every observation lies above or below it at random, as far as it does, the
more so the more the plane leans on it (Davidson and Flachaire, The wild bootstrap, tamed at last). With six
points or more, all observations of one lie on the same side (Cameron, Gelbach and Miller, Bootstrap-based
improvements for inference with clustered errors): the interval then holds what runs differ by.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from simulation.capacity.observations import ROLES, Observation
from simulation.errors import RunError

DRAWS: Final = 1_000
VARIES: Final = 0.05
RESTED: Final = 0.2
"""Of its core: a process that was always busier does not show what it needs idle."""
FAR: Final = 1.345
"""Standard deviations from the plane; beyond, an observation pulls no more than at this distance. By this
much, errors that are normal cost a twentieth of the observations."""
FITS: Final = 20
"""Times that the plane is fitted until these weights stand still."""
FEW: Final = 6
"""So few points say too little of how runs differ."""
GATE_CAUSES: Final = ("accepted", "refused", "asked", "looked", "resumed")
CAUSES: Final[Mapping[str, Sequence[str]]] = {
    role: GATE_CAUSES if role in ("front-door", "redis") else ("settled",) for role in ROLES
}
IDLE: Final = "idle"

Draws = npt.NDArray[np.float64]
"""The value, then those of the draws."""
Costs = Mapping[str, Mapping[str, Draws]]
"""By role and cause: seconds of processor time for each purchase; for IDLE, for each second of a process."""


def fit_costs(observations: Sequence[Observation], draws: int = DRAWS) -> Costs:
    """Return what each role needs. Raises RunError for a role of which nothing is known."""
    return {role: fit_role(observations, role, draws) for role in ROLES}


def fit_role(observations: Iterable[Observation], role: str, draws: int = DRAWS) -> dict[str, Draws]:
    """Return what one role needs, by cause. Raises RunError if nothing is known of it."""
    known = [each for each in observations if role in each.cpu_s]
    if not any(getattr(each, CAUSES[role][0]) for each in known):
        raise RunError(f"these runs don't tell what a purchase takes of {role}: give others, too")
    if min(each.cpu_s[role] / (each.seconds * each.processes[role]) for each in known) > RESTED:
        raise RunError(f"these runs don't tell what {role} needs at rest: give one with a quiet time, too")
    names = (*CAUSES[role], IDLE)
    causes = np.array(
        [
            [*(getattr(each, name) for name in CAUSES[role]), each.seconds * each.processes[role]]
            for each in known
        ]
    )
    used = np.array([each.cpu_s[role] for each in known])
    weights = 1 / (np.array([each.tick_s for each in known]) + VARIES * used)
    # Causes of like size: a purchase takes microseconds, a second of idling milliseconds.
    scale = np.maximum(np.linalg.norm(causes * weights[:, None], axis=0), 1e-12)
    rows, wanted = causes * weights[:, None] / scale, used * weights
    trust = _weigh(rows, wanted)
    rows, wanted = rows * trust[:, None], wanted * trust
    found = np.empty((draws + 1, len(names)))
    found[0] = nnls(rows, wanted)[0]
    fitted, active = rows @ found[0], rows[:, found[0] > 0]
    leverage = np.einsum("ij,ji->i", active, np.linalg.pinv(active))
    residuals = (wanted - fitted) / np.maximum(1 - leverage, 0.1)
    residuals *= np.mean(trust**2) / np.mean(trust == 1)  # a draw keeps the weights (Huber)
    groups = np.unique([each.point for each in known], return_inverse=True)[1]
    if groups.max() + 1 < FEW:
        groups = np.arange(len(known))
    signs = np.random.default_rng(1).choice([-1.0, 1.0], (draws, groups.max() + 1))
    for number, sign in enumerate(signs, start=1):
        found[number] = nnls(rows, fitted + residuals * sign[groups])[0]
    return dict(zip(names, (found / scale).T, strict=True))


def _weigh(rows: npt.NDArray[np.float64], wanted: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return by how much each observation weighs, 1 for those near the plane."""
    trust = np.ones(len(wanted))
    for _ in range(FITS):
        away = np.abs(wanted - rows @ nnls(rows * trust[:, None], wanted * trust)[0])
        near = FAR * 1.4826 * np.median(away)
        trust = np.sqrt(np.minimum(1.0, max(near, 1e-12) / np.maximum(away, 1e-12)))
    return trust


def interval(values: Draws) -> tuple[float, float]:
    """Return the 95 % interval of the draws, widened to hold the value."""
    low, high = np.percentile(values[1:], [2.5, 97.5]) if len(values) > 1 else (values[0], values[0])
    return float(min(low, values[0])), float(max(high, values[0]))
