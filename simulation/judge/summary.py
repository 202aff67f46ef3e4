"""The summary of a run: its verdict and its numbers, the fields of summary.json."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pandas as pd

from simulation.judge.numbers.fairness import measure_fairness
from simulation.judge.numbers.knee import Knee
from simulation.judge.numbers.latency import measure_latency, response_ms, take_percentiles
from simulation.judge.numbers.load import Load
from simulation.judge.numbers.requests import count_outcomes, select_outcome, select_span
from simulation.judge.numbers.retries import measure_retries
from simulation.judge.numbers.sales import (
    measure_fulfilment,
    measure_restock,
    measure_stock,
    time_to_sell_out,
)
from simulation.judge.verdict import Check, verdict, verdict_in_words
from simulation.model.state import FinalState
from simulation.scenario.schema import Restocked, Scenario


def summarise(
    history: pd.DataFrame,
    state: FinalState,
    checks: Sequence[Check],
    load: Load,
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
    """Return the fields of summary.json; every number is finite, or None where there is nothing to measure.

    `started_at` is the moment of the history's zero, `command` the one that repeats the run, `thresholds` are
    the checks of the scenario's thresholds, `restocks` the sales that were opened under the load, `knee` is
    that of the scenario's ramp, and `ended_s` is when the load was stopped before its end.
    """
    end_s = scenario.duration_s() if ended_s is None else ended_s
    words = verdict_in_words(checks, load.valid, thresholds)
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
        "machine": machine,
        "versions": versions,
        "load": load,
        "outcomes": count_outcomes(history),
        "latency_ms": {
            name: measure_latency(select_outcome(history, name)) for name in ("accepted", "sold_out")
        },
        "fulfilment": measure_fulfilment(state),
        "stock": measure_stock(state),
        "time_to_sell_out_s": time_to_sell_out(history, restocks),
        "restocks": [measure_restock(history, state, each, restocks) for each in restocks],
        "knee": knee,
        "phases": [
            measure_phase(history, name, start, min(end, end_s))
            for name, start, end in scenario.phases()
            if start < end_s
        ],
        "fairness": measure_fairness(history, scenario),
        "retries": measure_retries(history, state.orders),
        "unread": state.unread,
        "thresholds": thresholds,
        "checks": checks,
    }
    # JSON has no infinity and no NaN: msgspec writes null for them.
    finite: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(summary))
    return finite


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
