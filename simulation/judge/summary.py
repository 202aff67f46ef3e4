"""The summary of a run: its verdict and its numbers, the fields of summary.json."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any, Final

import msgspec
import pandas as pd

from simulation.judge.numbers.fairness import measure_fairness
from simulation.judge.numbers.latency import PERCENTILES, measure_latency
from simulation.judge.numbers.reads import measure_reads
from simulation.judge.numbers.requests import count_outcomes, measure_retries, select_span, select_waits
from simulation.judge.numbers.sales import (
    measure_fulfilment,
    measure_restock,
    measure_stock,
    time_to_sell_out,
)
from simulation.judge.rules.pairing import with_keys
from simulation.judge.thresholds import Metrics
from simulation.judge.verdict import Check, verdict, verdict_in_words
from simulation.model.events import InCharge
from simulation.scenario.condition import Span
from simulation.scenario.schema import Scenario

TIMED: Final = ("accepted", "sold_out")
"""The outcomes whose response and service times a summary tells."""
IN_CHARGE: Final = "node "
"""Begins the columns of a timeline that name the nodes in charge."""


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
            name: measure_latency(select_waits(history, name), run.driver.timeout_ms) for name in TIMED
        },
        "marks": find_marks(run, [f"{name}.{kind}" for name in TIMED for kind in ("response", "service")]),
        "own_lag_p99_ms": run.own_lag_p99_ms,
        "meanwhile": {**msgspec.structs.asdict(run.machine), "disturbed": run.machine.is_disturbed},
        "fulfilment": measure_fulfilment(state),
        "stock": measure_stock(state, run.asked),
        "time_to_sell_out_s": time_to_sell_out(history, restocks),
        "restocks": [measure_restock(history, state, each, restocks) for each in restocks],
        "knee": run.knee,
        "front_doors": [
            {"requests": len(rows), **count_outcomes(rows), "resets": int((rows["end"] == "reset").sum())}
            for _, rows in history.groupby("door")
            if len(rows) < len(history)
        ],
        "in_charge": find_in_charge(run.timeline),
        "phases": [
            measure_phase(run, name, start, min(end, end_s))
            for name, start, end in scenario.phases()
            if start < end_s
        ],
        "fairness": measure_fairness(history, scenario),
        "retries": measure_retries(history, with_keys(state, history)),
        "reads": {} if run.reads is None else measure_reads(run.reads, run.driver.timeout_ms),
        "unread": state.unread,
        "misfits": [*run.misfits.values()],
        "thresholds": thresholds,
        "checks": checks,
    }
    # JSON has no infinity and no NaN: msgspec writes null for them.
    return msgspec.json.decode(msgspec.json.encode(summary), type=dict[str, Any])


def find_in_charge(timeline: pd.DataFrame) -> list[InCharge]:
    """Return which node was in charge of what, and when, by the samples of a run."""
    found = []
    for column in [name for name in timeline if str(name).startswith(IN_CHARGE)]:
        seen = timeline[["t_s", column]].dropna()
        for _, same in seen.groupby((seen[column] != seen[column].shift()).cumsum()):
            role, times_s = str(column).removeprefix(IN_CHARGE), same["t_s"].tolist()
            node = str(same[column].iloc[0])
            found.append(InCharge(role=role, node=node, start_s=times_s[0], end_s=times_s[-1]))
    return found


def find_marks(run: Metrics, times: Sequence[str], span: Span | None = None) -> dict[str, str]:
    """Return why percentiles of these times are in doubt, by their metrics; leave out those that are not."""
    metrics = [f"{time}.{stat}" for time in times for stat in PERCENTILES]
    marks = {metric: run.find_mark(metric, span) for metric in metrics}
    return {metric: mark.reason for metric, mark in marks.items() if mark}


def measure_phase(run: Metrics, name: str, start_s: float, end_s: float) -> dict[str, Any]:
    """Return how the requests with an intended start within the phase fared."""
    span = start_s, end_s
    within = select_span(run.history, *span)
    p50_ms, p99_ms = (run.measure(f"all.response.{stat}", span) for stat in ("p50", "p99"))
    return {
        "name": name,
        "start_s": start_s,
        "end_s": end_s,
        "requests": len(within),
        "offered_rps": len(within) / (end_s - start_s),
        **count_outcomes(within),
        "response_p50_ms": None if p50_ms is None else round(p50_ms, 3),
        "response_p99_ms": None if p99_ms is None else round(p99_ms, 3),
        "marks": find_marks(run, ["all.response"], span),
    }
