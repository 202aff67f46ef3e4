"""Every rule catches the history that breaks it, by name, and lets every correct history pass."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from engine.payment.simulated import SimulatedGateway
from simulation.judge.asked import know_payments
from simulation.judge.verdict import RULES, verdict, verdict_in_words
from simulation.tests.histories import (
    Played,
    Terms,
    at,
    broken,
    edited,
    history_of,
    judge,
    operation,
    order,
    order_rows,
    play,
    with_orders,
)


def sold_out_sale() -> tuple[pd.DataFrame, Played]:
    """Three units, five buyers: three are accepted and two are turned away."""
    return play([at(100 * user, user) for user in range(1, 6)], [Terms(stock=3)])


def test_a_correct_sale_passes() -> None:
    checks = judge(*sold_out_sale())
    assert verdict(checks, load_valid=True) == "pass"
    assert len(checks) == len(RULES)
    assert all(check.meaning and check.detail for check in checks)
    held = sum(check.state == "held" for check in checks)
    assert 10 < held < len(RULES)
    assert verdict_in_words(checks, load_valid=True).startswith(f"{held} rules tested and held, ")


def test_every_part_of_a_purchase_may_go_another_way_and_still_be_correct() -> None:
    asks = [
        at(0, 1, key="a"),
        at(100, 1, key="a"),  # a retry
        at(200, 2, declined=True),
        at(300, 3, lost=True),
        at(400, 4, lost=True, arrives=False),
        at(500, 5, product_id=2),
        at(600, 5, product_id=2),  # over the limit
        at(700, 6, product_id=9),  # not on sale
        at(800, 7),
        at(900, 8),  # the declined unit
        at(1000, 1, key="a"),  # a retry after the end
    ]
    checks = judge(*play(asks, [Terms(stock=3), Terms(product_id=2, stock=5, quantity=2, limit=3)]))
    assert broken(checks) == set()
    assert verdict(checks, load_valid=True) == "pass"


# --- one test for each rule, at least


def test_no_oversell_catches_a_unit_confirmed_beyond_the_stock() -> None:
    history, state = sold_out_sale()
    late = at(400, 4)
    history = edited(history, 3, outcome="ACCEPTED", result="ok", status=200, order_id="extra")
    state = with_orders(state, [*order_rows(state), order("extra", late, 1)])
    checks = judge(history, state)
    assert "no oversell" in broken(checks)
    assert (
        next(check for check in checks if check.name == "no oversell").violations == 2
    )  # sold, and promised


def test_no_oversell_catches_a_count_that_disagrees_with_the_orders() -> None:
    history, state = sold_out_sale()
    assert state.sales is not None
    assert broken(judge(history, replace(state, sales=state.sales.assign(sold=2)))) == {"no oversell"}


def test_no_oversell_catches_more_promises_than_stock() -> None:
    history, state = sold_out_sale()
    history = edited(history, 3, outcome="ACCEPTED", result="ok", order_id="promise")
    assert broken(judge(history, state)) == {"no oversell", "accepted is settled"}


def test_accepted_is_settled_catches_a_lost_order() -> None:
    history, state = sold_out_sale()
    state = with_orders(state, order_rows(state)[1:])
    assert "accepted is settled" in broken(judge(history, state))


@pytest.mark.parametrize(
    "change",
    [{"user_id": 99}, {"product_id": 99}, {"status": "PENDING"}],
    ids=["buyer", "product", "unsettled"],
)
def test_accepted_is_settled_catches_an_order_gone_wrong(change: dict[str, object]) -> None:
    history, state = sold_out_sale()
    first, *others = order_rows(state)
    assert "accepted is settled" in broken(judge(history, with_orders(state, [first | change, *others])))


def test_accepted_is_settled_catches_an_order_that_is_there_twice() -> None:
    history, state = sold_out_sale()
    rows = order_rows(state)
    assert "accepted is settled" in broken(judge(history, with_orders(state, [rows[0], *rows])))


def test_order_ids_are_unique_catches_two_buyers_with_one_order() -> None:
    history, state = sold_out_sale()
    history = edited(history, 1, order_id=history["order_id"][0])
    assert "order ids are unique" in broken(judge(history, state))


def test_order_ids_are_unique_catches_a_repeat_without_a_key_and_one_under_another_key() -> None:
    for keys in ((None, None), ("a", "b"), ("a", None)):
        asks = [at(100 * i, 1, key=key) for i, key in enumerate(keys)]
        history, state = play(asks, [Terms(stock=9)])
        assert broken(judge(history, state)) == set()
        history = edited(history, 1, order_id=history["order_id"][0])
        assert "order ids are unique" in broken(judge(history, state))


def test_order_ids_are_unique_catches_an_accepted_answer_without_an_order_id() -> None:
    history, state = sold_out_sale()
    assert "order ids are unique" in broken(judge(edited(history, 0, order_id=None), state))


def test_no_phantom_orders_catches_an_order_that_nobody_placed() -> None:
    history, state = play([at(0, 1)], [Terms(stock=3)])
    state = with_orders(state, [*order_rows(state), order("ghost", at(0, 77), 1)])
    assert "no phantom orders" in broken(judge(history, state))


@pytest.mark.parametrize("change", [{"user_id": 4}, {"product_id": 2}, {"idempotency_key": "b"}])
def test_an_unknown_outcome_explains_only_an_order_of_its_own_buyer_product_and_key(
    change: dict[str, object],
) -> None:
    history, state = play([at(0, 1, key="a", lost=True)], [Terms(stock=3), Terms(product_id=2)])
    assert broken(judge(history, state)) == set()
    state = with_orders(state, [order_rows(state)[0] | change])
    assert "no phantom orders" in broken(judge(history, state))


def test_one_unknown_outcome_explains_one_order() -> None:
    history, state = play([at(0, 1, lost=True)], [Terms(stock=3)])
    state = with_orders(state, [*order_rows(state), order("again", at(0, 1), 1)])
    assert "no phantom orders" in broken(judge(history, state))


@pytest.mark.parametrize("remaining", [-1, 1])
def test_units_are_conserved_catches_a_unit_that_vanished_or_appeared(remaining: int) -> None:
    history, state = sold_out_sale()
    assert state.gate is not None
    state = replace(state, gate=state.gate.assign(remaining=remaining))
    assert broken(judge(history, state)) == {"units are conserved"}


def test_units_are_conserved_catches_a_sale_that_the_gate_forgot() -> None:
    history, state = sold_out_sale()
    assert state.gate is not None
    assert broken(judge(history, replace(state, gate=state.gate.iloc[:0]))) == {"units are conserved"}


def test_units_on_their_way_are_conserved() -> None:
    history, state = sold_out_sale()
    first, *others = order_rows(state)
    state = replace(with_orders(state, others), pending=frozenset([first["order_id"]]))
    assert "units are conserved" not in broken(judge(history, state))


@pytest.mark.parametrize(
    "left", [{"pending": frozenset(["x"])}, {"outbox": 1}, {"queue": 1}], ids=lambda part: next(iter(part))
)
def test_nothing_is_stranded_catches_what_did_not_drain(left: dict[str, object]) -> None:
    history, state = sold_out_sale()
    assert broken(judge(history, replace(state, **left))) == {"nothing is stranded"}  # type: ignore[arg-type]


def test_user_limit_is_kept_catches_a_buyer_with_too_many_units() -> None:
    history, state = play([at(0, 1), at(100, 1)], [Terms(stock=9, limit=2)])
    assert broken(judge(history, state)) == set()
    asked = [Terms(stock=9, limit=1).ask()]
    assert broken(judge(history, state, sales=asked)) == {"user limit is kept", "terms are as asked"}


def test_a_key_buys_once_catches_a_retry_that_bought_again() -> None:
    history, state = play([at(0, 1, key="a"), at(100, 1, key="b")], [Terms(stock=9)])
    rows = [row | {"idempotency_key": "a"} for row in order_rows(state)]
    history = history.assign(key="a")
    assert broken(judge(history, with_orders(state, rows))) == {"a key buys once"}


def test_an_order_that_the_ledger_rejected_has_bought_nothing_under_its_key() -> None:
    history, state = play([at(0, 1, key="a"), at(100, 1, key="b")], [Terms(stock=9)])
    first, second = [row | {"idempotency_key": "a"} for row in order_rows(state)]
    history = history.assign(key="a")
    # Each was told of an order of its own, which a key's answers never do.
    told = broken(judge(history, with_orders(state, [first, second | {"status": "REJECTED"}])))
    assert {"a key buys once", "guard never needed"} <= told
    # The first answer was lost, and so was Redis' memory of it.
    ids = [None, second["order_id"]]
    unheard = history.assign(outcome=["UNKNOWN", "ACCEPTED"], result=["unknown", "ok"], order_id=ids)
    rejected = broken(judge(unheard, with_orders(state, [first | {"status": "REJECTED"}, second])))
    assert "a key buys once" not in rejected
    assert "guard never needed" in rejected
    assert "a key buys once" in broken(judge(unheard, with_orders(state, [first, second])))


def test_sold_out_means_sold_out_catches_a_refusal_before_an_accepted_purchase_began() -> None:
    rows = [operation(0, at(0, 1), "SOLD_OUT"), operation(1, at(100, 2), "ACCEPTED", "o")]
    _, state = play([at(100, 2)], [Terms(stock=1)])
    history = history_of([rows[0], rows[1] | {"order_id": order_rows(state)[0]["order_id"]}])
    assert broken(judge(history, state)) == {"sold out means sold out"}


def test_a_refusal_that_overlaps_the_last_purchase_is_correct() -> None:
    refused, taken = replace(at(0, 1), done_ns=101), at(100, 2)
    _, state = play([taken], [Terms(stock=1)])
    rows = [
        operation(0, refused, "SOLD_OUT"),
        operation(1, taken, "ACCEPTED", order_rows(state)[0]["order_id"]),
    ]
    assert broken(judge(history_of(rows), state)) == set()


def test_released_units_explain_later_purchases_and_no_more_than_that() -> None:
    asks = [at(0, 1, declined=True), at(20, 2), at(100, 3)]
    history, state = play(asks, [Terms(stock=1)])
    assert list(history["outcome"]) == ["ACCEPTED", "SOLD_OUT", "ACCEPTED"]
    assert broken(judge(history, state)) == set()
    asks += [at(200 + 10 * user, user) for user in (4, 5)]
    history, state = play(asks, [Terms(stock=3)])
    history = edited(history, 1, outcome="SOLD_OUT", result="fail", order_id=None)
    state = with_orders(state, [row for row in order_rows(state) if row["user_id"] != 2])
    assert "sold out means sold out" in broken(judge(history, state))


def test_a_rest_too_small_for_a_purchase_is_sold_out() -> None:
    history, state = play([at(100 * user, user) for user in range(1, 4)], [Terms(stock=5, quantity=2)])
    assert list(history["outcome"]) == ["ACCEPTED", "ACCEPTED", "SOLD_OUT"]
    assert broken(judge(history, state)) == set()


def test_demand_empties_the_stock_catches_units_left_while_buyers_were_turned_away() -> None:
    history, state = play([at(100 * user, user) for user in range(1, 4)], [Terms(stock=2)])
    assert state.sales is not None
    assert state.gate is not None
    state = replace(state, sales=state.sales.assign(stock=3), gate=state.gate.assign(stock=3, remaining=1))
    found = broken(judge(history, state, sales=[Terms(stock=3).ask()]))
    assert found == {"demand empties the stock", "sold out means sold out", "the sale happened"}


@pytest.mark.parametrize(
    "outcome", ["LIMIT_REACHED", "NOT_STARTED", "SALE_ENDED", "UNKNOWN_PRODUCT", "INVALID"]
)
def test_refusals_are_true_catches_a_refusal_that_the_sale_does_not_know(outcome: str) -> None:
    history, state = sold_out_sale()
    history = edited(history, 4, outcome=outcome)
    assert broken(judge(history, state)) == {"refusals are true"}


def test_refusals_are_true_catches_a_limit_that_its_buyer_cannot_have_reached() -> None:
    history, state = play([at(0, 1), at(100, 1), at(200, 2)], [Terms(stock=9, limit=1)])
    assert broken(judge(history, state)) == set()
    state = with_orders(state, order_rows(state)[:1])
    assert state.gate is not None
    state = replace(state, gate=state.gate.assign(remaining=8))
    history = edited(history, 2, outcome="LIMIT_REACHED", result="fail", order_id=None)
    assert broken(judge(history, state)) == {"refusals are true"}


def doors_open_late() -> tuple[pd.DataFrame, Played]:
    """Doors that open after 5 µs: two come too early, one of them comes again, and a third one in time."""
    asks = [at(1_000, 1), at(4_000, 2), at(5_000, 3), at(7_000, 1)]
    return play(asks, [Terms(stock=9, starts_us=5)])


def test_a_sale_whose_doors_open_later_is_correct() -> None:
    history, state = doors_open_late()
    assert list(history["outcome"]) == ["NOT_STARTED", "NOT_STARTED", "ACCEPTED", "ACCEPTED"]
    assert broken(judge(history, state)) == set()


@pytest.mark.parametrize("term", ["starts_us", "ends_us"])
def test_sales_keep_their_hours_catches_what_was_accepted_out_of_hours(term: str) -> None:
    history, state = doors_open_late()
    asked = [Terms(stock=9, **{term: 6}).ask()]
    assert "sales keep their hours" in broken(judge(history, state, sales=asked))


def test_refusals_are_true_catches_doors_that_close_again() -> None:
    history, state = play(
        [at(5_000, 1), replace(at(5_000, 2), done_ns=6_000), at(5_500, 3)], [Terms(stock=9, starts_us=5)]
    )
    assert broken(judge(history, state)) == set()
    while_it_opened = with_orders(state, order_rows(state)[:1] + order_rows(state)[2:])
    assert while_it_opened.gate is not None
    while_it_opened = replace(while_it_opened, gate=while_it_opened.gate.assign(remaining=7))
    refused = edited(history, 1, outcome="NOT_STARTED", result="fail", order_id=None)
    assert broken(judge(refused, while_it_opened)) == set()
    assert broken(judge(edited(refused, 1, sent_ns=5_100), while_it_opened)) == {"refusals are true"}


def test_a_client_that_comes_again_under_its_key_is_one_purchase_and_without_one_it_may_be_two() -> None:
    lost = at(0, 1, key="a", lost=True)
    history, state = play([lost, at(100, 1, key="a")], [Terms(stock=9)])
    history = history.assign(attempt=[0, 1], first_op=0)
    assert broken(judge(history, state)) == set()
    assert len(order_rows(state)) == 1
    history, state = play([replace(lost, key=None), at(100, 1)], [Terms(stock=9)])
    assert broken(judge(history.assign(attempt=[0, 1], first_op=0), state)) == set()
    assert len(order_rows(state)) == 2
    bought_twice = with_orders(state, [row | {"idempotency_key": "a"} for row in order_rows(state)])
    assert broken(judge(history.assign(key="a"), bought_twice)) == {"a key buys once"}


def test_a_key_buys_once_catches_tries_that_are_told_of_different_orders() -> None:
    history, state = play([at(0, 1, key="a"), at(100, 1, key="a")], [Terms(stock=9)])
    other = order("other", at(100, 1, key="b"), 1)
    state = with_orders(state, [*order_rows(state), other])
    assert state.gate is not None
    state = replace(state, gate=state.gate.assign(remaining=7))
    told = broken(judge(edited(history, 1, order_id="other"), state))
    assert told == {"a key buys once", "accepted is settled"}, "it is an order of another key, too"


def test_no_dead_letters_catches_one() -> None:
    history, state = sold_out_sale()
    assert broken(judge(history, replace(state, dead=1))) == {"no dead letters"}


def test_guard_never_needed_catches_a_rejected_order() -> None:
    history, state = sold_out_sale()
    late = at(400, 4)
    history = edited(history, 3, outcome="ACCEPTED", result="ok", order_id="late")
    state = with_orders(state, [*order_rows(state), order("late", late, 1, status="REJECTED")])
    assert broken(judge(history, state)) == {"guard never needed"}


def test_payment_decides_catches_an_order_that_did_not_end_as_its_payment_did() -> None:
    history, state = sold_out_sale()
    assert state.orders is not None
    payment = SimulatedGateway(decline_rate=0.5, seed=1)
    ids = state.orders["order_id"].map(payment.declines)
    assert set(ids) == {True, False}
    told = state.orders.assign(status=np.where(ids, "FAILED", "CONFIRMED"))
    assert "payment decides" not in broken(
        judge(history, replace(state, orders=told), declines=payment.declines)
    )
    known = know_payments({"payment_decline_rate": 0.5, "payment_seed": "1"})
    assert list(state.orders["order_id"].map(known)) == list(ids)
    for place in range(len(told)):
        status = told["status"].tolist()
        status[place] = "CONFIRMED" if status[place] == "FAILED" else "FAILED"
        wrong = replace(state, orders=told.assign(status=status))
        assert "payment decides" in broken(judge(history, wrong, declines=payment.declines))
        unknown = {each.name: each for each in judge(history, wrong, declines=None)}["payment decides"]
        assert unknown.state == ("not judged" if "FAILED" in status else "not exercised")
    rejected = replace(state, orders=told.assign(status="REJECTED"))
    assert "payment decides" in broken(judge(history, rejected, declines=payment.declines))


# --- verdict


@pytest.mark.parametrize(
    ("part", "unjudged"),
    [
        ("orders", {"no oversell", "accepted is settled", "no phantom orders"}),
        ("sales", {"no oversell", "units are conserved"}),
        ("gate", {"units are conserved"}),
        ("pending", {"units are conserved", "nothing is stranded"}),
        ("outbox", {"nothing is stranded"}),
        ("queue", {"nothing is stranded"}),
        ("dead", {"no dead letters"}),
    ],
)
def test_a_part_that_was_not_read_leaves_its_rules_unjudged(part: str, unjudged: set[str]) -> None:
    history, state = sold_out_sale()
    checks = judge(history, replace(state, **{part: None}))  # type: ignore[arg-type]
    assert {check.name for check in checks if check.holds is None} >= unjudged
    assert broken(checks) == set()
    assert verdict(checks, load_valid=True) == "unknown"
    assert "could not be judged" in verdict_in_words(checks, load_valid=True)


def test_a_broken_rule_outweighs_everything_and_an_invalid_load_is_no_pass() -> None:
    history, state = sold_out_sale()
    assert verdict(judge(history, state), load_valid=False) == "unknown"
    assert "schedule" in verdict_in_words(judge(history, state), load_valid=False)
    checks = judge(history, replace(state, dead=1, sales=None))
    assert verdict(checks, load_valid=False) == "fail"
    assert "no dead letters" in verdict_in_words(checks, load_valid=False)
    assert verdict([], load_valid=True) == "unknown"


def test_an_empty_history_is_judged() -> None:
    history, state = play([], [Terms(stock=3)])
    checks = judge(history, state)
    assert {check.name for check in checks if check.state == "held"} == {"terms are as asked"}


def test_what_a_clock_cannot_know_breaks_no_rule() -> None:
    history, state = play([at(0, 1), at(100, 2), at(200, 3)], [Terms(stock=2)])
    early = edited(history, 2, sent_ns=20, done_ns=30)
    assert broken(judge(early, state)) == {"sold out means sold out"}
    assert broken(judge(early.assign(unsure_ns=34), state)) == {"sold out means sold out"}
    assert broken(judge(early.assign(unsure_ns=36), state)) == set()
    assert early["done_ns"].tolist() == [10, 110, 30], "the record itself is not widened"
