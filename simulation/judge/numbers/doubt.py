"""What besides the engine may have made a number: the driver's own lag, and the machine."""

from typing import Final, NamedTuple

import msgspec
import numpy as np
import pandas as pd

LAG_SHARE: Final = 0.1
"""Largest share of a percentile that the p99 of the driver's lag may have."""
STOLEN_PERCENT: Final = 3.0
"""Most of the processor time that the machine may have lost before the numbers of a run are in doubt."""
LOST_IN_WORDS: Final = "processor time stolen"


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine did during the load; None where it could not be read.

    Percentages of the time of all processors (stolen: a hypervisor gave it to others), and of the time in
    which some task waited (pressure: Linux' PSI, "some").
    """

    stolen_percent: float | None
    stolen_most_percent: float | None
    cpu_pressure_percent: float | None
    io_pressure_percent: float | None

    @property
    def is_disturbed(self) -> bool:
        """Whether more time was stolen than STOLEN_PERCENT."""
        return (self.stolen_percent or 0.0) > STOLEN_PERCENT


class Mark(NamedTuple):
    """Why a percentile is in doubt, and by how many ms it may be too long."""

    reason: str
    excess_ms: float


def measure_machine(timeline: pd.DataFrame, end_s: float = np.inf) -> Machine:
    """Return what the machine did, by the samples of a timeline until `end_s`."""
    names = ("stolen_percent", "cpu_pressure_percent", "io_pressure_percent")
    read = timeline.reindex(columns=["t_s", *names]).astype("float64")
    # Each sample tells of the time since the one before.
    read["seconds"] = read["t_s"].diff().fillna(read["t_s"])
    read = read[(read["t_s"] <= end_s) & (read["seconds"] > 0)]
    mean: dict[str, float | None] = {}
    for name in names:
        known = read.dropna(subset=name)
        mean[name] = (
            round(float(np.average(known[name], weights=known["seconds"])), 2) if len(known) else None
        )
    most = read["stolen_percent"].max()
    return Machine(**mean, stolen_most_percent=None if pd.isna(most) else round(float(most), 2))


def find_mark(value_ms: float | None, lag_p99_ms: float | None, machine: Machine | None) -> Mark | None:
    """Return why a percentile of what clients measured is in doubt; None where it is not.

    `lag_p99_ms` is the p99 of the driver's own lag of the same requests; None for what the driver did not
    measure. On a machine that lost processor time nobody can say how long it would have been.
    """
    if value_ms is None:
        return None
    limited = lag_p99_ms is not None and lag_p99_ms > LAG_SHARE * value_ms
    disturbed = machine is not None and machine.is_disturbed
    if not limited and not disturbed:
        return None
    reasons = ["driver-limited"] * limited + [LOST_IN_WORDS] * disturbed
    return recall_mark(", ".join(reasons), value_ms, lag_p99_ms)


def recall_mark(reason: str, value_ms: float | None, lag_p99_ms: float | None) -> Mark:
    """Return the mark of a percentile that is in doubt for this reason."""
    excess_ms = value_ms if LOST_IN_WORDS in reason or lag_p99_ms is None else lag_p99_ms
    return Mark(reason, excess_ms or 0.0)


def measure_clock_shift(timeline: pd.DataFrame) -> float:
    """Return by how many seconds the clock of the driver's machine was set during the run, at most."""
    shift_ms = timeline.get("clock_shift_ms", pd.Series(dtype="float64")).abs().max()
    return 0.0 if pd.isna(shift_ms) else float(shift_ms) / 1e3
