"""The requests of a history, chosen and counted by outcome and by span."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.model.outcome import REFUSALS

OUTCOMES: Final = {
    "accepted": ("ACCEPTED",),
    "sold_out": ("SOLD_OUT",),
    "rejected": REFUSALS,
    "error": ("UNAVAILABLE",),
    "unknown": ("UNKNOWN",),
}
"""The outcomes of the history behind each outcome of a summary: `rejected` are refusals other than SOLD_OUT,
`error` certainly reserved nothing."""


def select_outcome(history: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the requests with an outcome of a summary, or `all`."""
    return history if name == "all" else history[history["outcome"].isin(OUTCOMES[name])]


def select_span(history: pd.DataFrame, start_s: float, end_s: float) -> pd.DataFrame:
    """Return the requests whose intended start lies in the span, in seconds from the run's start."""
    return history[(history["intended_ns"] >= start_s * 1e9) & (history["intended_ns"] < end_s * 1e9)]


def count_outcomes(history: pd.DataFrame) -> dict[str, int]:
    """Return how many requests ended with each outcome; the counts add up to the requests."""
    return {name: len(select_outcome(history, name)) for name in OUTCOMES}


def is_decided(history: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return for each request whether its buyer learnt a decision: neither UNAVAILABLE nor UNKNOWN."""
    decided = history["done_ns"].notna() & ~history["outcome"].isin(["UNAVAILABLE", "UNKNOWN"])
    return decided.to_numpy(np.bool_)
