"""A load that was not the one asked for says so, and says why."""

from collections.abc import Sequence
from typing import Any

import pytest

from simulation.judge.numbers.load import Load, measure_load
from simulation.model.history import make_history
from simulation.scenario.loading import read_scenario
from simulation.tests.scenario.test_scenario import minimal

MS = 1_000_000
Row = tuple[float, float | None, float | None]
"""Intended, sent and done, in ms."""


def report(
    rows: Sequence[Row],
    drivers: list[int] | None = None,
    ended_s: float | None = None,
    attempts: list[int] | None = None,
    **options: Any,
) -> Load:
    def nanoseconds(column: int) -> list[int]:
        return [-1 if (value := row[column]) is None else round(value * MS) for row in rows]

    size = len(rows)
    history = make_history(
        {
            "op": range(size),
            "driver": drivers or [0] * size,
            "user_id": [1] * size,
            "product_id": [1] * size,
            "key": [None] * size,
            "intended_ns": nanoseconds(0),
            "sent_ns": nanoseconds(1),
            "done_ns": nanoseconds(2),
            "status": [200] * size,
            "outcome": ["ACCEPTED"] * size,
            "result": ["ok"] * size,
            "order_id": [None] * size,
            "attempt": attempts or [0] * size,
            "first_op": range(size),
        }
    )
    driver = {"connections": 10, "timeout_ms": 1_000, "late_p99_ms": 5} | options
    arrivals = [{"shape": "constant", "seconds": 2, "rate_rps": 50}]
    scenario = read_scenario(minimal(arrivals=arrivals, driver=driver))
    return measure_load(history, scenario.driver, scenario.duration_s() if ended_s is None else ended_s)


def on_time(count: int = 100) -> list[Row]:
    return [(op * 20, op * 20 + 1, op * 20 + 4) for op in range(count)]


def test_a_load_that_was_on_time_is_valid() -> None:
    found = report(on_time())
    assert found == Load(
        requests=100,
        sent=100,
        offered_rps=50,
        achieved_rps=50,
        lag_p99_ms=1,
        retries=0,
        valid=True,
        reason="",
    )


def test_answers_that_come_after_the_end_lower_the_rate_achieved() -> None:
    rows = on_time()
    rows[-1] = (1_980, 1_981, 4_000)
    assert report(rows).achieved_rps == pytest.approx(25)


def test_clients_that_come_again_are_load_as_well() -> None:
    again: list[Row] = [(op * 20 + 500, op * 20 + 501, op * 20 + 504) for op in range(100)]
    found = report([*on_time(), *again], attempts=[0] * 100 + [1] * 100)
    assert (found.requests, found.retries, found.valid) == (200, 100, True)
    # The last of them was meant to start at 2.48 s, and was answered 4 ms later.
    assert found.offered_rps == pytest.approx(200 / 2.48)
    assert found.achieved_rps == pytest.approx(200 / 2.484)


def test_a_retry_that_the_driver_sends_late_counts_for_the_lag() -> None:
    again: list[Row] = [(op * 20 + 500, op * 20 + 506, op * 20 + 509) for op in range(100)]
    found = report([*on_time(), *again], attempts=[0] * 100 + [1] * 100)
    assert found.reason == "the p99 of the lag is 6.0 ms, more than 5 ms"


def test_a_late_driver_makes_the_run_invalid() -> None:
    found = report([(op * 20, op * 20 + 6, op * 20 + 9) for op in range(100)])
    assert not found.valid
    assert found.reason == "the p99 of the lag is 6.0 ms, more than 5 ms"


def test_one_late_request_in_a_thousand_is_allowed() -> None:
    rows = [(op * 2, op * 2 + 1, op * 2 + 1.5) for op in range(1_000)]
    rows[500] = (1_000, 1_500, 1_500.5)
    assert report(rows).valid


def test_a_request_that_was_never_sent_makes_the_run_invalid() -> None:
    rows = on_time()
    rows[3] = (60, None, None)
    found = report(rows)
    assert (found.valid, found.sent, found.reason) == (False, 99, "1 requests were never sent")


def test_a_scenario_may_allow_that_requests_are_given_up() -> None:
    rows = on_time()
    rows[3] = (60, None, None)
    found = report(rows, may_give_up=True)
    assert (found.valid, found.sent) == (True, 99)


def test_a_load_that_was_stopped_lasted_until_then() -> None:
    found = report(on_time(50), ended_s=1.0)
    assert (found.valid, found.offered_rps, found.achieved_rps) == (True, 50, 50)


def test_a_request_that_the_server_refused_does_not() -> None:
    rows = on_time()
    rows[3] = (60, None, 61)
    found = report(rows)
    assert (found.valid, found.sent) == (True, 99)


def test_a_run_in_which_nothing_was_sent_is_invalid() -> None:
    assert report([(0, None, 1), (1, None, 2)]).reason == "no request was sent"


def waiting_at_the_cap(done: float | None) -> list[Row]:
    """Ten requests hold the ten connections; the eleventh waits until the first one is done."""
    held: list[Row] = [(op, op, 600 if op else done) for op in range(10)]
    return [*held, (20, 500, 510), *((1_000 + op, 1_000 + op, 1_001 + op) for op in range(1_500))]


def test_waiting_for_a_connection_breaks_the_open_loop() -> None:
    found = report(waiting_at_the_cap(500))
    assert not found.valid
    assert found.reason.startswith("1 requests waited while all 10 connections were busy")


def test_a_scenario_may_allow_it() -> None:
    assert report(waiting_at_the_cap(500), connections_may_run_out=True).valid


def test_the_lag_of_the_driver_itself_counts_even_then() -> None:
    late: list[Row] = [(3_000 + op * 20, 3_007 + op * 20, 3_008 + op * 20) for op in range(500)]
    rows = [*waiting_at_the_cap(500), *late]
    found = report(rows, connections_may_run_out=True)
    assert found.reason == "the p99 of the lag is 7.0 ms, more than 5 ms"


def test_a_request_without_an_answer_holds_its_connection_until_its_timeout() -> None:
    rows: list[Row] = [(op, op, None) for op in range(10)]
    rows += [(20, 1_000, 1_001)]
    rows += [(2_000 + op, 2_000 + op, 2_001 + op) for op in range(1_500)]
    assert "1 requests waited" in report(rows).reason


def test_each_driver_has_connections_of_its_own() -> None:
    rows = waiting_at_the_cap(500)
    drivers = [op % 2 for op in range(10)] + [0] + [0] * (len(rows) - 11)
    assert report(rows, drivers).valid
