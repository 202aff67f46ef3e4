"""The summary of a run: its verdict and its numbers, as they go into summary.json. Pure."""

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.fairness import measure_fairness
from simulation.judge.knee import Knee
from simulation.judge.load import LoadReport
from simulation.judge.retries import measure_retries
from simulation.judge.verdict import Check, verdict, verdict_in_words
from simulation.model.events import Restocked
from simulation.model.outcome import REFUSALS
from simulation.model.state import FinalState
from simulation.scenario.schema import Scenario

PERCENTILES: Final = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9, "max": 100.0}
TRUSTED: Final = 10
"""Fewest requests slower than a percentile with which it says something about the next run."""

Floats = npt.NDArray[np.float64]


def summarise(
    history: pd.DataFrame,
    state: FinalState,
    checks: Sequence[Check],
    load: LoadReport,
    scenario: Scenario,
    *,
    started_at: datetime,
    commit: str,
    machine: Mapping[str, Any],
    versions: Mapping[str, str],
    command: str,
    thresholds: Sequence[Check] = (),
    restocks: Sequence[Restocked] = (),
    knee: Knee | None = None,
    ended_s: float | None = None,
) -> dict[str, Any]:
    """The fields of summary.json; every number is finite, or None where there is nothing to measure.

    `started_at` is the moment of the history's zero, `command` the one that repeats the run,
    `thresholds` what became of the scenario's, `restocks` what was opened under the load, `knee` where its
    ramp left the plateau, `ended_s` when the load was stopped before its end.
    """
    end_s = scenario.duration_s() if ended_s is None else ended_s
    words = verdict_in_words(checks, load.valid, thresholds)
    orders = settled_orders(state)
    summary = {
        "verdict": verdict([*checks, *thresholds], load.valid),
        "verdict_in_words": words if ended_s is None else f"Stopped after {ended_s:.1f} s. {words}",
        "scenario": scenario.name,
        "text": scenario.text,
        "seed": scenario.seed,
        "command": command,
        "started_at": started_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "duration_s": end_s,
        "commit": commit,
        "machine": dict(machine),
        "versions": dict(versions),
        "load": msgspec.to_builtins(load),
        "outcomes": count_outcomes(history),
        "latency_ms": {
            word.lower(): measure_latency(history[history["outcome"] == word])
            for word in ("ACCEPTED", "SOLD_OUT")
        },
        "fulfilment": measure_fulfilment(orders, state),
        "stock": measure_stock(orders, state),
        "time_to_sell_out_s": time_to_sell_out(history, restocks),
        "restocks": [measure_restock(history, orders, each, restocks) for each in restocks],
        "knee": msgspec.to_builtins(knee),
        "phases": [
            measure_phase(history, name, start, min(end, end_s))
            for name, start, end in scenario.phases()
            if start < end_s
        ],
        "fairness": measure_fairness(history, scenario),
        "retries": measure_retries(history, state.orders),
        "unread": dict(state.unread),
        "thresholds": [msgspec.to_builtins(threshold) for threshold in thresholds],
        "checks": [msgspec.to_builtins(check) for check in checks],
    }
    finite: dict[str, Any] = _finite(summary)
    return finite


def count_outcomes(history: pd.DataFrame) -> dict[str, int]:
    """How many requests ended how; the counts add up to the requests. `error` surely reserved nothing."""
    counts = history["outcome"].astype("str").value_counts()
    found = {word: int(counts.get(word, 0)) for word in ("ACCEPTED", "SOLD_OUT", "UNKNOWN")}
    rejected = sum(int(counts.get(word, 0)) for word in REFUSALS)
    return {
        "accepted": found["ACCEPTED"],
        "sold_out": found["SOLD_OUT"],
        "rejected": rejected,
        "error": len(history) - rejected - sum(found.values()),
        "unknown": found["UNKNOWN"],
    }


def response_ms(history: pd.DataFrame) -> Floats:
    """done − intended of the requests that were answered: what a buyer waited, a late start included."""
    answered = history.dropna(subset=["sent_ns", "done_ns"])
    return _span_ms(answered, "intended_ns", "done_ns")


def service_ms(history: pd.DataFrame) -> Floats:
    """done − sent of the requests that were answered: what the engine took."""
    answered = history.dropna(subset=["sent_ns", "done_ns"])
    return _span_ms(answered, "sent_ns", "done_ns")


def _span_ms(frame: pd.DataFrame, start: str, end: str) -> Floats:
    span: Floats = (frame[end].to_numpy("int64") - frame[start].to_numpy("int64")) / 1e6
    return span


def measure_latency(history: pd.DataFrame) -> dict[str, dict[str, float | None]]:
    """Percentiles of response and service time, in ms."""
    return {"response": _percentiles(response_ms(history)), "service": _percentiles(service_ms(history))}


def is_trusted(percentile: str, samples: int) -> bool:
    """Whether at least TRUSTED of the samples lie beyond the percentile. The maximum only tells of itself."""
    return percentile == "max" or samples * (1 - PERCENTILES[percentile] / 100) >= TRUSTED - 1e-6


def fulfilment_lag_ms(orders: pd.DataFrame) -> Floats:
    """settled − accepted of the ledger's orders."""
    return 1e3 * _span_ms(orders, "accepted_us", "settled_us")


