"""How long after each fault the engine works as before.

It works when two things hold for a second, or until the next fault begins. Requests are decided: nine in ten
of those of each 100 ms, within a second. And the backlogs are small: no more is on its way to the ledger than
before the first fault, or than the engine takes in half a second. Where fewer than LEAST requests are due in
100 ms, the next LEAST are judged, up to the next fault. And it goes on: nine in ten of all requests until the
next fault are decided like that, unless the scenario means to send more than the engine can answer.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.numbers.latency import Floats
from simulation.judge.numbers.requests import is_decided
from simulation.model.events import Interval, Recovery

BIN_S: Final = 0.1
STEADY_S: Final = 1.0
SHARE: Final = 0.9
PROMPT_MS: Final = 1_000.0
LEAST: Final = 5
"""Fewest requests that are judged together."""
OUTBOX_WAIT: Final = "outbox_wait_ms"
AT_ONCE_S: Final = 0.5
BACKLOGS: Final = ("outbox_entries", "queue_messages", "pending_orders")

Flags = npt.NDArray[np.bool_]


def measure_recovery(
    history: pd.DataFrame, timeline: pd.DataFrame, faults: Sequence[Interval], overload: bool = False
) -> list[Recovery]:
    """Return the recovery from each fault, in the order of the faults; `overload` as in Asked."""
    starts_s = np.array([fault.start_s for fault in faults])
    last_s = timeline["t_s"].max() if len(timeline) else 0.0
    found = []
    for fault in faults:
        # The last bin begins after the last sample.
        bins = max(-1, int(np.ceil((last_s - fault.end_s) / BIN_S))) + 1
        edges_s = fault.end_s + BIN_S * np.arange(bins + 1, dtype=np.float64)
        works = _flows(history, edges_s, starts_s, not overload) & _is_drained(
            history, timeline, edges_s[:-1], starts_s.min()
        )
        recovered = None
        for number, moment_s in enumerate(edges_s[:-1]):
            next_s = min(starts_s[starts_s > moment_s], default=np.inf)
            steady = max(1, round(min(STEADY_S, next_s - moment_s) / BIN_S))
            if works[number : number + steady].all():
                recovered = round(number * BIN_S, 1)
                break
        until_s = np.inf if recovered is None else fault.end_s + recovered
        found.append(
            Recovery(
                **msgspec.structs.asdict(fault),
                recovered_after_s=recovered,
                resets=_count_resets(history, fault.start_s, until_s),
                outbox_wait_s=_find_outbox_wait(timeline, fault.start_s, until_s),
            )
        )
    return found


def count_alone(one: Recovery, recoveries: Sequence[Recovery]) -> float | None:
    """Return the seconds from the fault's end to the recovery in which no other fault was on; None if the
    engine did not recover."""
    if one.recovered_after_s is None:
        return None
    alone_s, seen_s, until_s = 0.0, one.end_s, one.end_s + one.recovered_after_s
    for other in sorted(recoveries, key=lambda each: each.start_s):
        alone_s += max(0.0, min(other.start_s, until_s) - seen_s)
        seen_s = max(seen_s, other.end_s)
    return alone_s + max(0.0, until_s - seen_s)


def _count_resets(history: pd.DataFrame, start_s: float, end_s: float) -> int:
    sent_s = history.loc[history["end"] == "reset", "sent_ns"].to_numpy("float64", na_value=np.nan) / 1e9
    return int(((sent_s >= start_s) & (sent_s <= end_s)).sum())


def _find_outbox_wait(timeline: pd.DataFrame, start_s: float, end_s: float) -> float | None:
    if OUTBOX_WAIT not in timeline:
        return None
    seen_ms = timeline.loc[timeline["t_s"].between(start_s, end_s), OUTBOX_WAIT].dropna()
    return round(float(seen_ms.max()) / 1e3, 3) if len(seen_ms) else None


def _flows(history: pd.DataFrame, edges_s: Floats, starts_s: Floats, lasting: bool) -> Flags:
    """Return for each bin whether its requests were decided, and, if `lasting`, those until the next fault;
    `starts_s` are when faults begin."""
    history = history.sort_values("intended_ns")
    meant_s = history["intended_ns"].to_numpy("int64") / 1e9
    took_ms = (history["done_ns"] - history["intended_ns"]).to_numpy("float64", na_value=np.inf) / 1e6
    normal = np.concatenate([[0], np.cumsum(is_decided(history) & (took_ms <= PROMPT_MS))])
    first, last = (np.searchsorted(meant_s, each) for each in (edges_s[:-1], edges_s[1:]))
    # What the next fault does says nothing of this one.
    starts_s = np.append(np.sort(starts_s), np.inf)
    next_s = starts_s[np.searchsorted(starts_s, edges_s[:-1], side="right")]
    last = np.maximum(last, np.minimum(first + LEAST, np.searchsorted(meant_s, next_s)))
    flows: Flags = normal[last] - normal[first] >= SHARE * (last - first)
    if lasting:
        until = np.searchsorted(meant_s, next_s)
        flows &= normal[until] - normal[first] >= SHARE * (until - first)
    return flows


def _is_drained(
    history: pd.DataFrame, timeline: pd.DataFrame, moments_s: Floats, first_fault_s: float
) -> Flags:
    """Return for each moment whether the backlogs are small, by the last sample before it."""
    t_s = timeline["t_s"].to_numpy("float64")
    accepted_s = history.loc[history["outcome"] == "ACCEPTED", "intended_ns"].to_numpy("int64") / 1e9
    enough = AT_ONCE_S * len(accepted_s) / max(accepted_s.max(initial=0.0), 1.0)
    fine = np.ones(len(t_s), np.bool_)
    for name in BACKLOGS:
        if name in timeline and timeline[name].notna().any():
            waiting = timeline[name].to_numpy("float64", na_value=np.nan)
            usual = np.nanmax(waiting[t_s < first_fault_s], initial=0.0)
            # A store that could not be read is not known to have drained.
            fine &= waiting <= max(usual, enough, 1.0)
    latest = np.searchsorted(t_s, np.round(moments_s, 3), side="right") - 1
    return fine[np.maximum(latest, 0)]
