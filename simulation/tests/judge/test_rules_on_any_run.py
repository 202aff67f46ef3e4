"""The rules hold for any run of a correct engine, and break when one thing of such a run is changed."""

from collections.abc import Callable
from dataclasses import replace
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulation.judge.verdict import verdict
from simulation.model.history import make_history
from simulation.tests.histories import (
    Ask,
    Played,
    Terms,
    broken,
    edited,
    judge,
    judging,
    order_rows,
    play,
    with_orders,
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[pd.DataFrame, Played]:
    """Any run of a correct engine: overlapping requests, retries, lost answers, declined payments."""
    sales = [
        Terms(
            product_id=product,
            stock=draw(st.integers(0, 8)),
            quantity=draw(st.integers(1, 3)),
            limit=draw(st.none() | st.integers(1, 5)),
            starts_us=draw(st.sampled_from([None, None, None, 2])),
        )
        for product in range(1, draw(st.integers(1, 2)) + 1)
    ]
    asks = []
    for _ in range(draw(st.integers(1, 25))):
        sent = 10 * draw(st.integers(0, 400))
        gate = sent + 10 * draw(st.integers(0, 60))
        ask = Ask(
            user_id=draw(st.integers(1, 6)),
            product_id=draw(st.integers(1, len(sales))),
            key=draw(st.sampled_from([None, None, "a", "b"])),
            sent_ns=sent,
            gate_ns=gate,
            done_ns=gate + 10 * draw(st.integers(0, 60)),
            lost=draw(st.sampled_from([False, False, False, True])),
            arrives=draw(st.booleans()),
            declined=draw(st.sampled_from([False, False, False, True])),
        )
        asks.append(ask)
    return play(asks, sales)


@judging(runs=60)
@given(runs())
def test_every_correct_run_passes(run: tuple[pd.DataFrame, Played]) -> None:
    checks = judge(*run)
    assert {check.name: check.detail for check in checks if check.holds is False} == {}


Corruption = Callable[[pd.DataFrame, Played, Random], tuple[pd.DataFrame, Played]]


def lose_an_order(history: pd.DataFrame, state: Played, random: Random) -> tuple[pd.DataFrame, Played]:
    rows = [row for row in order_rows(state) if row["status"] == "CONFIRMED"]
    assume(rows)
    lost = random.choice(rows)
    return history, with_orders(state, [row for row in order_rows(state) if row != lost])


def repeat_an_order(history: pd.DataFrame, state: Played, random: Random) -> tuple[pd.DataFrame, Played]:
    rows = order_rows(state)
    assume(rows)
    return history, with_orders(
        state, [*rows, random.choice(rows) | {"order_id": "again", "status": "CONFIRMED"}]
    )


def hand_an_order_to_a_stranger(
    history: pd.DataFrame, state: Played, random: Random
) -> tuple[pd.DataFrame, Played]:
    rows = order_rows(state)
    assume(rows)
    random.choice(rows)["user_id"] = 99
    return history, with_orders(state, rows)


def revoke_an_order(history: pd.DataFrame, state: Played, random: Random) -> tuple[pd.DataFrame, Played]:
    rows = order_rows(state)
    confirmed = [row for row in rows if row["status"] == "CONFIRMED"]
    assume(confirmed)
    random.choice(confirmed)["status"] = random.choice(["FAILED", "REJECTED"])
    return history, with_orders(state, rows)


def drift_the_gate(history: pd.DataFrame, state: Played, random: Random) -> tuple[pd.DataFrame, Played]:
    assert state.gate is not None
    gate = state.gate.copy()
    gate["remaining"] += random.choice([-2, -1, 1, 2]) * (gate.index == random.randrange(len(gate)))
    return history, replace(state, gate=gate)


def drift_the_count(history: pd.DataFrame, state: Played, random: Random) -> tuple[pd.DataFrame, Played]:
    assert state.sales is not None
    sales = state.sales.copy()
    sales["sold"] += random.choice([-1, 1]) * (sales.index == random.randrange(len(sales)))
    return history, replace(state, sales=sales)


def promise_to_a_loser(history: pd.DataFrame, state: Played, random: Random) -> tuple[pd.DataFrame, Played]:
    losers = history[history["result"] == "fail"]["op"].tolist()
    assume(losers)
    return edited(history, random.choice(losers), outcome="ACCEPTED", result="ok", order_id="promise"), state


def swap_an_order_id(history: pd.DataFrame, state: Played, random: Random) -> tuple[pd.DataFrame, Played]:
    accepted = history[history["outcome"] == "ACCEPTED"]
    assume(accepted["user_id"].nunique() > 1)
    one = accepted.iloc[random.randrange(len(accepted))]
    other = accepted[accepted["user_id"] != one["user_id"]].iloc[0]
    return edited(history, int(one["op"]), order_id=other["order_id"]), state


def strand_something(history: pd.DataFrame, state: Played, random: Random) -> tuple[pd.DataFrame, Played]:
    part = random.choice(["pending", "outbox", "queue", "dead"])
    left: dict[str, object] = {part: frozenset(["x"]) if part == "pending" else 1}
    return history, replace(state, **left)  # type: ignore[arg-type]


def refuse_without_reason(
    history: pd.DataFrame, state: Played, random: Random
) -> tuple[pd.DataFrame, Played]:
    assert state.sales is not None
    outcome = random.choice(["INVALID", "UNKNOWN_PRODUCT", "NOT_STARTED", "SALE_ENDED"])
    assume(outcome != "NOT_STARTED" or state.sales["starts_us"].isna().all())
    op = random.choice(history["op"].tolist())
    return edited(history, op, outcome=outcome, result="fail", order_id=None), state


CORRUPTIONS: list[Corruption] = [
    lose_an_order,
    repeat_an_order,
    hand_an_order_to_a_stranger,
    revoke_an_order,
    drift_the_gate,
    drift_the_count,
    promise_to_a_loser,
    swap_an_order_id,
    strand_something,
    refuse_without_reason,
]


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
@judging(runs=15)
@given(run=runs(), seed=st.integers(0, 2**32))
def test_any_single_corruption_is_caught(
    corrupt: Corruption, run: tuple[pd.DataFrame, Played], seed: int
) -> None:
    assert verdict(judge(*corrupt(*run, Random(seed))), load_valid=True) == "fail"


@pytest.mark.slow
def test_a_million_requests_are_judged() -> None:
    count, stock = 1_000_000, 500_000
    ids = np.arange(count)
    won = ids < stock
    order_ids = pd.Series([f"{i:032x}" for i in range(stock)], dtype="str")
    history = make_history(
        {
            "op": ids,
            "user_id": ids,
            "product_id": 1,
            "key": None,
            "driver": 0,
            "intended_ns": ids,
            "sent_ns": ids,
            "done_ns": ids + 5,
            "status": np.where(won, 200, 429),
            "outcome": np.where(won, "ACCEPTED", "SOLD_OUT"),
            "result": np.where(won, "ok", "fail"),
            "order_id": order_ids.reindex(ids),
        }
    )
    _, state = play([], [Terms(stock=stock)])
    assert state.sales is not None
    assert state.gate is not None
    orders = pd.DataFrame(
        {"order_id": order_ids, "sale_id": 1, "product_id": 1, "user_id": ids[:stock], "quantity": 1}
    )
    orders = orders.assign(
        status="CONFIRMED",
        reason=None,
        idempotency_key=pd.Series([None] * stock, dtype="str"),
        accepted_us=0,
        settled_us=1,
    )
    state = replace(
        state, orders=orders, sales=state.sales.assign(sold=stock), gate=state.gate.assign(remaining=0)
    )
    checks = judge(history, state)
    assert broken(checks) == set()
    assert broken(judge(history, replace(state, orders=orders.iloc[1:]))) >= {"accepted is settled"}
