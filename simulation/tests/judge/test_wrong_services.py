"""Engines that are wrong in what they show, when they do it, or how they say it, are no pass."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pandas as pd
import pytest

from simulation.judge.asked import OTHER_CLOCK_NS, SAME_CLOCK_NS, read_asked
from simulation.model.events import Recovery
from simulation.scenario.schema import Scenario
from simulation.tests import histories
from simulation.tests.histories import (
    Look,
    Played,
    Terms,
    at,
    edited,
    history_of,
    order_rows,
    play,
    play_and_look,
    read_order,
    read_stock,
    with_orders,
)

pytestmark = pytest.mark.slow

S = 1_000_000_000
READS = "reads are true"
SCENARIO: dict[str, Any] = {
    **{"name": "x", "text": "x", "seed": 1, "sales": [{"product_id": 1, "stock": 3}]},
    **{"arrivals": [{"shape": "constant", "seconds": 1, "rate_rps": 1}], "population": {"users": 1}},
}


def broken(history: pd.DataFrame, state: Played, reads: pd.DataFrame | None = None, **asked: Any) -> set[str]:
    return histories.broken(histories.judge(history, state, reads, **asked))


def watched() -> tuple[pd.DataFrame, pd.DataFrame, Played]:
    """Ten buyers, one a second, and after each of them a look at the stock and at an order."""
    asks = [at(number * S, number) for number in range(1, 11)]
    times = [number * S + S // 2 for number in range(1, 11)]
    stocks = [Look(sent_ns=time, gate_ns=time + 5, done_ns=time + 10) for time in times]
    orders = [Look(order=0, sent_ns=time, gate_ns=time + 5, done_ns=time + 10) for time in times]
    return play_and_look(asks, [*stocks, *orders], [Terms(stock=20)])


def declined() -> tuple[pd.DataFrame, Played]:
    """One unit of two is given back, and sold again after the third buyer was told SOLD_OUT."""
    asks = [at(100, 1, declined=True), at(120, 2), at(130, 3), at(4 * S, 4), at(5 * S, 5)]
    return play(asks, [Terms(stock=2)])


def without(history: pd.DataFrame, state: Played, op: int, outcome: str) -> tuple[pd.DataFrame, Played]:
    """The run, had a purchase been refused, and its unit stayed at the gate."""
    lost = history.loc[history["op"] == op, "order_id"].iloc[0]
    state = with_orders(state, [row for row in order_rows(state) if row["order_id"] != lost])
    assert state.gate is not None
    state = replace(state, gate=state.gate.assign(remaining=state.gate["remaining"] + 1))
    return edited(history, op, outcome=outcome, result="fail", order_id=None), state


# --- reads


def test_true_reads_pass() -> None:
    history, reads, state = watched()
    assert broken(history, state, reads) == set()


NOTHING_SHOWN: dict[str, Any] = {"order_status": None, "initial": pd.NA, "remaining": pd.NA, "sold": pd.NA}


@pytest.mark.parametrize("kind", ["stock", "order"])
@pytest.mark.parametrize(
    ("outcome", "status", "rule"),
    [
        ("UNKNOWN", 500, "no server errors"),
        ("UNKNOWN", 200, "no server errors"),
        ("UNKNOWN", 0, "no server errors"),
        ("UNAVAILABLE", 503, READS),
        ("INVALID", 400, READS),
    ],
)
def test_reads_that_are_not_answered_are_found(kind: str, outcome: str, status: int, rule: str) -> None:
    history, reads, state = watched()
    told: dict[str, Any] = {"outcome": outcome, "status": status, "result": "fail"} | NOTHING_SHOWN
    reads = reads.astype({"outcome": "str", "result": "str"})
    for name, value in told.items():
        reads[name] = reads[name].mask(reads["kind"] == kind, value)
    if not status:
        reads["done_ns"] = reads["done_ns"].mask(reads["kind"] == kind)
    assert rule in broken(history, state, reads)
    excused = broken(history, state, reads, overload=True)
    assert (rule in excused) == (status not in (0, 503)), "an overload explains silence and 503, nothing else"


def test_a_stock_that_never_changes_is_found() -> None:
    history, reads, state = watched()
    full = reads.assign(remaining=reads["initial"], sold=reads["initial"] * 0)
    assert broken(history, state, full) == {READS}
    assert broken(history, state, full, load_valid=False) == set(), "a machine that stalls may be slow"


def test_a_stock_of_half_a_second_ago_is_no_lie() -> None:
    history, state = play([at(S, 1)], [Terms(stock=2)])
    assert broken(history, state, history_of([read_stock(9, S + S // 2, 2, 2)])) == set()
    assert broken(history, state, history_of([read_stock(9, 2 * S + 100, 2, 2)])) == {READS}


def test_a_status_that_stays_pending_is_found() -> None:
    history, state = play([at(S, 1)], [Terms()])
    order_id = history["order_id"].iloc[0]
    assert broken(history, state, history_of([read_order(9, order_id, S + S // 2, "PENDING")])) == set()
    stale = history_of([read_order(9, order_id, 3 * S, "PENDING")])
    assert broken(history, state, stale) == {READS}
    assert broken(history, state, stale, overload=True) == set()
    late = trouble(2, 4)
    assert broken(history, state, stale, faults=[late]) == set()


def trouble(start_s: float, end_s: float) -> Recovery:
    return msgspec.structs.replace(histories.TROUBLE, start_s=start_s, end_s=end_s)


# --- units of declined payments


def test_units_that_come_back_and_are_sold_again_pass() -> None:
    history, state = declined()
    assert history["outcome"].tolist() == ["ACCEPTED", "ACCEPTED", "SOLD_OUT", "ACCEPTED", "SOLD_OUT"]
    assert broken(history, state) == set()


def test_units_that_come_back_and_are_never_sold_again_are_found() -> None:
    history, state = without(*declined(), 3, "SOLD_OUT")
    assert broken(history, state) == {"sold out means sold out"}
    late = trouble(0, 1)
    assert broken(history, state, faults=[late]) == set(), "the fault may have kept the unit"


def test_a_stock_that_lacks_a_unit_that_came_back_is_found() -> None:
    history, state = without(*declined(), 3, "SOLD_OUT")
    reads = history_of([read_stock(9, 3 * S, 2, 0)])
    assert READS in broken(history, state, reads)


def test_a_limit_that_counts_declined_purchases_is_found() -> None:
    history, state = play([at(100, 1, declined=True), at(3 * S, 1)], [Terms(limit=1)])
    assert broken(history, state) == set()
    assert broken(*without(history, state, 1, "LIMIT_REACHED")) == {"refusals are true"}


def test_sold_out_while_reads_show_units_is_found() -> None:
    """One of two units came back during a fault, so that the ledger can't tell whether both were gone."""
    asks = [at(S, 1, declined=True), at(4 * S, 2), at(6 * S, 3), at(7 * S, 4)]
    looks = [Look(sent_ns=time, gate_ns=time + 5, done_ns=time + 10) for time in (3 * S, 5 * S + S // 2)]
    history, reads, state = play_and_look(asks, looks, [Terms(stock=2)])
    assert history["outcome"].tolist() == ["ACCEPTED", "ACCEPTED", "ACCEPTED", "SOLD_OUT"]
    assert reads["remaining"].tolist() == [2, 1]
    faults = [trouble(0.9, 1.1)]
    assert broken(history, state, reads, faults=faults) == set()
    history, state = without(history, state, 2, "SOLD_OUT")
    assert broken(history, state, faults=faults) == set()
    assert broken(history, state, reads, faults=faults) == {"sold out means sold out"}


# --- orders and their times


def test_orders_without_the_key_of_their_purchase_are_found() -> None:
    history, state = play([at(100, 1, key="a"), at(200, 2, key="b")], [Terms()])
    for key in (None, "c"):
        other = with_orders(state, [row | {"idempotency_key": key} for row in order_rows(state)])
        assert broken(history, other) == {"accepted is settled"}


def test_orders_that_end_before_they_begin_are_found() -> None:
    history, state = play([at(S, 1)], [Terms()])
    hasty = with_orders(state, [row | {"settled_us": -1_000_000} for row in order_rows(state)])
    assert broken(history, hasty) == {"accepted is settled"}


def test_an_unknown_outcome_explains_only_an_order_of_its_time() -> None:
    history, state = play([at(10 * S, 1, lost=True), at(11 * S, 2)], [Terms()])
    faults = [trouble(9, 11)]
    assert broken(history, state, faults=faults) == set()
    for moment_s in (5, 40):
        moved = with_orders(
            state,
            [
                row | ({"accepted_us": moment_s * 1_000_000} if row["user_id"] == 1 else {})
                for row in order_rows(state)
            ],
        )
        assert broken(history, moved, faults=faults) == {"no phantom orders"}


@pytest.mark.parametrize("name", ["accepted_us", "user_id", "quantity", "product_id", "sale_id"])
def test_an_order_that_lacks_a_number_is_found(name: str) -> None:
    history, state = play([at(S, 1), at(2 * S, 2)], [Terms()])
    lacking = with_orders(state, [row | {name: None} for row in order_rows(state)])
    assert broken(history, lacking)


def test_a_sale_without_a_count_is_found() -> None:
    history, state = play([at(S, 1)], [Terms()])
    assert state.sales is not None
    uncounted = replace(state, sales=state.sales.assign(sold=pd.array([pd.NA], "Int64")))
    assert broken(history, uncounted) == {"no oversell"}


def test_an_engine_that_never_comes_to_rest_is_found() -> None:
    history, state = play([at(S, 1)], [Terms()])
    assert broken(history, replace(state, drained_s=None)) == {"nothing is stranded"}


# --- the service


def test_a_status_that_says_something_else_is_found() -> None:
    history, state = play([at(100, 1), at(200, 2)], [Terms(stock=1)])
    assert broken(history, state) == set()
    for op, status in ((1, 409), (1, 200), (0, 429), (0, 201)):
        assert broken(edited(history, op, status=status), state) == {"no server errors"}


@pytest.mark.parametrize(
    ("rate_rps", "away_s", "strays", "state"),
    [
        (40, 4.5, (), "not judged"),
        (4, 4.5, (20, 100, 110), "not judged"),  # a single 503 is no hand-over
        (1, 4.5, (), "not judged"),
        (1, 7.5, (), "broken"),
        (40, 0, range(0, 1_200, 7), "broken"),
    ],
)
def test_whoever_is_turned_away_elsewhere_may_have_met_a_hand_over(
    rate_rps: int, away_s: float, strays: Sequence[int], state: str
) -> None:
    asks = [at(number * S // rate_rps, number) for number in range(1, 30 * rate_rps + 1)]
    history, stores = play(asks, [Terms(stock=1)])
    away = history["sent_ns"].between(10 * S, round((10 + away_s) * S) - 1) | history["op"].isin(strays)
    away &= history["outcome"] == "SOLD_OUT"
    rows = history.astype({"outcome": "str"})
    rows = rows.assign(
        outcome=rows["outcome"].mask(away, "UNAVAILABLE"), status=rows["status"].mask(away, 503)
    )
    checks = histories.judge(rows, stores, elsewhere=True)
    assert {check.name: check.state for check in checks}["the sale happened"] == state


def test_a_hand_over_elsewhere_excuses_nothing_but_what_is_turned_away() -> None:
    history, state = declined()
    assert state.gate is not None
    off = replace(state, gate=state.gate.assign(released=0))
    reads = history_of(
        [
            read_stock(9 + number, 6 * S + number, 2, 0)
            | {"outcome": "UNAVAILABLE", "status": 503, "result": "fail"}
            for number in range(12)
        ]
    )
    checks = histories.judge(history, off, reads, elsewhere=True)
    states = {check.name: check.state for check in checks}
    assert (states["units are conserved"], states[READS]) == ("broken", "not judged")


def test_an_answer_that_comes_after_everybody_has_left_is_none() -> None:
    history, state = play([at(100, 1), at(200, 2)], [Terms()])
    assert broken(edited(history, 1, done_ns=5 * S), state) == set()
    assert broken(edited(history, 1, done_ns=7 * S), state) == {"no server errors"}


def test_retries_under_a_key_that_are_turned_away_are_found() -> None:
    asks = [at(number * 100, number, key="a") for number in range(1, 200)]
    again = [at(100_000 + number * 100, number, key="a") for number in range(1, 13)]
    history, state = play([*asks, *again], [Terms(stock=300)])
    assert broken(history, state) == set()
    for op in range(len(asks), len(history)):
        history = edited(history, op, outcome="UNAVAILABLE", result="fail", order_id=None)
    assert broken(history, state) == {"a key tells the truth"}
    assert broken(history, state, overload=True) == set()


def test_under_an_overload_nothing_was_tested_of_whether_the_sale_happened() -> None:
    history, state = play([at(100, 1), at(200, 2)], [Terms(stock=1)])
    states = {check.name: check.state for check in histories.judge(history, state, overload=True)}
    assert states["the sale happened"] == "not exercised"
    states = {check.name: check.state for check in histories.judge(history, state)}
    assert states["the sale happened"] == "held"


def test_clocks_that_were_seen_to_differ_are_allowed_to() -> None:
    history, state = play([at(10 * S, 1)], [Terms()])
    moved = with_orders(state, [row | {"accepted_us": 7_500_000} for row in order_rows(state)])
    scenario = msgspec.convert(SCENARIO, Scenario)
    slack_ns = [read_asked(scenario, skew_s=skew_s).clock_ns for skew_s in (0, 3)]
    assert broken(history, moved, clock_ns=slack_ns[0]) == {"accepted is settled"}
    assert broken(history, moved, clock_ns=slack_ns[1]) == set()


@pytest.mark.parametrize(
    ("target", "is_here"),
    [
        (None, True),
        ("http://127.0.0.1:8080, https://localhost", True),
        ("http://[::1]:8080", True),
        ("http://127.0.0.1:8080, http://shop.example:8080", False),
        ("http://localhost.example", False),
    ],
)
def test_the_farthest_front_door_says_how_far_clocks_may_differ(target: str | None, is_here: bool) -> None:
    asked = read_asked(msgspec.convert(SCENARIO, Scenario), target=target)
    assert asked.clock_ns == (SAME_CLOCK_NS if is_here else OTHER_CLOCK_NS)
