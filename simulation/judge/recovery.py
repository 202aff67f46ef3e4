"""How long after each fault the engine works as before: a pure function of history, timeline and faults.

It works when two things hold for a second, or until the next fault begins: requests are decided (nine in ten
of those of each 100 ms, within a second), and no more is on its way to the ledger than before the first
fault, or than the engine takes in half a second.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.verdict import Check
from simulation.model.events import Interval

BIN_S: Final = 0.1
STEADY_S: Final = 1.0
SHARE: Final = 0.9
PROMPT_MS: Final = 1_000.0
LEAST: Final = 5
"""Requests of a bin that says something."""
AT_ONCE_S: Final = 0.5
BACKLOGS: Final = ("outbox_entries", "queue_messages", "pending_orders")

Flags = npt.NDArray[np.bool_]


class Recovery(Interval, frozen=True, kw_only=True):
    """A fault, and how the engine came back."""

    healed_s: float | None
    """Seconds from the fault's end until the engine works as before; None if it did not within the record."""


def measure_recovery(
    history: pd.DataFrame, timeline: pd.DataFrame, faults: Sequence[Interval]
) -> list[Recovery]:
    """The recovery from each fault, in the order of the faults."""
    starts_s = np.array([fault.start_s for fault in faults])
    found = []
    for fault in faults:
        works = _flows(history, timeline, fault.end_s) & _is_drained(history, timeline, fault.end_s, starts_s)
        healed_s = None
        for number in range(len(works)):
            moment_s = fault.end_s + number * BIN_S
            next_s = min(starts_s[starts_s > moment_s], default=np.inf)
            window = max(1, round(min(STEADY_S, next_s - moment_s) / BIN_S))
            if works[number : number + window].all():
                healed_s = round(number * BIN_S, 1)
                break
        found.append(Recovery(**msgspec.structs.asdict(fault), healed_s=healed_s))
    return found


def judge_recovery(recoveries: Sequence[Recovery]) -> Check:
    """The rule that the engine comes back from every fault by itself."""
    lost = sum(recovery.healed_s is None for recovery in recoveries)
    times = [recovery.healed_s for recovery in recoveries if recovery.healed_s is not None]
    return Check(
        name="recovers from faults",
        holds=not lost,
        violations=lost,
        detail=f"{len(recoveries):,} faults"
        + (f", the longest recovery {max(times):.2f} s" if times else ""),
        meaning="After every fault is healed, requests are answered as before and what had waited drains, "
        "without anybody's help.",
    )


def _count_bins(timeline: pd.DataFrame, start_s: float) -> int:
    """How many bins there are from a moment to the first that begins after the last sample."""
    return max(0, int(np.ceil((timeline["t_s"].max() - start_s) / BIN_S)) + 1) if len(timeline) else 0


def _flows(history: pd.DataFrame, timeline: pd.DataFrame, start_s: float) -> Flags:
    """For each bin from a moment on, whether its requests were decided; one with hardly any is no worse."""
    meant_s = history["intended_ns"].to_numpy("int64") / 1e9
    took_ms = (history["done_ns"] - history["intended_ns"]).to_numpy("float64", na_value=np.inf) / 1e6
    decided = ~history["outcome"].isin(["UNKNOWN", "UNAVAILABLE"]).to_numpy() & (took_ms <= PROMPT_MS)
    size = _count_bins(timeline, start_s)
    edges = start_s + BIN_S * np.arange(size + 1)
    total, _ = np.histogram(meant_s, edges)
    normal, _ = np.histogram(meant_s[decided], edges)
    flows: Flags = (total < LEAST) | (normal >= SHARE * total)
    return flows


def _is_drained(
    history: pd.DataFrame, timeline: pd.DataFrame, start_s: float, fault_starts_s: npt.NDArray[np.float64]
) -> Flags:
    """For each bin from a moment on, whether little is on its way, by the last sample before it."""
    t_s = timeline["t_s"].to_numpy("float64")
    accepted_s = history.loc[history["outcome"] == "ACCEPTED", "intended_ns"].to_numpy("int64") / 1e9
    enough = AT_ONCE_S * len(accepted_s) / max(accepted_s.max(initial=0.0), 1.0)
    fine = np.ones(len(t_s), np.bool_)
    for name in BACKLOGS:
        if name in timeline and timeline[name].notna().any():
            waiting = timeline[name].to_numpy("float64", na_value=np.nan)
            usual = np.nanmax(waiting[t_s < fault_starts_s.min()], initial=0.0)
            # A store that could not be read is not known to have drained.
            fine &= waiting <= max(usual, enough, 1.0)
    moments_s = start_s + BIN_S * np.arange(_count_bins(timeline, start_s))
    latest = np.searchsorted(t_s, np.round(moments_s, 3), side="right") - 1
    drained: Flags = fine[np.maximum(latest, 0)]
    return drained
