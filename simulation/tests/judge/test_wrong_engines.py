"""A record as a wrong engine would have left it is no pass, whatever the engine says of itself."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest

from simulation.judge.asked import read_asked
from simulation.judge.verdict import judge, verdict
from simulation.model.events import Recovery, Restocked
from simulation.model.state import FinalState
from simulation.record.facts import read_facts
from simulation.record.history import read_history
from simulation.record.state import read_state
from simulation.scenario.schema import Scenario
from simulation.tests import histories
from simulation.tests.histories import Played, Terms, at, edited, order_rows, play, with_orders

ELSEWHERE = "http://127.0.0.1:1"
REFERENCE = Path(__file__).parents[3] / "reports" / "reference"

Record = tuple[Scenario, pd.DataFrame, FinalState]


def true_record() -> Record:
    """The reference run: 64,554 requests for 4,000 units, all of them sold."""
    history = read_history(REFERENCE / "history.parquet").astype({"outcome": "str", "result": "str"})
    return read_facts(REFERENCE).scenario, history, read_state(REFERENCE)


@pytest.fixture(scope="module")
def truth() -> Record:
    return true_record()


def broken_rules(record: Record, **facts: Any) -> set[str]:
    """The rules that the judge says are broken; it must not say that the run passes."""
    scenario, history, state = record
    started_us = round(read_facts(REFERENCE).started_at.timestamp() * 1e6)
    asked = read_asked(scenario, started_us=started_us, **{"ended_ns": 30_000_000_000, **facts})
    checks = judge(history, state, asked)
    found = histories.broken(checks)
    assert (verdict(checks, load_valid=True) == "pass") == (not found and not _unjudged(checks))
    return found | {f"not judged: {name}" for name in _unjudged(checks)}


def _unjudged(checks: list[Any]) -> list[str]:
    return [check.name for check in checks if check.state == "not judged"]


def ask_for(record: Record, **terms: Any) -> Record:
    """The record, had the scenario asked for other terms."""
    scenario, history, state = record
    sale = msgspec.structs.replace(scenario.sales[0], **terms)
    return msgspec.structs.replace(scenario, sales=[sale]), history, state


def answer(record: Record, which: str, **values: Any) -> Record:
    """The record, had clients been told something else where they were told `which`."""
    scenario, history, state = record
    told = history["outcome"] == which
    return (
        scenario,
        history.assign(**{name: history[name].mask(told, value) for name, value in values.items()}),
        state,
    )


def one_buyer(record: Record) -> Record:
    scenario, history, state = ask_for(record, limit=1)
    assert state.orders is not None
    won = history["outcome"] == "ACCEPTED"
    history = history.assign(user_id=history["user_id"].mask(won, 7))
    return scenario, history, replace(state, orders=state.orders.assign(user_id=7))


def nothing_but(record: Record, outcome: str, status: int, sold: bool) -> Record:
    scenario, history, state = record
    result = "unknown" if outcome == "UNKNOWN" else "fail"
    history = history.assign(outcome=outcome, status=status, result=result, order_id=None)
    if sold:
        return scenario, history, state
    assert state.orders is not None
    assert state.sales is not None
    assert state.gate is not None
    empty = replace(
        state,
        orders=state.orders.iloc[:0],
        sales=state.sales.assign(sold=0),
        gate=state.gate.assign(remaining=4_000),
    )
    return scenario, history, empty


def all_failed(record: Record) -> Record:
    scenario, history, state = record
    assert state.orders is not None
    assert state.sales is not None
    assert state.gate is not None
    failed = replace(
        state,
        orders=state.orders.assign(status="FAILED"),
        sales=state.sales.assign(sold=0),
        gate=state.gate.assign(remaining=4_000, released=4_000),
    )
    return scenario, history, failed


def change_ledger(record: Record, **values: Any) -> Record:
    scenario, history, state = record
    assert state.sales is not None
    return scenario, history, replace(state, sales=state.sales.assign(**values))


def change_orders(record: Record, **values: Any) -> Record:
    scenario, history, state = record
    assert state.orders is not None
    return scenario, history, replace(state, orders=state.orders.assign(**values))


def open_twice(record: Record) -> Record:
    scenario, history, state = record
    assert state.sales is not None
    again = state.sales.assign(sale_id=state.sales["sale_id"] + 1, sold=0)
    return scenario, history, replace(state, sales=pd.concat([state.sales, again], ignore_index=True))


def offer(record: Record, store: str) -> Record:
    """A store holds a sale of a second product."""
    scenario, history, state = record
    held: pd.DataFrame = getattr(state, store)
    also = pd.concat([held, held.assign(product_id=2, sale_id=held["sale_id"] + 1)], ignore_index=True)
    return scenario, history, replace(state, **{store: also})  # type: ignore[arg-type]


def turn_away(record: Record, which: Callable[[pd.DataFrame], "pd.Series[bool]"]) -> Record:
    """Some are told 503 where they were told SOLD_OUT."""
    scenario, history, state = record
    away = (history["outcome"] == "SOLD_OUT") & which(history)
    told = {"outcome": "UNAVAILABLE", "status": 503}
    return (
        scenario,
        history.assign(**{name: history[name].mask(away, value) for name, value in told.items()}),
        state,
    )


def many_products(record: Record) -> Record:
    """Those who come too late ask for one of 21 products of no stock, at four front doors; a few for the last
    one, at two of them."""
    scenario, history, state = record
    assert state.sales is not None
    assert state.gate is not None
    late = (history["outcome"] == "SOLD_OUT") & (history["intended_ns"] > 10e9)
    rare = history["op"] % 2_000 == 0
    asked = (2 + history["op"] // 4 % 20).mask(rare, 22)
    door = (history["op"] % 4).mask(rare, history["op"] // 2_000 % 2 + 1)
    history = history.assign(product_id=history["product_id"].mask(late, asked), door=door)
    others = [
        msgspec.structs.replace(scenario.sales[0], product_id=number, stock=0) for number in range(2, 23)
    ]
    empty = [{"product_id": number, "sale_id": number, "stock": 0} for number in range(2, 23)]
    parts = {
        name: pd.concat([held, *(held.assign(**row, **{left: 0}) for row in empty)], ignore_index=True)
        for name, held, left in (("sales", state.sales, "sold"), ("gate", state.gate, "remaining"))
    }
    scenario = msgspec.structs.replace(scenario, sales=[*scenario.sales, *others])
    return scenario, history, replace(state, **parts)  # type: ignore[arg-type]


def restock(record: Record) -> Record:
    """Ten seconds in, a thousand more units are asked for."""
    scenario, history, state = record
    raw = msgspec.to_builtins(scenario) | {"restocks": [{"at_s": 10, "product_id": 1, "stock": 1_000}]}
    return msgspec.convert(raw, Scenario), history, state


def silence_half(record: Record) -> Record:
    scenario, history, state = record
    lost = (history["outcome"] == "SOLD_OUT") & (history["op"] % 2 == 0)
    history = history.assign(
        outcome=history["outcome"].mask(lost, "UNKNOWN"),
        result=history["result"].mask(lost, "unknown"),
        status=history["status"].mask(lost, 0),
        done_ns=history["done_ns"].mask(lost),
    )
    return scenario, history, state


def answer_half(record: Record, outcome: str, status: int) -> Record:
    scenario, history, state = record
    half = (history["outcome"] == "SOLD_OUT") & (history["op"] % 2 == 0)
    return (
        scenario,
        history.assign(
            outcome=history["outcome"].mask(half, outcome), status=history["status"].mask(half, status)
        ),
        state,
    )


def say_sold_out_early(record: Record) -> Record:
    """One buyer of the first second is told SOLD_OUT, and the unit goes to nobody."""
    scenario, history, state = record
    assert state.orders is not None
    unlucky = history["op"] == 10
    lost = history.loc[unlucky, "order_id"].iloc[0]
    history = history.assign(
        outcome=history["outcome"].mask(unlucky, "SOLD_OUT"),
        result=history["result"].mask(unlucky, "fail"),
        order_id=history["order_id"].mask(unlucky),
    )
    return scenario, history, replace(state, orders=state.orders[state.orders["order_id"] != lost])


ERROR = {"outcome": "UNKNOWN", "result": "unknown", "status": 500}
SILENCE = {"outcome": "UNKNOWN", "result": "unknown", "status": 0, "done_ns": pd.NA}
GARBAGE = {"outcome": "UNKNOWN", "result": "unknown", "status": 200}

# What was altered, and a rule that must say so.
CASES: dict[str, tuple[Callable[[Record], Record], str]] = {
    # the table of the issue
    "twice the stock is sold": (partial(ask_for, stock=2_000), "no oversell"),
    "the limit is dropped": (one_buyer, "user limit is kept"),
    "doors open at once instead of later": (partial(ask_for, starts_in_s=20.0), "sales keep their hours"),
    "every SOLD_OUT is an error": (lambda r: answer(r, "SOLD_OUT", **ERROR), "no server errors"),
    "every SOLD_OUT is never answered": (lambda r: answer(r, "SOLD_OUT", **SILENCE), "no server errors"),
    "nobody hears ACCEPTED": (
        lambda r: answer(r, "ACCEPTED", outcome="UNKNOWN", status=503, result="unknown", order_id=None),
        "the sale happened",
    ),
    "everybody hears 503": (lambda r: nothing_but(r, "UNAVAILABLE", 503, False), "the sale happened"),
    "everybody hears 500 and the stock is sold": (
        lambda r: nothing_but(r, "UNKNOWN", 500, True),
        "no server errors",
    ),
    "all orders fail": (all_failed, "payment decides"),
    "SALE_ENDED before the end": (
        lambda r: answer(ask_for(r, ends_in_s=29.0), "SOLD_OUT", outcome="SALE_ENDED", status=410),
        "refusals are true",
    ),
    "NOT_STARTED after the start": (
        lambda r: answer(ask_for(r, starts_in_s=0.0), "SOLD_OUT", outcome="NOT_STARTED", status=403),
        "refusals are true",
    ),
    # and more
    "less stock than asked": (partial(ask_for, stock=5_000), "terms are as asked"),
    "one unit more than asked": (partial(ask_for, stock=3_999), "no oversell"),
    "a purchase takes one unit of the two asked": (partial(ask_for, quantity=2), "terms are as asked"),
    "a limit that nobody asked for": (lambda r: change_ledger(r, user_limit=3), "terms are as asked"),
    "an end that nobody asked for": (
        lambda r: change_ledger(r, ends_us=1_895_768_000_000_000),
        "terms are as asked",
    ),
    "sold after the end": (partial(ask_for, ends_in_s=4.0), "sales keep their hours"),
    "a sale is opened twice": (open_twice, "terms are as asked"),
    "a restock is ignored": (restock, "terms are as asked"),
    "the product is sold under another id": (
        lambda r: change_orders(change_ledger(r, product_id=2), product_id=2),
        "terms are as asked",
    ),
    "orders of a sale that nobody asked for": (lambda r: change_orders(r, sale_id=99), "accepted is settled"),
    "orders of another day": (
        lambda r: change_orders(r, accepted_us=1_795_000_000_000_000),
        "accepted is settled",
    ),
    "half of the refusals are never sent": (silence_half, "no server errors"),
    "half of the refusals are 503": (lambda r: answer_half(r, "UNAVAILABLE", 503), "the sale happened"),
    "answers that say nothing": (lambda r: answer(r, "SOLD_OUT", **GARBAGE), "no server errors"),
    "UNKNOWN_PRODUCT for a product on sale": (
        lambda r: answer(r, "SOLD_OUT", outcome="UNKNOWN_PRODUCT", status=404),
        "refusals are true",
    ),
    "LIMIT_REACHED for people who bought nothing": (
        lambda r: answer(ask_for(r, limit=1), "SOLD_OUT", outcome="LIMIT_REACHED", status=409),
        "refusals are true",
    ),
    "SOLD_OUT while nearly all is left": (say_sold_out_early, "sold out means sold out"),
    "a product that nobody asked for is on sale": (lambda r: offer(r, "gate"), "terms are as asked"),
    "a product that nobody asked for is in the ledger": (lambda r: offer(r, "sales"), "terms are as asked"),
    "one user in eleven always hears 503": (
        lambda r: turn_away(r, lambda history: history["user_id"] % 11 == 0),
        "the sale happened",
    ),
    "one user in thirty always hears 503": (
        lambda r: turn_away(r, lambda history: history["user_id"] % 30 == 0),
        "the sale happened",
    ),
    "everybody hears 503 from second 20 on": (
        lambda r: turn_away(r, lambda history: history["intended_ns"] >= 20e9),
        "the sale happened",
    ),
    "two products are told 503 at one of four front doors": (
        lambda r: turn_away(
            many_products(r), lambda history: (history["door"] == 2) & history["product_id"].isin([2, 3])
        ),
        "the sale happened",
    ),
    "a product that few want is told 503 at one front door": (
        lambda r: turn_away(
            many_products(r), lambda history: (history["door"] == 2) & (history["product_id"] == 22)
        ),
        "the sale happened",
    ),
    "every twelfth request is told 503": (
        lambda r: turn_away(r, lambda history: history["op"] % 12 == 0),
        "the sale happened",
    ),
}


def test_the_true_record_passes(truth: Record) -> None:
    assert broken_rules(truth) == set()


@pytest.mark.slow
def test_what_chance_turns_away_or_a_moment_is_no_fault(truth: Record) -> None:
    def scattered(history: pd.DataFrame) -> "pd.Series[bool]":
        return history["op"] * 7_919 % 1_000 < 40

    assert broken_rules(turn_away(truth, scattered)) == set()
    second = turn_away(truth, lambda history: history["intended_ns"].between(10e9, 11e9))
    assert broken_rules(second) == set(), "a store that an operator hands over"
    fault = Recovery(kind="restart", on="redis", start_s=9.5, end_s=10, recovered_after_s=0.2)
    assert broken_rules(second, faults=[fault]) == set(), "a hand-over"
    later = turn_away(truth, lambda history: history["intended_ns"].between(12e9, 13e9))
    assert broken_rules(later, faults=[fault]) == set(), "in the time in which it may recover"


def shorten(record: Record, seconds: float, share: int) -> Record:
    """The first seconds of the record, one request in so many, and twice as much stock as they sold."""
    scenario, history, state = record
    assert state.orders is not None
    assert state.sales is not None
    assert state.gate is not None
    history = history[(history["intended_ns"] < seconds * 1e9) & (history["op"] % share == 0)]
    orders = state.orders[state.orders["order_id"].isin(history["order_id"])]
    units = len(orders)
    state = replace(
        state,
        orders=orders,
        sales=state.sales.assign(stock=2 * units, sold=units),
        gate=state.gate.assign(stock=2 * units, remaining=units),
    )
    return ask_for((scenario, history, state), stock=2 * units)


def hand_over(record: Record, start_s: float, end_s: float) -> Record:
    """Whoever asks meanwhile is told 503, and buys nothing."""
    scenario, history, state = record
    assert state.orders is not None
    assert state.sales is not None
    assert state.gate is not None
    away = history["intended_ns"].between(start_s * 1e9, end_s * 1e9)
    told = {"outcome": "UNAVAILABLE", "status": 503, "result": "fail", "order_id": None}
    lost = history.loc[away, "order_id"].dropna()
    orders = state.orders[~state.orders["order_id"].isin(lost)]
    state = replace(
        state,
        orders=orders,
        sales=state.sales.assign(sold=len(orders)),
        gate=state.gate.assign(remaining=state.gate["stock"] - len(orders)),
    )
    history = history.assign(**{name: history[name].mask(away, value) for name, value in told.items()})
    return scenario, history, state


@pytest.mark.slow
@pytest.mark.parametrize("share", [1, 8])
@pytest.mark.parametrize(("seconds", "start_s", "end_s"), [(5, 1, 2), (5, 0.5, 4), (4, 0, 4)])
def test_a_hand_over_that_nobody_told_of_leaves_a_short_run_elsewhere_unknown(
    truth: Record, seconds: float, start_s: float, end_s: float, share: int
) -> None:
    short = shorten(truth, seconds, share)
    assert broken_rules(short, target=ELSEWHERE) == set()
    away = hand_over(short, start_s, end_s)
    assert broken_rules(away, target=ELSEWHERE) == {"not judged: the sale happened"}
    assert "the sale happened" in broken_rules(away), "nobody hands over what the run has started"


@pytest.mark.slow
@pytest.mark.parametrize(
    "which",
    [
        lambda history: history["intended_ns"].between(10e9, 17e9),
        lambda history: history["intended_ns"] % 5e9 < 0.7e9,
        lambda history: history["op"] % 7 == 0,
    ],
    ids=["long", "often", "scattered"],
)
def test_what_no_hand_over_explains_is_no_pass_elsewhere(
    truth: Record, which: Callable[[pd.DataFrame], "pd.Series[bool]"]
) -> None:
    assert "the sale happened" in broken_rules(turn_away(truth, which), target=ELSEWHERE)


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_engine_does_not_pass(truth: Record, case: str) -> None:
    alter, rule = CASES[case]
    assert rule in broken_rules(alter(truth))


def test_at_a_target_all_orders_failed_is_no_pass(truth: Record) -> None:
    found = broken_rules(all_failed(truth), target=ELSEWHERE)
    assert found == {"not judged: payment decides", "sold out means sold out"}


def test_a_restock_that_was_answered_with_the_old_sale_is_no_pass(truth: Record) -> None:
    done = Restocked(at_s=10, opened_s=10.1, product_id=1, stock=1_000, sale_id=1)
    assert "terms are as asked" in broken_rules(restock(truth), restocks=[done])


def test_a_restock_that_never_came_though_the_load_went_on_is_no_pass(truth: Record) -> None:
    assert "terms are as asked" in broken_rules(restock(truth))
    assert broken_rules(restock(truth), ended_ns=9_000_000_000) == set()


# --- small records, of keys, limits and restocks


def keyed_sale() -> tuple[pd.DataFrame, Played]:
    """A buyer under a key who asks again at the end, when another one is told SOLD_OUT."""
    return play([at(0, 1, key="a"), at(100, 2), at(200, 3), at(300, 1, key="a")], [Terms(stock=2)])


def test_a_key_tells_the_truth_catches_a_retry_that_is_refused() -> None:
    history, state = keyed_sale()
    assert histories.broken(histories.judge(history, state)) == set()
    for outcome in ("SOLD_OUT", "LIMIT_REACHED", "NOT_STARTED", "SALE_ENDED", "UNKNOWN_PRODUCT", "INVALID"):
        told = edited(history, 3, outcome=outcome, result="fail", order_id=None)
        assert "a key tells the truth" in histories.broken(histories.judge(told, state))


def test_a_key_tells_the_truth_where_the_first_try_was_never_answered() -> None:
    asks = [at(0, 1, key="a", lost=True), at(100, 2), at(200, 3), at(2_000_000, 1, key="a")]
    history, state = play(asks, [Terms(stock=2)])
    assert histories.broken(histories.judge(history, state)) == set()
    told = edited(history, 3, outcome="SOLD_OUT", result="fail", order_id=None)
    assert histories.broken(histories.judge(told, state)) == {"a key tells the truth"}


def test_a_key_that_is_forgotten_in_time_may_be_refused() -> None:
    history, state = keyed_sale()
    told = edited(history, 3, outcome="SOLD_OUT", result="fail", order_id=None)
    assert "a key tells the truth" not in histories.broken(histories.judge(told, state, remembered_ns=200))


def test_a_limit_that_outlives_its_sale_is_found() -> None:
    again = 2_000_000
    asks = [at(100, 1), at(200, 1), at(again + 5_000, 1), at(again + 6_000, 2)]
    history, state = play(asks, [Terms(stock=5, limit=1), Terms(stock=5, limit=1, opens_ns=again)])
    assert list(history["outcome"]) == ["ACCEPTED", "LIMIT_REACHED", "ACCEPTED", "ACCEPTED"]
    assert histories.broken(histories.judge(history, state)) == set()
    told = edited(history, 2, outcome="LIMIT_REACHED", result="fail", order_id=None)
    kept = with_orders(
        state, [row for row in order_rows(state) if (row["user_id"], row["sale_id"]) != (1, 2)]
    )
    assert kept.gate is not None
    kept = replace(kept, gate=kept.gate.assign(remaining=kept.gate["remaining"] + 1))
    assert "refusals are true" in histories.broken(histories.judge(told, kept))


def test_an_order_of_the_sale_before_is_found() -> None:
    again = 2_000_000
    history, state = play(
        [at(100, 1), at(again + 5_000, 2)], [Terms(stock=5), Terms(stock=5, opens_ns=again)]
    )
    moved = with_orders(state, [row | {"sale_id": 1} for row in order_rows(state)])
    assert "accepted is settled" in histories.broken(histories.judge(history, moved))


@pytest.mark.parametrize(
    ("term", "value"), [("stock", 4), ("user_limit", 2), ("quantity", 2), ("ends_ms", 9)]
)
def test_a_gate_that_holds_other_terms_is_found(term: str, value: int) -> None:
    history, state = keyed_sale()
    assert state.gate is not None
    gate = state.gate.assign(**{term: pd.array([value], "Int64")})
    assert histories.broken(histories.judge(history, replace(state, gate=gate))) == {"terms are as asked"}


@pytest.mark.parametrize("store", ["gate", "sales"])
@pytest.mark.parametrize("term", ["user_limit", "quantity", "stock"])
def test_a_store_that_does_not_show_a_term_that_was_asked_for_is_no_witness(store: str, term: str) -> None:
    history, state = play([at(0, 1), at(100, 2)], [Terms(stock=6, quantity=2, limit=2)])
    assert histories.broken(histories.judge(history, state)) == set()
    blind = replace(state, **{store: getattr(state, store).drop(columns=term)})
    assert _unjudged(histories.judge(history, blind)) == ["terms are as asked"]


def test_a_store_may_not_show_what_nobody_asked_for() -> None:
    history, state = keyed_sale()
    assert state.gate is not None
    older = replace(state, gate=state.gate.drop(columns=["user_limit", "quantity", "starts_ms", "ends_ms"]))
    assert verdict(histories.judge(history, older), load_valid=True) == "pass"


def test_what_others_sell_at_the_same_engine_is_theirs() -> None:
    history, state = keyed_sale()
    assert state.gate is not None
    theirs = replace(state, gate=pd.concat([state.gate, state.gate.assign(product_id=2, sale_id=2)]))
    assert histories.broken(histories.judge(history, theirs)) == {"terms are as asked"}
    assert histories.broken(histories.judge(history, theirs, alone=False)) == set()


@pytest.mark.parametrize("store", ["gate", "sales"])
def test_nobody_knows_who_opened_another_product_elsewhere(store: str) -> None:
    history, state = play([at(0, 1), at(100, 2)], [Terms(product_id=9), Terms(stock=2)])
    asked = [sale for sale in state.asked.sales if sale.product_id == 1]
    state = replace(state, **{store: getattr(state, store)})
    other = {"gate": "sales", "sales": "gate"}[store]
    kept = getattr(state, other)
    held = replace(state, **{other: kept[kept["product_id"] == 1]})
    elsewhere: dict[str, Any] = {"sales": asked, "alone": False, "elsewhere": True}
    older = histories.judge(history, held, **elsewhere)
    assert (histories.broken(older), _unjudged(older)) == (set(), []), "it was there before"
    frame = getattr(held, store)
    sale_ids = frame["sale_id"].mask(frame["product_id"] == 9, 3)
    newer = histories.judge(history, replace(held, **{store: frame.assign(sale_id=sale_ids)}), **elsewhere)
    assert (histories.broken(newer), _unjudged(newer)) == (set(), ["terms are as asked"])


def test_a_product_that_two_shards_hold_is_found() -> None:
    history, state = keyed_sale()
    assert state.gate is not None
    twice = pd.concat([state.gate, state.gate])
    assert histories.broken(histories.judge(history, replace(state, gate=twice))) == {"terms are as asked"}


def test_only_a_fault_or_an_overload_explains_a_missing_answer_and_nothing_explains_a_500() -> None:
    asks = [at(100 * number, number, lost=number == 3, arrives=False) for number in range(1, 15)]
    history, state = play(asks, [Terms(stock=20)])
    assert histories.broken(histories.judge(history, state)) == set()
    assert histories.broken(histories.judge(history, state, faults=[])) == {"no server errors"}
    assert histories.broken(histories.judge(history, state, faults=[], overload=True)) == set()
    late = msgspec.structs.replace(histories.TROUBLE, start_s=50, end_s=51)
    assert histories.broken(histories.judge(history, state, faults=[late])) == {"no server errors"}
    busy = histories.judge(history, state, faults=[], load_valid=False)
    assert {check.name for check in busy if check.state == "not judged"} == {"no server errors"}
    wrong = edited(history, 2, status=500, done_ns=400)
    for trouble in ({"faults": [histories.TROUBLE]}, {"overload": True}, {"load_valid": False}):
        assert "no server errors" in histories.broken(histories.judge(wrong, state, **trouble))


def test_nothing_sold_for_a_reason_is_unknown() -> None:
    asks = [at(100 * number, number, lost=True, arrives=False) for number in range(1, 9)]
    checks = histories.judge(*play(asks, [Terms(stock=5)]))
    assert histories.broken(checks) == set()
    assert verdict(checks, load_valid=True) == "unknown"
    assert "the sale happened" in _unjudged(checks)
