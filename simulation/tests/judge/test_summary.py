"""The summary's numbers are those of the record."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from simulation.judge.asked import Asked, read_asked
from simulation.judge.numbers.latency import is_trusted, measure_latency, response_ms
from simulation.judge.numbers.load import measure_load
from simulation.judge.numbers.requests import count_outcomes, select_waits
from simulation.judge.numbers.sales import measure_fulfilment, measure_stock, time_to_sell_out
from simulation.judge.summary import find_in_charge, measure_phase, summarise
from simulation.judge.thresholds import Metrics
from simulation.judge.verdict import judge
from simulation.model.events import InCharge
from simulation.model.state import FinalState
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import DriverOptions
from simulation.tests.histories import Ask, Terms, history_of, operation, order, order_rows, play, with_orders
from simulation.tests.run_folders import make_run

MS = 1_000_000


def ask(user_id: int, start_ms: int, late_ms: int, took_ms: int) -> dict[str, Any]:
    row = operation(user_id, Ask(user_id), "ACCEPTED", f"order {user_id}")
    sent_ns = (start_ms + late_ms) * MS
    return row | {"intended_ns": start_ms * MS, "sent_ns": sent_ns, "done_ns": sent_ns + took_ms * MS}


def summary_of(history: pd.DataFrame, state: FinalState) -> dict[str, Any]:
    scenario = load_scenario("spike")
    started_at = datetime(2026, 1, 2, 13, 30, tzinfo=timezone(timedelta(hours=2)))
    asked = read_asked(scenario)
    load = measure_load(history, scenario.driver, scenario.duration_s())
    run = Metrics(history, state, load, started_at, asked)
    return summarise(run, scenario, judge(history, state, asked))


def test_it_has_the_fields_that_readers_rely_on(tmp_path: Path) -> None:
    summary = make_run(tmp_path)
    assert summary.keys() >= {
        "verdict", "scenario", "seed", "started_at", "commit", "machine", "versions", "load", "outcomes",
        "latency_ms", "fulfilment", "stock", "checks", "phases", "command",
    }  # fmt: skip
    assert summary["load"].keys() >= {"offered_rps", "achieved_rps", "requests", "late_p99_ms", "valid"}
    assert summary["outcomes"].keys() == {"accepted", "sold_out", "rejected", "error", "unknown"}
    percentiles = {"p50", "p90", "p99", "p999", "max"}
    for outcome in ("accepted", "sold_out"):
        for kind in ("response", "service"):
            assert summary["latency_ms"][outcome][kind].keys() == percentiles
    assert summary["fulfilment"].keys() >= {
        "confirmed", "failed", "rejected", "lag_p50_ms", "lag_p99_ms", "drained_s", "bus",
    }  # fmt: skip
    assert summary["stock"] == {"initial": 5_000, "sold": 5_000, "remaining": 0, "oversold": 0}
    assert summary["checks"][0].keys() >= {"name", "holds", "violations", "detail"}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_response_counts_from_the_intended_start_and_service_from_sending() -> None:
    latency = measure_latency(history_of([ask(1, 100, 7, 5), ask(2, 200, 0, 3)]), 5_000)
    assert latency["response"]["max"] == 12
    assert latency["service"]["max"] == 5
    assert latency["service"]["p50"] == 4


@pytest.mark.parametrize(
    ("percentile", "samples", "trusted"),
    [("p50", 19, False), ("p50", 20, True), ("p99", 999, False), ("p99", 1000, True), ("p999", 10_000, True),
     ("p999", 9_999, False), ("max", 1, True)],
)  # fmt: skip
def test_a_percentile_is_trusted_when_ten_requests_were_slower(
    percentile: str, samples: int, trusted: bool
) -> None:
    assert is_trusted(percentile, samples) == trusted


def test_a_request_without_an_answer_counts_as_at_least_the_timeout() -> None:
    lost = ask(1, 100, 7, 0) | {"outcome": "UNKNOWN", "done_ns": None, "status": 0}
    refused = ask(2, 100, 0, 0) | {"outcome": "UNAVAILABLE", "sent_ns": None, "status": 0}
    given_up = refused | {"op": 3, "done_ns": None}
    history = history_of([lost, refused, given_up])
    assert response_ms(history, 5_000).tolist() == [5_007, 5_000, 5_000]
    latency = measure_latency(history, 5_000)
    assert (latency["response"]["p50"], latency["service"]["p50"]) == (5_000, None)


def test_an_unanswered_request_counts_with_the_outcome_told_beside_it() -> None:
    words = ["SOLD_OUT", "ACCEPTED", "ACCEPTED", "UNKNOWN", "SOLD_OUT", "SOLD_OUT", "UNKNOWN"]
    rows = [ask(op, 10 * op, 0, 1) | {"outcome": word} for op, word in enumerate(words)]
    rows[0]["product_id"] = 2
    history = history_of([row | ({"done_ns": None} if row["outcome"] == "UNKNOWN" else {}) for row in rows])
    found = {name: select_waits(history, name)["op"].tolist() for name in ("accepted", "sold_out", "unknown")}
    assert found == {"accepted": [1, 2, 3], "sold_out": [0, 4, 5, 6], "unknown": [3, 6]}
    first = history_of([rows[3] | {"done_ns": None, "intended_ns": 0}, rows[1]])
    assert select_waits(first, "accepted")["op"].tolist() == [3, 1]
    run = Metrics(
        history,
        play([], [])[1],
        measure_load(history, DriverOptions(), 1),
        datetime.now(UTC),
        Asked(sales=[]),
    )
    assert run.measure("accepted.response.max") == run.measure("all.response.p99", (0.025, 0.035)) == 5_000
    assert run.measure("accepted.service.max") == 1
    assert run.measure("accepted.count") == 2


def test_outcomes_add_up_to_the_requests() -> None:
    words = [
        "ACCEPTED",
        "SOLD_OUT",
        "LIMIT_REACHED",
        "NOT_STARTED",
        "INVALID",
        "UNAVAILABLE",
        "UNKNOWN",
        "UNKNOWN",
    ]
    history = history_of([operation(op, Ask(op + 1), word) for op, word in enumerate(words)])
    assert count_outcomes(history) == {"accepted": 1, "sold_out": 1, "rejected": 3, "error": 1, "unknown": 2}


def test_fulfilment_counts_by_status_and_measures_the_delay() -> None:
    _, state = play([Ask(user, gate_ns=user) for user in range(1, 5)], [Terms(stock=9)])
    rows = [
        row | {"settled_us": row["accepted_us"] + 1000 * (i + 1)} for i, row in enumerate(order_rows(state))
    ]
    rows[3]["status"] = "FAILED"
    state = with_orders(state, rows)
    fulfilment = measure_fulfilment(replace(state, bus=False))
    assert fulfilment == {
        "confirmed": 3, "failed": 1, "rejected": 0, "lag_p50_ms": 2.5, "lag_p99_ms": pytest.approx(3.97),
        "drained_s": 0.1, "bus": "outbox",
    }  # fmt: skip


def test_oversold_units_are_not_hidden_by_another_sale_with_units_left() -> None:
    _, state = play([Ask(1), Ask(2, product_id=2)], [Terms(stock=1), Terms(product_id=2, stock=50)])
    rows = [*order_rows(state), order("extra", Ask(3), 1), order("more", Ask(4), 1)]
    state = with_orders(state, rows)
    assert measure_stock(state, state.asked)["oversold"] == 2


def test_time_to_sell_out_ends_with_the_last_unit_and_not_with_a_retry() -> None:
    rows = [ask(1, 100, 0, 5), ask(2, 110, 0, 7), ask(2, 900, 0, 5)]
    assert time_to_sell_out(history_of(rows)) is None
    rows.append(operation(9, Ask(9, sent_ns=200 * MS), "SOLD_OUT"))
    assert time_to_sell_out(history_of(rows)) == pytest.approx(0.017)


def test_a_phase_holds_the_requests_that_were_meant_for_it() -> None:
    history = history_of([ask(1, 999, 50, 5), ask(2, 1000, 0, 7)])
    run = Metrics(
        history, FinalState(), measure_load(history, DriverOptions(), 1), datetime.now(UTC), Asked(sales=[])
    )
    phase = measure_phase(run, "peak", 0.5, 1.0)
    assert (phase["requests"], phase["offered_rps"], phase["response_p99_ms"]) == (1, 2.0, 55)


def test_an_empty_run_and_an_unread_state_have_no_numbers_rather_than_wrong_ones() -> None:
    summary = summary_of(history_of([]), FinalState(unread={"ledger": "down"}))
    json.dumps(summary, allow_nan=False)
    assert summary["verdict"] == "unknown"
    assert summary["stock"] == dict.fromkeys(["sold", "remaining", "oversold"]) | {"initial": 10_000}
    assert summary["fulfilment"]["confirmed"] is None


def test_the_start_is_given_in_utc() -> None:
    summary = summary_of(*play([Ask(1)], [Terms()]))
    assert summary["started_at"] == "2026-01-02T11:30:00.000Z"


def test_a_node_is_in_charge_until_another_one_is_seen_to_be() -> None:
    timeline = pd.DataFrame(
        {
            "t_s": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
            "node shard 0": ["redis 1", None, "redis 1", None, "redis 5", "redis 1"],
            "node ledger": [None, "postgres 2", "postgres 2", None, None, None],
            "stock_remaining": [5, 4, 3, 2, 1, 0],
        }
    )
    seen = [
        ("shard 0", "redis 1", 0.0, 0.4),
        ("shard 0", "redis 5", 0.8, 0.8),
        ("shard 0", "redis 1", 1.0, 1.0),
        ("ledger", "postgres 2", 0.2, 0.4),
    ]
    assert find_in_charge(timeline) == [
        InCharge(role=role, node=node, start_s=start_s, end_s=end_s) for role, node, start_s, end_s in seen
    ]
    assert find_in_charge(pd.DataFrame()) == []
