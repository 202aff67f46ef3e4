"""The summary of a run: its verdict and its numbers, the fields of summary.json."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any

import msgspec
import pandas as pd

from simulation.judge.numbers.fairness import measure_fairness
from simulation.judge.numbers.latency import measure_latency, response_ms, take_percentiles
from simulation.judge.numbers.reads import measure_reads
from simulation.judge.numbers.requests import count_outcomes, measure_retries, select_outcome, select_span
from simulation.judge.numbers.sales import (
    measure_fulfilment,
    measure_restock,
    measure_stock,
    time_to_sell_out,
)
from simulation.judge.thresholds import Metrics
from simulation.judge.verdict import Check, verdict, verdict_in_words
from simulation.scenario.schema import Scenario


def summarise(
    run: Metrics,
    scenario: Scenario,
    checks: Sequence[Check],
    thresholds: Sequence[Check] = (),
    ended_s: float | None = None,
) -> dict[str, Any]:
    """Return what the judge says of a run; every number is finite, or None if there is nothing to measure.

    `thresholds` are the checks of the scenario's thresholds, `ended_s` is when the load was stopped early.
    """
    end_s = scenario.duration_s() if ended_s is None else ended_s
    stopped = "" if ended_s is None else f"Stopped after {ended_s:.1f} s. "
    started_at = run.started_at.astimezone(UTC).isoformat(timespec="milliseconds")
    history, state, restocks = run.history, run.state, run.restocks
    summary = {
        "verdict": verdict([*checks, *thresholds], run.load.valid),
        "verdict_in_words": stopped + verdict_in_words(checks, run.load.valid, thresholds),
        "scenario": scenario.name,
        "text": scenario.text,
        "seed": scenario.seed,
        "started_at": started_at.replace("+00:00", "Z"),
        "duration_s": end_s,
        "load": run.load,
        "outcomes": count_outcomes(history),
        "latency_ms": {
            name: measure_latency(select_outcome(history, name)) for name in ("accepted", "sold_out")
        },
        "fulfilment": measure_fulfilment(state),
        "stock": measure_stock(state, run.asked),
        "time_to_sell_out_s": time_to_sell_out(history, restocks),
        "restocks": [measure_restock(history, state, each, restocks) for each in restocks],
        "knee": run.knee,
        "phases": [
            measure_phase(history, name, start, min(end, end_s))
            for name, start, end in scenario.phases()
            if start < end_s
        ],
        "fairness": measure_fairness(history, scenario),
        "retries": measure_retries(history, state.orders),
        "reads": {} if run.reads is None else measure_reads(run.reads),
        "unread": state.unread,
        "thresholds": thresholds,
        "checks": checks,
    }
    # JSON has no infinity and no NaN: msgspec writes null for them.
    return msgspec.json.decode(msgspec.json.encode(summary), type=dict[str, Any])


def measure_phase(history: pd.DataFrame, name: str, start_s: float, end_s: float) -> dict[str, Any]:
    """Return how the requests with an intended start within the phase fared."""
    within = select_span(history, start_s, end_s)
    response = take_percentiles(response_ms(within))
    return {
        "name": name,
        "start_s": start_s,
        "end_s": end_s,
        "requests": len(within),
        "offered_rps": len(within) / (end_s - start_s),
        **count_outcomes(within),
        "response_p50_ms": response["p50"],
        "response_p99_ms": response["p99"],
    }
