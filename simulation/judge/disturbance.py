"""What a standstill or a fault did to the requests of a run: pure functions of its history."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from simulation.judge.summary import is_trusted, response_ms

LEAST_DUE: Final = 10
"""Fewest requests that must be due while nothing is answered before that is a standstill."""
LEAST_STALL_S: Final = 0.1
NOTABLE_RATIO: Final = 2.0
NOTABLE_MS: Final = 50.0


class Stall(NamedTuple):
    """The longest time in which requests were due and none was answered."""

    start_s: float
    seconds: float
    due: int
    """Requests that were meant to start in it."""
    unsent: int
    """Those of them that were not sent before it was over."""


class Omission(NamedTuple):
    """How far service time hides what buyers waited, for one outcome."""

    outcome: str
    response_p99_ms: float
    service_p99_ms: float
    stall: Stall | None


class Effect(NamedTuple):
    """What became of the requests that were due from a fault's start until the engine worked as before."""

    due: int
    undecided: int
    """Those that were never told whether they bought: no answer, or 503."""
    p99_ms: float | None
    """Response time of those that were answered."""


def find_stall(history: pd.DataFrame) -> Stall | None:
    """The run's longest standstill, None where there is none worth the name."""
    done_ns = np.sort(history["done_ns"].dropna().to_numpy("int64"))
    meant_ns = np.sort(history["intended_ns"].to_numpy("int64"))
    if not len(done_ns):
        return None
    edges = np.concatenate([meant_ns[:1], done_ns])
    due = np.diff(np.searchsorted(meant_ns, edges))
    gaps = np.where(due >= LEAST_DUE, np.diff(edges), 0)
    longest = int(gaps.argmax())
    if gaps[longest] < LEAST_STALL_S * 1e9:
        return None
    start, end = int(edges[longest]), int(edges[longest + 1])
    meant = history[(history["intended_ns"] >= start) & (history["intended_ns"] < end)]
    unsent = meant["sent_ns"].isna() | (meant["sent_ns"] >= end)
    return Stall(start / 1e9, (end - start) / 1e9, len(meant), int(unsent.sum()))


def find_omission(history: pd.DataFrame, summary: Mapping[str, Any]) -> Omission | None:
    """Where service time hides what buyers waited, those who bought first; None where it hides little.

    The difference is what a closed loop leaves out, since it sends nothing while it waits ("coordinated
    omission": Tene).
    """
    for outcome, kinds in summary["latency_ms"].items():
        response, service = kinds["response"]["p99"], kinds["service"]["p99"]
        if response is None or not is_trusted("p99", summary["outcomes"][outcome]):
            continue
        if response >= NOTABLE_RATIO * service and response - service >= NOTABLE_MS:
            return Omission(outcome, response, service, find_stall(history))
    return None


def measure_effect(history: pd.DataFrame, fault: Mapping[str, Any]) -> Effect:
    """What a fault of a summary did, until it was healed and the engine recovered."""
    end_s = fault["end_s"] + (fault["healed_s"] or 0.0)
    if fault["healed_s"] is None:
        end_s = np.inf
    meant_s = history["intended_ns"] / 1e9
    due = history[(meant_s >= fault["start_s"]) & (meant_s < end_s)]
    took = response_ms(due)
    undecided = due["outcome"].isin(["UNKNOWN", "UNAVAILABLE"])
    return Effect(len(due), int(undecided.sum()), float(np.percentile(took, 99)) if len(took) else None)
