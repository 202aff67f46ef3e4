"""The reads of a run, counted apart from its purchases: of the stock, and of orders."""

from typing import Any

import pandas as pd

from simulation.judge.numbers.latency import measure_latency
from simulation.model.history import KINDS
from simulation.model.outcome import TERMINAL


def measure_reads(reads: pd.DataFrame, timeout_ms: float) -> dict[str, dict[str, Any]]:
    """Return for each kind of reads, where there are any, the fields of the summary.

    requests                                            reads, sent or not
    shown, not_found, unavailable, invalid, unknown     how they ended
    latency_ms                                          percentiles of response and service time
    orders, final                                       of orders: how many, and of how many the final status
                                                        was seen
    """
    found = {}
    for kind in KINDS[1:]:
        mine = reads[reads["kind"] == kind]
        if mine.empty:
            continue
        words = ("SHOWN", "NOT_FOUND", "UNAVAILABLE", "INVALID", "UNKNOWN")
        found[kind] = {
            "requests": len(mine),
            **{word.lower(): int((mine["outcome"] == word).sum()) for word in words},
            "latency_ms": measure_latency(mine, timeout_ms),
        }
        if kind == "order":
            seen = mine[mine["order_status"].isin(TERMINAL)]
            found[kind] |= {"orders": mine["order_id"].nunique(), "final": seen["order_id"].nunique()}
    return found
