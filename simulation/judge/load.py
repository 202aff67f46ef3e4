"""Whether the load was what the scenario asked for: a pure function of the history."""

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.scenario.schema import Scenario

Integers = npt.NDArray[np.int64]


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """The load that was offered, and whether a verdict about the engine may rest on it."""

    requests: int
    """Requests planned, and the retries of clients that came again."""
    sent: int
    offered_rps: float
    """All requests, over the length of the arrival curve, or the time to the last retry if that is longer."""
    achieved_rps: float
    """Requests answered, over the time from the start to the last answer, or the curve's length if that is
    longer."""
    late_p99_ms: float
    """p99 of the lag (sent − intended) of the requests sent."""
    valid: bool
    reason: str
    """Why it is not valid; empty if it is."""
    retries: int = 0
    """How many of the requests were a client that came again."""


def load_report(history: pd.DataFrame, scenario: Scenario, ended_s: float | None = None) -> LoadReport:
    """Judges the load; `ended_s` is when it was stopped before its end.

    It is valid if the p99 of the lag is at most `driver.late_p99_ms` and every request was sent, or refused
    by a server that did not listen, or given up where `driver.may_give_up`. A request that waited longer than
    that because all connections were busy breaks the open loop, since a slow server held back its own load:
    not valid, unless `driver.connections_may_run_out`, and then such requests don't count for the p99.
    """
    options = scenario.driver
    was_sent = history["sent_ns"].notna().to_numpy()
    given_up = int(np.count_nonzero(~was_sent & history["done_ns"].isna().to_numpy()))
    sent = history[was_sent]
    lag_ms = (sent["sent_ns"].to_numpy(np.int64) - sent["intended_ns"].to_numpy(np.int64)) / 1e6
    waited = (lag_ms > options.late_p99_ms) & find_all_busy(sent, options.connections, options.timeout_ms)
    judged = lag_ms[~waited] if options.connections_may_run_out else lag_ms
    judged_p99_ms = _p99(judged)

    answered = sent["done_ns"].dropna()
    end_s = scenario.duration_s() if ended_s is None else ended_s
    seconds = max(end_s, answered.max() / 1e9 if len(answered) else 0.0)
    reasons = []
    if not len(sent):
        reasons.append("no request was sent")
    if given_up and not options.may_give_up:
        reasons.append(f"{given_up:,} requests were never sent")
    if waited.any() and not options.connections_may_run_out:
        reasons.append(
            f"{np.count_nonzero(waited):,} requests waited while all {options.connections:,} connections"
            " were busy, so the loop was not open"
        )
    if judged_p99_ms > options.late_p99_ms:
        reasons.append(f"the p99 of the lag is {judged_p99_ms:.1f} ms, more than {options.late_p99_ms:g} ms")
    return LoadReport(
        requests=len(history),
        sent=len(sent),
        offered_rps=len(history) / max(end_s, history["intended_ns"].max() / 1e9 if len(history) else 0.0),
        achieved_rps=float(len(answered) / seconds),
        late_p99_ms=_p99(lag_ms),
        valid=not reasons,
        reason="; ".join(reasons),
        retries=int(np.count_nonzero(history["attempt"])),
    )


def find_all_busy(sent: pd.DataFrame, connections: int, timeout_ms: int) -> npt.NDArray[np.bool_]:
    """For each request that was sent, whether it took the last one of its driver's connections.

    A request without an answer holds its connection until its timeout.
    """
    busy = np.zeros(len(sent), np.bool_)
    sent_ns = sent["sent_ns"].to_numpy(np.int64)
    freed_ns = sent["done_ns"].to_numpy(np.int64, na_value=-1)
    freed_ns = np.where(freed_ns < 0, sent_ns + timeout_ms * 1_000_000, freed_ns)
    drivers = sent["driver"].to_numpy()
    for driver in np.unique(drivers):
        mine = drivers == driver
        taken = np.searchsorted(np.sort(sent_ns[mine]), sent_ns[mine], side="right")
        freed = np.searchsorted(np.sort(freed_ns[mine]), sent_ns[mine], side="right")
        busy[mine] = taken - freed >= connections
    return busy


def _p99(values: npt.NDArray[np.float64]) -> float:
    return float(np.percentile(values, 99)) if len(values) else 0.0
