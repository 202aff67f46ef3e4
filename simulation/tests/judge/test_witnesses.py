"""A witness that knows less never makes a correct engine look wrong, and still finds what it can."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import pandas as pd
import pytest
from hypothesis import given

from simulation.judge.rules.pairing import find_keys, name_orders, with_keys
from simulation.judge.verdict import verdict
from simulation.model.contract import FLASHGRID, Outcome, Rule
from simulation.tests.histories import (
    Ask,
    Played,
    Terms,
    at,
    broken,
    edited,
    judge,
    judging,
    order_rows,
    play,
    with_orders,
)
from simulation.tests.judge.test_rules_on_any_run import runs

NAMELESS = msgspec.structs.replace(FLASHGRID, buy=msgspec.structs.replace(FLASHGRID.buy, order_id=None))
"""A contract whose answers name no order."""
Run = tuple[pd.DataFrame, Played]
Veil = Callable[[pd.DataFrame, Played], Run]


def hide(history: pd.DataFrame, state: Played, *columns: str) -> Run:
    assert state.orders is not None
    orders = state.orders.assign(**{name: pd.Series(pd.NA, state.orders.index) for name in columns})
    types = {name: state.orders[name].dtype for name in columns}
    return history, replace(state, orders=orders.astype(types), unseen=state.unseen | {*columns})


def hide_keys(history: pd.DataFrame, state: Played) -> Run:
    return hide(history, state, "idempotency_key")


def hide_times(history: pd.DataFrame, state: Played) -> Run:
    return hide(history, state, "accepted_us", "settled_us")


def hide_ids(history: pd.DataFrame, state: Played) -> Run:
    nameless = history.assign(order_id=pd.Series(None, history.index, dtype="str"))
    asked = replace(state.asked, contract=NAMELESS)
    return name_orders(nameless, state, NAMELESS), replace(state, asked=asked)


def know_by_http_alone(history: pd.DataFrame, state: Played) -> Run:
    told = set(history["order_id"].dropna())
    rows = [row for row in order_rows(state) if row["order_id"] in told]
    state = with_orders(state, rows)
    assert state.gate is not None
    assert state.sales is not None
    state = replace(
        state,
        sales=state.sales[["sale_id", "product_id", "stock", "sold"]],
        gate=state.gate[["product_id", "sale_id", "remaining"]],
        outbox=None,
        queue=None,
        dead=None,
        partial=True,
    )
    return hide(history, state, "accepted_us", "settled_us", "idempotency_key")


def hide_all(history: pd.DataFrame, state: Played) -> Run:
    return hide_ids(*hide_times(*hide_keys(history, state)))


VEILS = [hide_keys, hide_times, hide_ids, know_by_http_alone, hide_all]


@pytest.mark.parametrize("veil", VEILS)
@judging(runs=12)
@given(run=runs())
def test_a_correct_engine_passes_before_any_witness(veil: Veil, run: Run) -> None:
    checks = judge(*veil(*run))
    assert {check.name: check.detail for check in checks if check.holds is False} == {}


SHOPPERS = [at(10, 1), at(20, 2), at(30, 3), at(40, 4, key="a"), at(50, 5)]


@pytest.mark.parametrize("veil", VEILS)
def test_a_lost_order_is_found_before_any_witness(veil: Veil) -> None:
    history, state = play(SHOPPERS, [Terms(stock=9)])
    lost = with_orders(state, order_rows(state)[1:])
    assert "accepted is settled" in broken(judge(*veil(history, lost)))


@pytest.mark.parametrize("veil", VEILS)
def test_an_oversell_is_found_before_any_witness(veil: Veil) -> None:
    history, state = play(SHOPPERS, [Terms(stock=5)])
    fewer = [replace(sale, stock=4) for sale in state.asked.sales]
    found = broken(judge(*veil(history, replace(state, asked=replace(state.asked, sales=fewer)))))
    assert "no oversell" in found


def test_a_unit_that_vanished_is_found_by_tables_and_by_http() -> None:
    for veil in VEILS:
        history, state = play(SHOPPERS, [Terms(stock=9)])
        assert state.gate is not None
        gate = state.gate.assign(remaining=state.gate["remaining"] - 1)
        assert "units are conserved" in broken(judge(*veil(history, replace(state, gate=gate))))


def test_a_second_order_under_a_key_is_found_without_the_table_s_keys() -> None:
    retry = [at(10, 1, key="a", lost=True), at(40, 1, key="a")]
    history, state = play(retry, [Terms(stock=9)])
    rows = order_rows(state)
    again = with_orders(state, [*rows, rows[0] | {"order_id": "again"}])
    assert "a key buys once" in broken(judge(*hide_keys(history, again)))
    assert "a key buys once" not in broken(judge(*hide_keys(history, state)))


@pytest.mark.parametrize(
    "asks",
    [
        [at(10, 1, key="a", lost=True), at(40, 1, key="b")],  # the first order is not the one that was told
        [at(10, 1, lost=True)],  # nobody was told of an order
    ],
)
@pytest.mark.parametrize("veil", VEILS)
def test_an_unknown_outcome_beside_an_answer_is_no_fault(veil: Veil, asks: list[Ask]) -> None:
    history, state = play(asks, [Terms(stock=9)])
    assert broken(judge(*veil(history, state))) == broken(judge(history, state))


def test_over_http_nothing_is_said_of_what_nobody_was_told() -> None:
    history, state = play([*SHOPPERS, at(60, 6, lost=True)], [Terms(stock=9)])
    states = {check.name: check.state for check in judge(*know_by_http_alone(history, state))}
    blind = ("no phantom orders", "units are conserved", "no oversell", "guard never needed")
    assert {states[name] for name in blind} == {"not judged"}
    assert states["accepted is settled"] == "held"
    assert verdict(judge(*know_by_http_alone(history, state)), load_valid=True) == "unknown"


def test_what_an_engine_has_not_is_not_exercised() -> None:
    history, state = play(SHOPPERS, [Terms(stock=5)])
    plain = replace(state, dead=None, gate=None, without=frozenset(("dead letters", "waiting", "gate")))
    states = {check.name: check.state for check in judge(history, plain)}
    assert states["no dead letters"] == states["nothing is stranded"] == "not exercised"
    assert states["terms are as asked"] == "held"
    assert states["units are conserved"] == "not judged", "nobody says what is for sale"


def test_keys_are_found_for_the_orders_that_lack_them() -> None:
    asks: list[Ask] = [at(10, 1, key="a", lost=True), at(20, 1, lost=True), at(30, 1, key="b")]
    history, state = play(asks, [Terms(stock=9)])
    history_, hidden = hide_keys(history, state)
    found = with_keys(hidden, history_)
    assert found is not None
    assert sorted(found["idempotency_key"].fillna("").tolist()) == ["", "a", "b"]
    assert with_keys(state, history) is state.orders
    assert find_keys(hidden.orders.iloc[:0], history_.assign(key="")).empty  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("lacking", "sold_out", "fitting", "state"),
    [
        ("ACCEPTED", 200, (), "not judged"),
        ("SOLD_OUT", 200, (), "not judged"),
        ("SOLD_OUT", 200, ("requests", "buy"), "broken"),  # a purchase before the load was understood
        ("SOLD_OUT", 429, (), "broken"),  # no word is lacking
    ],
)
def test_a_word_that_buy_answers_lacks_is_no_fault_of_the_engine(
    lacking: str, sold_out: int, fitting: Sequence[str], state: str
) -> None:
    """Every answer is 200, and a word says what it means."""
    words: tuple[tuple[int, Outcome], ...] = ((200, "ACCEPTED"), (sold_out, "SOLD_OUT"))
    answers = tuple(Rule(status=status, outcome=word, word=word) for status, word in words)
    contract = msgspec.structs.replace(FLASHGRID, buy=msgspec.structs.replace(FLASHGRID.buy, answers=answers))
    history, played = play([at(100 * n, n) for n in range(1, 41)], [Terms(stock=20)])
    for op, outcome in zip(history["op"], history["outcome"], strict=True):
        odd = {"outcome": "UNKNOWN", "result": "unknown", "order_id": None} if outcome == lacking else {}
        history = edited(history, op, status=200, **odd)
    told = replace(played, asked=replace(played.asked, contract=contract), fitting=frozenset(fitting))
    checks = judge(history, told)
    assert bool(broken(checks)) == (state == "broken")
    [errors] = [check for check in checks if check.name == "no server errors"]
    assert (errors.state, "20 answers" in errors.detail) == (state, True)
