"""Whether the load was the one that the scenario asks for."""

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.numbers.latency import lag_ms, take_stat
from simulation.model.history import take_buys
from simulation.scenario.schema import DriverOptions


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """The load that was offered, and whether a verdict on the engine may rest on it."""

    requests: int
    """Planned requests and retries."""
    sent: int
    offered_rps: float
    """All requests, over the length of the arrival curve or, if longer, the time to the last retry."""
    achieved_rps: float
    """Answered requests, over the length of the arrival curve or, if longer, the time to the last answer."""
    lag_p99_ms: float = msgspec.field(name="late_p99_ms")
    """p99 of the lag (sent − intended) of the requests that were sent."""
    valid: bool
    reason: str
    """Why it is not valid; empty if it is."""
    retries: int
    """How many of the requests were retries."""


def measure_load(history: pd.DataFrame, options: DriverOptions, end_s: float) -> Load:
    """Return the load of purchases, which ended after `end_s`, and whether it is valid, for which reads count
    as well.

    It is valid if the p99 of the lag is at most `driver.late_p99_ms` and every request was sent, or refused
    by a server that did not listen, or given up where `driver.may_give_up`. A request that waited longer than
    that because all connections were busy breaks the open loop: a slow server held back its own load. Such a
    load is not valid, unless `driver.connections_may_run_out`; then such requests don't count for the p99.
    """
    sent = history[history["sent_ns"].notna()]
    given_up = int((history["sent_ns"].isna() & history["done_ns"].isna()).sum())
    lag = lag_ms(sent)
    waited = (lag > options.late_p99_ms) & find_all_busy(sent, options)
    judged_p99_ms = take_stat(lag[~waited] if options.connections_may_run_out else lag, "p99") or 0.0

    buys = take_buys(history)
    sent_buys = take_buys(sent)
    answered = sent_buys["done_ns"].dropna()
    last_start_s = buys["intended_ns"].max() / 1e9 if len(buys) else 0.0
    last_answer_s = answered.max() / 1e9 if len(answered) else 0.0
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
    return Load(
        requests=len(buys),
        sent=len(sent_buys),
        offered_rps=float(len(buys) / max(end_s, last_start_s)),
        achieved_rps=float(len(answered) / max(end_s, last_answer_s)),
        lag_p99_ms=take_stat(lag, "p99") or 0.0,
        valid=not reasons,
        reason="; ".join(reasons),
        retries=int(np.count_nonzero(buys["attempt"])),
    )


def own_lag_ms(history: pd.DataFrame, options: DriverOptions) -> pd.Series:
    """Return how late the driver itself sent each request, in ms, by the history's index.

    Left out are requests that were never sent, and those that took the last free connection: they may have
    waited for the server.
    """
    sent = history[history["sent_ns"].notna()]
    lag = pd.Series(lag_ms(sent), sent.index)
    return lag[~find_all_busy(sent, options)]


def find_all_busy(sent: pd.DataFrame, options: DriverOptions) -> npt.NDArray[np.bool_]:
    """Return for each request that was sent whether it took the last free connection of its driver process.

    A request without an answer holds its connection until its timeout.
    """
    busy = np.zeros(len(sent), np.bool_)
    sent_ns = sent["sent_ns"].to_numpy(np.int64)
    freed_ns = sent["done_ns"].fillna(sent["sent_ns"] + options.timeout_ms * 1_000_000).to_numpy(np.int64)
    drivers = sent["driver"].to_numpy()
    for driver in np.unique(drivers):
        mine = drivers == driver
        taken = np.searchsorted(np.sort(sent_ns[mine]), sent_ns[mine], side="right")
        freed = np.searchsorted(np.sort(freed_ns[mine]), sent_ns[mine], side="right")
        busy[mine] = taken - freed >= options.connections
    return busy
