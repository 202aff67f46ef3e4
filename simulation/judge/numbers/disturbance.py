"""What a standstill or a fault did to the requests of a run."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from simulation.judge.numbers.latency import is_trusted, response_ms, service_ms, take_stat
from simulation.judge.numbers.load import own_lag_ms
from simulation.judge.numbers.requests import is_decided, select_outcome, select_span
from simulation.model.history import take_buys
from simulation.scenario.schema import DriverOptions

LEAST_DUE: Final = 10
"""Fewest requests that must be due while nothing is answered before that is a standstill."""
LEAST_STALL_S: Final = 0.1


class Stall(NamedTuple):
    """The longest time in which requests were due and none was answered."""

    start_s: float
    seconds: float
    due: int
    """Requests with an intended start in it."""
    unsent: int
    """Those of them that were not sent before it was over."""


class Omission(NamedTuple):
    """How much of the buyers' wait the service time hides, for one outcome."""

    outcome: str
    response_p99_ms: float
    service_p99_ms: float
    stall: Stall | None
    by_driver: bool
    """Whether the driver itself was late, and not kept from sending by a server that held its connections."""


class Effect(NamedTuple):
    """What became of the requests that were due from a fault's start until the engine worked as before."""

    due: int
    undecided: int
    """Those whose buyers never learnt whether they bought: no answer, or 503."""
    p99_ms: float | None
    """Response time; without an answer, at least the timeout."""


def find_stall(history: pd.DataFrame) -> Stall | None:
    """Return the longest standstill that is worth telling (LEAST_STALL_S, LEAST_DUE); None if there is
    none."""
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


def find_omission(
    history: pd.DataFrame, summary: Mapping[str, Any], options: DriverOptions
) -> Omission | None:
    """Return how much of the wait of the answered requests service time hides, for accepted ones first; None
    where it hides less than half, or less than 50 ms. Reads only count as what kept connections busy.

    The difference is what a closed loop leaves out, because it sends nothing while it waits ("coordinated
    omission", Gil Tene).
    """
    buys = take_buys(history)
    for outcome in summary["latency_ms"]:
        answered = select_outcome(buys, outcome).dropna(subset=["sent_ns", "done_ns"])
        response = take_stat(response_ms(answered, options.timeout_ms), "p99")
        service = take_stat(service_ms(answered), "p99")
        if response is None or service is None or not is_trusted("p99", len(answered)):
            continue
        if response >= 2 * service and response - service >= 50:
            own_ms = own_lag_ms(history, options).reindex(answered.index).quantile(0.99)
            by_driver = own_ms >= (response - service) / 2
            return Omission(outcome, response, service, find_stall(buys), bool(by_driver))
    return None


def measure_effect(history: pd.DataFrame, fault: Mapping[str, Any], timeout_ms: float) -> Effect:
    """Return what a fault of a summary did, from its start until the engine had recovered from it."""
    recovered_s = np.inf if fault["healed_s"] is None else fault["end_s"] + fault["healed_s"]
    due = select_span(history, fault["start_s"], recovered_s)
    return Effect(len(due), int((~is_decided(due)).sum()), take_stat(response_ms(due, timeout_ms), "p99"))