def measure_fulfilment(orders: pd.DataFrame | None, state: FinalState) -> dict[str, Any]:
    """Orders by status, the lag from accepted to settled, and how long the drain took."""
    bus = "rabbitmq" if state.bus else "outbox"
    if orders is None:
        unread = dict.fromkeys(["confirmed", "failed", "rejected", "lag_p50_ms", "lag_p99_ms"])
        return {**unread, "drained_s": state.drained_s, "bus": bus}
    statuses = orders["status"].value_counts()
    lag = _percentiles(fulfilment_lag_ms(orders))
    return {
        **{word: int(statuses.get(word.upper(), 0)) for word in ("confirmed", "failed", "rejected")},
        "lag_p50_ms": lag["p50"],
        "lag_p99_ms": lag["p99"],
        "drained_s": state.drained_s,
        "bus": bus,
    }


def measure_stock(orders: pd.DataFrame | None, state: FinalState) -> dict[str, int | None]:
    """Units over all sales: on offer, confirmed in the ledger, left at the gate, sold beyond the stock."""
    sales, gate = state.sales, state.gate
    sold = oversold = None
    if orders is not None and sales is not None:
        units = orders[orders["status"] == "CONFIRMED"].groupby("sale_id")["quantity"].sum()
        excess = units.sub(sales.set_index("sale_id")["stock"], fill_value=0).clip(lower=0)
        sold, oversold = int(units.sum()), int(excess.sum())
    current = gate if gate is None or sales is None else gate[gate["sale_id"].isin(sales["sale_id"])]
    return {
        "initial": None if sales is None else int(sales["stock"].sum()),
        "sold": sold,
        "remaining": None if current is None else int(current["remaining"].sum()),
        "oversold": oversold,
    }


def time_to_sell_out(history: pd.DataFrame, restocks: Sequence[Restocked] = ()) -> float | None:
    """Seconds from the first request to the last purchase that was accepted; None where nothing sold out.

    Of a product that was restocked, only what was answered before: the time that its first stock took.
    """
    first_s = float(history["intended_ns"].min()) / 1e9
    for restock in restocks:
        later = (history["product_id"] == restock.product_id) & (history["done_ns"] >= restock.at_s * 1e9)
        history = history[~later.fillna(False)]
    moment_s = _sold_out_at(history)
    return None if moment_s is None else moment_s - first_s


def measure_restock(
    history: pd.DataFrame, orders: pd.DataFrame | None, restock: Restocked, restocks: Sequence[Restocked]
) -> dict[str, Any]:
    """The restock, the units confirmed of it, and how long it took to sell out, if it did."""
    next_s = min(
        (e.at_s for e in restocks if e.product_id == restock.product_id and e.at_s > restock.at_s),
        default=math.inf,
    )
    done = history["done_ns"]
    within = history["product_id"] == restock.product_id
    within &= ((done >= restock.at_s * 1e9) & (done < next_s * 1e9)).fillna(False)
    # A request that was sent before it was open may have been turned away from the sale before.
    stale = (history["outcome"] == "SOLD_OUT") & (history["sent_ns"] < restock.opened_s * 1e9).fillna(True)
    moment_s = _sold_out_at(history[within & ~stale])
    confirmed = None
    if orders is not None:
        mine = orders[(orders["sale_id"] == restock.sale_id) & (orders["status"] == "CONFIRMED")]
        confirmed = int(mine["quantity"].sum())
    return {
        **msgspec.to_builtins(restock),
        "sold": confirmed,
        "sold_out_after_s": None if moment_s is None else moment_s - restock.at_s,
    }


def _sold_out_at(history: pd.DataFrame) -> float | None:
    """When the last purchase of a product that sold out was accepted, in seconds from the run's start."""
    sold_out = history.loc[history["outcome"] == "SOLD_OUT", "product_id"].unique()
    accepted = history[(history["outcome"] == "ACCEPTED") & history["product_id"].isin(sold_out)]
    if accepted.empty:
        return None
    # A retry under the same key hears ACCEPTED long after: only the first answer for an order counts.
    return float(accepted.groupby("order_id")["done_ns"].min().max()) / 1e9


def measure_phase(history: pd.DataFrame, name: str, start_s: float, end_s: float) -> dict[str, Any]:
    """The requests that were meant to start within the phase, and how they fared."""
    meant = history["intended_ns"]
    within = history[(meant >= start_s * 1e9) & (meant < end_s * 1e9)]
    latency = _percentiles(response_ms(within))
    return {
        "name": name,
        "start_s": start_s,
        "end_s": end_s,
        "requests": len(within),
        "offered_rps": len(within) / (end_s - start_s),
        **count_outcomes(within),
        "response_p50_ms": latency["p50"],
        "response_p99_ms": latency["p99"],
    }


def settled_orders(state: FinalState) -> pd.DataFrame | None:
    """The ledger's orders that have come to an end; None where the ledger could not be read."""
    return None if state.orders is None else state.orders.dropna(subset=["accepted_us", "settled_us"])


def _percentiles(values: Floats) -> dict[str, float | None]:
    if not len(values):
        return dict.fromkeys(PERCENTILES)
    found = np.percentile(values, list(PERCENTILES.values()))
    return {name: round(float(value), 3) for name, value in zip(PERCENTILES, found, strict=True)}


def _finite(value: Any) -> Any:
    """The same tree with None in place of numbers that JSON doesn't know."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
