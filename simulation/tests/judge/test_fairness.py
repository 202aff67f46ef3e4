"""Fairness compares the winners with the order of arrival, and bots with people."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.judge.numbers.fairness import measure_bots, measure_fairness, measure_order
from simulation.judge.numbers.requests import measure_retries
from simulation.model.history import make_history
from simulation.scenario.loading import read_scenario
from simulation.tests.histories import Ask, order, orders_of
from simulation.tests.scenario.test_scenario import minimal

MS = 1_000_000
Row = tuple[int, str, int]
"""When a client came, in ms; the outcome that it was told; and when it was told, in ms."""


def history_of(rows: list[Row], **columns: Any) -> pd.DataFrame:
    size = len(rows)
    won = {"ACCEPTED": "ok", "UNKNOWN": "unknown"}
    return make_history(
        {
            "op": range(size),
            "driver": [0] * size,
            "user_id": range(1, size + 1),
            "product_id": [1] * size,
            "key": [None] * size,
            "intended_ns": [came * MS for came, _, _ in rows],
            "sent_ns": [came * MS for came, _, _ in rows],
            "done_ns": [-1 if told == "UNKNOWN" else done * MS for _, told, done in rows],
            "status": [200] * size,
            "outcome": [told for _, told, _ in rows],
            "result": [won.get(told, "fail") for _, told, _ in rows],
            "order_id": [f"o{op}" if told == "ACCEPTED" else None for op, (_, told, _) in enumerate(rows)],
        }
        | columns
    )


def sale(*told: str) -> pd.DataFrame:
    """A client each 10 ms, each answered 5 ms later."""
    return history_of([(10 * op, word, 10 * op + 5) for op, word in enumerate(told)])


def test_the_first_to_come_are_the_first_served() -> None:
    assert measure_order(sale("ACCEPTED", "ACCEPTED", "ACCEPTED", "SOLD_OUT", "SOLD_OUT")) == {
        "clients": 5,
        "winners": 3,
        "out_of_turn_winners": 0,
        "out_of_turn_share": 0,
        "out_of_turn_p50_ms": None,
        "out_of_turn_max_ms": None,
        "rank_correlation": 1,
    }


def test_winners_that_came_after_the_last_who_should_have_won_are_out_of_turn() -> None:
    fields = measure_order(sale("ACCEPTED", "SOLD_OUT", "SOLD_OUT", "ACCEPTED", "ACCEPTED", "ACCEPTED"))
    # Four won: the first four should have, the last two did instead, 10 and 20 ms after the fourth.
    assert (fields["winners"], fields["out_of_turn_winners"]) == (4, 2)
    assert fields["out_of_turn_share"] == 0.5
    assert (fields["out_of_turn_p50_ms"], fields["out_of_turn_max_ms"]) == (15, 20)


def test_only_those_count_on_whom_the_gate_decided_by_stock() -> None:
    fields = measure_order(
        sale("UNKNOWN", "LIMIT_REACHED", "UNAVAILABLE", "NOT_STARTED", "ACCEPTED", "SOLD_OUT")
    )
    assert (fields["clients"], fields["winners"], fields["out_of_turn_winners"]) == (2, 1, 0)


def test_an_early_bird_came_when_it_first_came() -> None:
    rows = [(0, "NOT_STARTED", 5), (10, "NOT_STARTED", 15), (100, "ACCEPTED", 105)]
    rows += [(110, "SOLD_OUT", 115), (50, "ACCEPTED", 55)]
    history = history_of(rows, attempt=[0, 0, 0, 1, 1], first_op=[0, 1, 2, 0, 1])
    fields = measure_order(history)
    # It came first of three, came again last, and lost to one that came 90 ms after the second.
    assert (fields["clients"], fields["winners"], fields["out_of_turn_winners"]) == (3, 2, 1)
    assert fields["out_of_turn_max_ms"] == 90


def test_a_retry_under_a_key_is_the_client_that_won_before() -> None:
    rows = [(0, "ACCEPTED", 5), (20, "SOLD_OUT", 25), (30, "ACCEPTED", 35)]
    history = history_of(rows, attempt=[0, 0, 1], first_op=[0, 1, 0], order_id=["o", None, "o"])
    assert measure_order(history)["winners"] == 1


@pytest.mark.parametrize(("answers", "correlation"), [((1, 2, 3), 1), ((3, 2, 1), -1), ((2, 1, 3), 0.5)])
def test_the_correlation_tells_whether_winners_were_answered_in_their_order(
    answers: tuple[int, ...], correlation: float
) -> None:
    rows = [(op, "ACCEPTED", 100 + done) for op, done in enumerate(answers)]
    assert measure_order(history_of(rows))["rank_correlation"] == correlation


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(8)))
def test_it_is_spearman_s_of_the_ranks(answers: list[int]) -> None:
    history = history_of([(op, "ACCEPTED", 100 + done) for op, done in enumerate(answers)])
    assert measure_order(history)["rank_correlation"] == pytest.approx(
        np.corrcoef(range(8), answers)[0, 1], abs=1e-6
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(["ACCEPTED", "SOLD_OUT", "UNKNOWN"]), max_size=20))
def test_as_many_skip_as_slip(told: list[str]) -> None:
    fields = measure_order(sale(*told))
    decided = [word for word in told if word != "UNKNOWN"]
    winners = decided.count("ACCEPTED")
    assert fields["out_of_turn_winners"] == decided[:winners].count("SOLD_OUT")


def test_each_product_has_a_queue_of_its_own() -> None:
    told = ["ACCEPTED", "SOLD_OUT", "ACCEPTED", "ACCEPTED"]
    rows = [(10 * op, word, 10 * op + 5) for op, word in enumerate(told)]
    fields = measure_order(history_of(rows, product_id=[1, 1, 2, 2]))
    assert (fields["winners"], fields["out_of_turn_winners"]) == (3, 0)


def test_bots_are_held_against_their_heads_and_requests() -> None:
    scenario = read_scenario(
        minimal(
            sales=[{"product_id": 1, "stock": 9, "quantity": 2}],
            population={"users": 3, "bots": {"users": 2, "share": 0.5}},
        )
    )
    told = ["ACCEPTED", "SOLD_OUT", "SOLD_OUT", "ACCEPTED", "ACCEPTED", "ACCEPTED", "SOLD_OUT", "SOLD_OUT"]
    rows = [(op, word, op + 1) for op, word in enumerate([*told, "ACCEPTED"])]
    # The last one is the first one's retry under its key, which is told of the same order.
    order_id = [f"o{op % 8}" if word == "ACCEPTED" else None for op, (_, word, _) in enumerate(rows)]
    retry = {"attempt": [0] * 8 + [1], "first_op": [*range(8), 0], "order_id": order_id}
    history = history_of(rows, user_id=[1, 2, 3, 4, 4, 5, 5, 5, 1], **retry)
    bots = measure_bots(history, scenario)
    assert bots == {
        "people_heads": 3,
        "bots_heads": 2,
        "people_requests": 4,
        "bots_requests": 5,
        "people_units": 2,
        "bots_units": 6,
        "bots_head_share": 0.4,
        "bots_request_share": pytest.approx(5 / 9),
        "bots_unit_share": 0.75,
        "people_units_per_head": pytest.approx(2 / 3),
        "bots_units_per_head": 3,
    }
    assert measure_fairness(history, scenario) == measure_order(history) | bots
    assert measure_fairness(history, read_scenario(minimal())) == measure_order(history)


def test_clients_that_came_again_are_counted_by_what_they_got() -> None:
    rows = [(0, "UNKNOWN", 0), (1, "UNKNOWN", 0), (2, "UNKNOWN", 0), (3, "ACCEPTED", 4)]
    rows += [(10, "ACCEPTED", 11), (11, "UNKNOWN", 0), (12, "ACCEPTED", 13), (20, "ACCEPTED", 21)]
    history = history_of(
        rows,
        user_id=[1, 2, 3, 4, 1, 2, 3, 2],
        key=["a", None, None, None, "a", None, None, None],
        attempt=[0, 0, 0, 0, 1, 1, 1, 2],
        first_op=[0, 1, 2, 3, 0, 1, 2, 1],
    )
    # The first and the third client had bought at their first try; the key was known, the other was not.
    orders = [order(f"o{number}", Ask(user), 1) for number, user in enumerate([2, 3, 3, 4])]
    orders.append(order("o9", Ask(1, key="a"), 1))
    assert measure_retries(history, orders_of(orders)) == {
        "requests": 4,
        "clients": 3,
        "most": 3,
        "accepted_later": 3,
        "keyed_bought_again": 0,
        "unkeyed_bought_again": 1,
    }
    orders.append(order("o10", Ask(1, key="a"), 1))
    assert measure_retries(history, orders_of(orders))["keyed_bought_again"] == 1
    assert measure_retries(history, None)["unkeyed_bought_again"] is None
