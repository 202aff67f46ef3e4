"""Engines that are right at the end of a run, and were wrong on the way, are no pass."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from simulation.judge.asked import read_asked
from simulation.judge.verdict import verdict
from simulation.scenario.schema import Scenario
from simulation.tests import histories
from simulation.tests.histories import (
    Played,
    Terms,
    at,
    edited,
    history_of,
    order_rows,
    play,
    read_order,
    read_stock,
    with_orders,
)
from simulation.tests.run_folders import make_run
from simulation.verdict import load_run

S = 1_000_000_000
SCENARIO: dict[str, Any] = {
    **{"name": "x", "text": "x", "seed": 1, "sales": [{"product_id": 1, "stock": 3}]},
    **{"arrivals": [{"shape": "constant", "seconds": 1, "rate_rps": 1}], "population": {"users": 1}},
}


def broken(history: pd.DataFrame, state: Played, reads: pd.DataFrame | None = None, **more: Any) -> set[str]:
    return histories.broken(histories.judge(history, state, reads, **more))


def settle(state: Played, second: float | None, status: str = "FAILED") -> Played:
    """The run, had the orders of that status been settled at another time."""
    settled_us = None if second is None else round(second * 1_000_000)
    rows = order_rows(state)
    return with_orders(
        state, [row | ({"settled_us": settled_us} if row["status"] == status else {}) for row in rows]
    )


def refused(history: pd.DataFrame, op: int, outcome: str = "UNAVAILABLE") -> pd.DataFrame:
    return edited(history, op, outcome=outcome, result="fail", order_id=None)


# --- what is promised at once


def resold() -> tuple[pd.DataFrame, Played]:
    """The first of two units comes back, and is sold again three seconds later."""
    return play([at(S, 1, declined=True), at(2 * S, 2), at(4 * S, 3)], [Terms(stock=2)])


def test_units_that_are_sold_again_before_their_payment_failed_are_found() -> None:
    history, state = resold()
    assert broken(history, state) == set()
    assert broken(history, settle(state, 3.9)) == set()
    late = settle(state, 4.5)
    assert broken(history, late) == {"no oversell"}
    assert broken(history, late, clock_ns=S) == set(), "the clocks may differ by as much"


def test_a_limit_that_is_exceeded_until_a_payment_fails_is_found() -> None:
    history, state = play([at(S, 1, declined=True), at(4 * S, 1)], [Terms(stock=5, limit=1)])
    assert broken(history, state) == set()
    assert broken(history, settle(state, 4.5)) == {"user limit is kept"}


def test_each_sale_of_a_product_has_its_own_stock_to_promise() -> None:
    asks = [at(S, 1, declined=True), at(2 * S, 2), at(6 * S, 3), at(7 * S, 4)]
    history, state = play(asks, [Terms(stock=1), Terms(stock=5, opens_ns=5 * S)])
    assert broken(history, state) == set()
    assert broken(history, settle(state, 2.5)) == {"no oversell"}


# --- what the probes saw


def seen(**counts: list[int]) -> pd.DataFrame:
    """Samples, one a second from half a second on."""
    return pd.DataFrame(
        {"t_s": [0.5 + number for number in range(len(next(iter(counts.values()))))]} | counts
    )


def test_what_the_probes_saw_of_a_right_engine_is_right() -> None:
    history, state = resold()
    looked = seen(
        stock_remaining=[2, 2, 1, 1, 0],
        ledger_failed=[0, 1, 1, 1, 1],
        ledger_confirmed=[0, 0, 1, 1, 2],
        outbox_entries=[0, 1, 2, 2, 0],
        pending_orders=[0, 1, 2, 2, 0],
        queue_messages=[0, 1, 2, 2, 0],
    )
    assert broken(history, state, timeline=looked) == set()


def test_late_samples_with_a_gap_between_them_are_no_row() -> None:
    history, state = resold()
    counts = pd.Series([0, 0, 0, 0, 0, 0, 1, 1, 1, 2], dtype="Int64")
    looked = seen(ledger_confirmed=[*counts])
    assert broken(history, state, timeline=looked) == {"no phantom orders"}
    gaps = counts.mask(~counts.index.isin([0, 5, 8, 9]))
    assert broken(history, state, timeline=looked.assign(ledger_confirmed=gaps)) == set()


@pytest.mark.parametrize(
    ("name", "counts", "rule"),
    [
        ("stock_remaining", [2, 1, -1, 0], "units are conserved"),
        ("stock_remaining", [2, 3, 1, 1], "units are conserved"),
        ("stock_remaining", [0, 2, 1, 1], "units are conserved"),
        ("stock_remaining", [2, 2, 2, 2, 2], "units are conserved"),
        ("ledger_failed", [0, 2, 1, 1], "units are conserved"),
        ("ledger_failed", [-1, 1, 1, 1], "units are conserved"),
        ("ledger_confirmed", [0, 1, 3, 3], "no phantom orders"),
        ("ledger_confirmed", [2, 2, 2, 2], "no phantom orders"),
        ("ledger_confirmed", [0, 1, 0, 2], "no phantom orders"),
        ("ledger_confirmed", [0, 2, 2, 2], "no phantom orders"),
        ("ledger_confirmed", [0, 0, 0, 0, 0, 1, 1, 1, 2], "no phantom orders"),
        ("outbox_entries", [0, 1, 2, 3, 4], "nothing is stranded"),
        ("pending_orders", [0, 2, 4, 0, 0], "nothing is stranded"),
        ("queue_messages", [0, 0, 0, 1, 2], "nothing is stranded"),
        ("queue_messages", [0, -1, 0, 0, 0], "nothing is stranded"),
        ("outbox_entries", [0, -1, 0, 0, 0], "nothing is stranded"),
        ("outbox_entries", [0, 1, 0, 1, 2, 3, 3, 3, 0], "nothing is stranded"),
        ("pending_orders", [0, 1, 1, 1, 2, 2, 1, 1, 0], "nothing is stranded"),
    ],
)
def test_a_count_that_the_history_contradicts_is_found(name: str, counts: list[int], rule: str) -> None:
    history, state = resold()
    looked = seen(**{name: counts})
    assert broken(history, state, timeline=looked) == {rule}


def test_only_a_fault_explains_a_gate_that_forgot_its_units() -> None:
    history, state = resold()
    forgetful = seen(stock_remaining=[0, 0, 1, 1, 0])
    assert broken(history, state, timeline=forgetful) == {"units are conserved"}
    assert broken(history, state, timeline=forgetful, faults=[histories.TROUBLE]) == set()


@pytest.mark.parametrize(
    ("name", "counts", "rule"),
    [
        ("ledger_failed", [0, 0, 0, 0, 0, 0, 1], "units are conserved"),
        ("ledger_confirmed", [0, 0, 1, 1, 1, 1, 1, 1, 2], "no phantom orders"),
        ("pending_orders", [0, 1, 1, 1, 1, 1, 1, 1, 0], "nothing is stranded"),
    ],
)
def test_a_count_that_stands_still_may_be_of_a_server_that_was_replaced(
    name: str, counts: list[int], rule: str
) -> None:
    history, state = resold()
    checks = histories.judge(history, state, timeline=seen(**{name: counts}))
    assert [check.name for check in checks if check.state in ("broken", "not judged")] == [rule]
    assert verdict(checks, load_valid=True) == "unknown"


def test_units_that_are_released_before_their_payment_failed_are_found() -> None:
    history, state = resold()
    looked = seen(ledger_failed=[0, 1, 1, 1, 1])
    assert broken(history, state, timeline=looked) == set()
    assert broken(history, settle(state, 3.9), timeline=looked) == {"units are conserved"}


@pytest.mark.parametrize("waiting", [[2, 1, 1, 1, 1, 1, 1, 0], [2, 0, 0, 1, 2, 3, 3, 0]])
def test_what_a_fault_left_may_wait_and_a_backlog_that_comes_back_is_found(waiting: list[int]) -> None:
    history, state = resold()
    looked = seen(outbox_entries=[0, *waiting])
    checks = histories.judge(history, state, timeline=looked, faults=[histories.TROUBLE])
    comes_back = waiting[1] == 0
    assert histories.broken(checks) == ({"nothing is stranded"} if comes_back else set())
    assert verdict(checks, load_valid=True) == ("fail" if comes_back else "pass")


# --- how long orders wait


def queued(*settled_s: float) -> Played:
    """Five purchases, one a second, that are settled then."""
    _, state = play([at(number * S, number) for number in range(1, 6)], [Terms(stock=9)])
    rows = zip(order_rows(state), settled_s, strict=True)
    return with_orders(state, [row | {"settled_us": round(second * 1_000_000)} for row, second in rows])


@pytest.mark.parametrize(
    ("settled_s", "found"),
    [
        ((1, 2, 3, 4, 5), set()),
        ((10, 19, 28, 37, 46), set()),  # slow, and never at a standstill
        ((1, 2, 3, 4, 16), {"nothing is stranded"}),
        ((1, 2, 20, 20.001, 20.002), {"nothing is stranded"}),
        ((1, 17, 3, 8, 16), {"nothing is stranded"}),  # younger ones were settled
    ],
)
def test_orders_that_wait_without_any_progress_are_found(
    settled_s: tuple[float, ...], found: set[str]
) -> None:
    history, _ = play([at(number * S, number) for number in range(1, 6)], [Terms(stock=9)])
    assert broken(history, queued(*settled_s)) == found
    for reason in ({"faults": [histories.TROUBLE]}, {"overload": True}, {"alone": False}):
        excused = broken(history, queued(*settled_s), **reason)
        assert excused == (found if "faults" in reason else set()), "the fault is over"


@pytest.mark.parametrize(
    ("asked", "recover_s", "last_s", "found"),
    [
        ({"payment_latency_ms": 11_000, "payment_timeout_ms": 20_000}, 10, 16.5, set()),
        ({"payment_latency_ms": 6_000}, 5, 11.5, set()),
        ({"outbox_wait_ms": 12_000}, 5, 18, set()),
        ({"fulfilment_wait_ms": "12000"}, 5, 18, set()),
        ({}, 5, 12, set()),  # a payment that is tried again
        ({}, 5, 17, {"nothing is stranded"}),
        ({"payment_timeout_ms": 100}, 5, 12, {"nothing is stranded"}),
    ],
)
def test_an_order_may_wait_as_long_as_the_settings_say(
    asked: dict[str, Any], recover_s: float, last_s: float, found: set[str]
) -> None:
    scenario = msgspec.convert(SCENARIO | {"engine": asked, "recover_s": recover_s}, Scenario)
    history, _ = play([at(number * S, number) for number in range(1, 6)], [Terms(stock=9)])
    given = read_asked(scenario)
    terms: dict[str, Any] = {"recover_s": given.recover_s, "idle_ns": given.idle_ns}
    assert broken(history, queued(1, 2, 3, 4, last_s), **terms) == found


# --- what buyers hear


def unheard(history: pd.DataFrame, ops: range) -> pd.DataFrame:
    for op in ops:
        history = edited(history, op, outcome="UNKNOWN", result="unknown", status=503, order_id=None)
    return history


def test_buyers_who_never_hear_that_they_bought_are_found() -> None:
    history, state = play([at(number * S, number) for number in range(1, 601)], [Terms(stock=20)])
    assert broken(unheard(history, range(2)), state) == set(), "one in ten"
    assert broken(unheard(history, range(3)), state) == {"the sale happened"}
    assert broken(unheard(history, range(3)), state, overload=True) == set()


def test_a_single_buyer_who_is_not_told_is_found_if_nobody_is() -> None:
    history, state = play([at(S, 1), at(2 * S, 2)], [Terms(stock=1)])
    assert broken(unheard(history, range(1)), state) == {"the sale happened"}
    assert broken(unheard(history, range(1)), state, faults=[histories.TROUBLE]) == set()


@pytest.mark.parametrize("outcome", ["UNAVAILABLE", "SOLD_OUT"])
def test_an_order_of_a_try_that_was_refused_is_found(outcome: str) -> None:
    asks = [at(S, 1, key="a"), at(3 * S, 1, key="a"), at(4 * S, 2)]
    history, state = play(asks, [Terms(stock=1)])
    assert broken(history, state) == set()
    assert "refusals are true" in broken(refused(history, 0, outcome), state)
    later = with_orders(state, [row | {"accepted_us": 3_000_000} for row in order_rows(state)])
    assert "refusals are true" not in broken(refused(history, 0, outcome), settle(later, 3.1, "CONFIRMED"))


# --- what is shown


def test_a_status_that_comes_before_the_ledgers_is_found() -> None:
    history, state = play([at(S, 1)], [Terms()])
    seen = history_of([read_order(9, history["order_id"].iloc[0], 2 * S, "CONFIRMED")])
    assert broken(history, settle(state, 1.9, "CONFIRMED"), seen) == set()
    assert broken(history, settle(state, 7, "CONFIRMED"), seen) == {"reads are true"}


def test_units_that_are_shown_before_their_payment_failed_are_found() -> None:
    history, state = play([at(S, 1, declined=True), at(2 * S, 2)], [Terms(stock=2)])
    seen = history_of([read_stock(9, 4 * S, 2, 1)])
    assert broken(history, settle(state, 3.9), seen) == set()
    assert broken(history, settle(state, 5), seen) == {"reads are true"}


def test_a_stock_that_is_shown_late_does_not_make_sold_out_a_lie() -> None:
    asks = [at(10 * S + number * S // 10, number) for number in range(1, 4)]
    history, state = play(asks, [Terms(stock=2)])
    assert history["outcome"].tolist() == ["ACCEPTED", "ACCEPTED", "SOLD_OUT"]
    # So it was until 0.05 s before.
    stale = history_of([read_stock(9, 10 * S + 3 * S // 20, 2, 2)])
    assert broken(history, state, stale) == set()


# --- what the stores tell of it


@pytest.mark.parametrize("second", [None, 90_000])
def test_an_order_that_is_settled_at_no_time_of_the_run_is_found(second: float | None) -> None:
    history, state = play([at(S, 1)], [Terms()])
    assert broken(history, state, read_ns=20 * S) == set()
    late = {"nothing is stranded"} if second else set()
    found = broken(history, settle(state, second, "CONFIRMED"), read_ns=20 * S)
    assert found == {"accepted is settled"} | late


def test_a_confirmed_order_with_a_reason_to_fail_is_found() -> None:
    history, state = play([at(S, 1)], [Terms()])
    reasoned = with_orders(state, [row | {"reason": "payment declined"} for row in order_rows(state)])
    assert broken(history, reasoned) == {"payment decides"}


@pytest.mark.parametrize("released", [-1, 0, 2])
def test_a_gate_that_released_other_units_than_failed_is_found(released: int) -> None:
    history, state = resold()
    assert state.gate is not None
    other = replace(state, gate=state.gate.assign(released=released))
    assert broken(history, other) == {"units are conserved"}
    rebuilt = broken(history, other, faults=[histories.TROUBLE])
    assert rebuilt == (set() if released == 0 else {"units are conserved"}), "a rebuilt gate counts from 0"


# --- clocks


@pytest.mark.slow
def test_a_clock_that_was_set_during_the_run_is_allowed_for(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, seed=1)
    orders = pd.read_parquet(folder / "final" / "orders.parquet")
    set_at = orders["accepted_us"].median()
    for name in ("accepted_us", "settled_us"):
        orders[name] += 300_000 * (orders[name] > set_at)
    orders.to_parquet(folder / "final" / "orders.parquet", index=False)

    def broken_rules() -> list[str]:
        checks = load_run(folder).summary["checks"]
        return [check["name"] for check in checks if check["state"] == "broken"]

    assert "accepted is settled" in broken_rules()
    timeline = pd.read_csv(folder / "timeline.csv")
    shifted = timeline.assign(clock_shift_ms=np.where(timeline["t_s"] > 1, 300.0, 0.0))
    shifted.to_csv(folder / "timeline.csv", index=False)
    assert broken_rules() == []
