"""What clients are shown of stock and orders is judged: each lie is caught, and no true answer is."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from simulation.judge.numbers.reads import measure_reads
from simulation.judge.rules.reads import reads_are_true
from simulation.judge.verdict import Check
from simulation.model.events import Recovery, Restocked
from simulation.model.state import FinalState
from simulation.tests.histories import (
    Ask,
    Look,
    Played,
    Terms,
    at,
    history_of,
    judge,
    judging,
    order_rows,
    play,
    play_and_look,
    read_order,
    read_stock,
    with_orders,
)

RESTOCK = Restocked(at_s=1_000e-9, product_id=1, stock=7, opened_s=1_100e-9, sale_id=2)


def check(
    history: pd.DataFrame, state: FinalState, rows: list[dict[str, Any]] | pd.DataFrame, *restocks: Restocked
) -> Check:
    reads = rows if isinstance(rows, pd.DataFrame) else history_of(rows)
    assert isinstance(state, Played)
    sales = list(state.asked.sales)
    for each in restocks:
        moments = {"asked_ns": round(each.at_s * 1e9), "opened_ns": round(each.opened_s * 1e9)}
        sales[each.sale_id - 1] = replace(sales[each.sale_id - 1], **moments)
    [found] = judge(history, state, reads, sales=sales, rules=[reads_are_true])
    return found


def two_orders() -> tuple[pd.DataFrame, Played, str, str]:
    """Two of three units are bought: answered at 110 and 210."""
    history, state = play([at(100, 1), at(200, 2)], [Terms(stock=3)])
    return history, state, *history["order_id"].tolist()


def test_without_reads_nothing_is_broken() -> None:
    history, state, *_ = two_orders()
    assert (check(history, state, []).holds, check(history, state, []).detail) == (True, "no reads")
    assert (
        check(history, state, [read_stock(9, 300, 3, 1)]).detail == "0 reads of orders and 1 of stock judged"
    )


def test_an_order_that_was_accepted_is_never_denied() -> None:
    history, state, one, _ = two_orders()
    assert check(history, state, [read_order(9, one, 105, None)]).holds, "nobody had heard of it yet"
    found = check(history, state, [read_order(9, one, 111, None)])
    assert (found.holds, found.violations) == (False, 1)
    assert found.detail.endswith(f"1 answers denied an accepted order (order {one})")
    unavailable = read_order(9, one, 111, None) | {"outcome": "UNAVAILABLE"}
    unanswered = read_order(9, one, 111, None) | {"outcome": "UNKNOWN", "done_ns": None}
    assert check(history, state, [unavailable, unanswered]).holds, "what is not known is no lie"


def test_an_order_that_is_never_shown_while_others_are_is_found() -> None:
    history, state = play([at(100 * number, number) for number in range(1, 31)], [Terms(stock=40)])
    ids = history["order_id"].tolist()
    looks = [read_order(50 + op, ids[op % 30], 10_000 + op, "CONFIRMED") for op in range(90)]

    def hide(*ops: int) -> list[dict[str, Any]]:
        return [look | ({"outcome": "UNAVAILABLE"} if op in ops else {}) for op, look in enumerate(looks)]

    assert check(history, state, hide()).holds
    assert check(history, state, hide(3)).holds, "the others show it"
    found = check(history, state, hide(3, 33, 63))
    assert (found.holds, found.violations) == (False, 1)
    assert found.detail.endswith(f"accepted orders were never shown while others were (order {ids[3]})")
    assert check(history, state, hide(3, 33, 63, 4)).holds, "so it may be chance"


def test_a_status_never_goes_back() -> None:
    history, state, one, two = two_orders()
    forth = [read_order(8, one, 300, "PENDING"), read_order(9, one, 400, "CONFIRMED")]
    assert check(history, state, forth).holds
    assert check(history, state, [*forth, read_order(10, one, 405, "PENDING")]).holds, (
        "sent before the answer"
    )
    assert check(history, state, [*forth, read_order(10, two, 500, "PENDING")]).holds, "another order"
    found = check(history, state, [*forth, read_order(10, one, 411, "PENDING")])
    assert (found.holds, found.violations) == (False, 1)
    assert "statuses went back to PENDING" in found.detail


@pytest.mark.parametrize("other", ["FAILED", "REJECTED"])
def test_a_final_status_never_changes(other: str) -> None:
    history, state, one, _ = two_orders()
    changed = [read_order(8, one, 300, "CONFIRMED"), read_order(9, one, 305, other)]
    for unread in (state, replace(state, orders=None)):
        found = check(history, unread, changed)
        assert (found.holds, found.violations) == (False, 1)
        assert "final statuses changed" in found.detail


def test_the_final_status_is_the_ledgers() -> None:
    history, state, one, _ = two_orders()
    seen = [read_order(9, one, 300, "FAILED")]
    assert "final statuses are not the ledger's" in check(history, state, seen).detail
    failed = with_orders(state, [row | {"status": "FAILED"} for row in order_rows(state)])
    assert check(history, failed, seen).holds
    assert check(history, with_orders(state, []), seen).holds is False, "the ledger lacks it"
    assert check(history, replace(state, orders=None), seen).holds is None, "nobody can say"


@pytest.mark.parametrize("kind", ["rollback", "wipe", "stop"])
def test_no_fault_excuses_a_denied_order(kind: str) -> None:
    history, state, one, _ = two_orders()
    fault = Recovery(kind=kind, on="redis", start_s=100e-9, end_s=300e-9, recovered_after_s=0.0)
    struck = replace(state, asked=replace(state.asked, faults=[fault]))
    assert not check(history, struck, [read_order(9, one, 250, None)]).holds


def test_a_status_is_a_word_of_the_contract() -> None:
    history, state, one, _ = two_orders()
    assert "none of the contract's" in check(history, state, [read_order(9, one, 300, "SHIPPED")]).detail


@pytest.mark.parametrize(
    ("units", "said"),
    [
        ({"remaining": -1, "sold": 4}, "stocks are negative"),
        ({"remaining": 4, "sold": -1}, "stocks are negative"),
        ({"remaining": 1, "sold": 1}, "stocks don't add up"),
        ({"initial": 4, "remaining": 2, "sold": 2}, "stocks are not what was asked for"),
        ({"initial": 2, "remaining": 1, "sold": 1}, "stocks are not what was asked for"),
        ({"remaining": 0, "sold": 3}, "stocks lack units that nobody can have taken"),
    ],
)
def test_a_stock_that_cannot_be_is_caught(units: dict[str, int], said: str) -> None:
    history, state, *_ = two_orders()
    assert check(history, state, [read_stock(9, 300, 3, 1)]).holds
    found = check(history, state, [read_stock(9, 300, 3, 1) | units])
    assert (found.holds, found.violations) == (False, 1)
    assert f"1 {said} (op 9)" in found.detail


def test_a_product_on_sale_is_never_denied() -> None:
    history, state, *_ = two_orders()
    denied = read_stock(9, 300, 0, 0) | {
        "outcome": "NOT_FOUND",
        "initial": None,
        "remaining": None,
        "sold": None,
    }
    assert "products on sale were denied" in check(history, state, [denied]).detail
    assert check(history, state, [denied | {"product_id": 9}]).holds


def test_a_unit_may_be_gone_from_the_moment_at_which_a_purchase_is_sent() -> None:
    history, state, *_ = two_orders()
    assert check(history, state, [read_stock(9, 190, 3, 1)]).holds, "the second one was sent at 200"
    assert check(history, state, [read_stock(9, 189, 3, 1)]).holds is False
    assert check(history, state, [read_stock(9, 89, 3, 2)]).holds is False


def test_an_unknown_outcome_may_have_taken_a_unit_and_a_key_takes_but_one() -> None:
    def holds(remaining: int, *asks: Ask) -> bool | None:
        return check(*play(asks, [Terms(stock=9)]), [read_stock(9, 900, 9, remaining)]).holds

    assert holds(7, at(100, 1), at(200, 2, lost=True, arrives=False)), "it may have come"
    assert holds(6, at(100, 1), at(200, 2, lost=True)) is False
    assert holds(8, at(100, 1, key="a", lost=True), at(200, 1, key="a"))
    assert holds(7, at(100, 1, key="a", lost=True), at(200, 1, key="a")) is False
    assert holds(7, at(100, 1, lost=True), at(200, 1)), "without a key they are two purchases"
    assert holds(6, at(100, 1, lost=True), at(200, 1)) is False


def test_what_is_refused_with_503_may_have_held_a_unit_until_then() -> None:
    history, state = play([at(100, 1, lost=True, arrives=False)], [Terms(stock=9)])
    refused = history.astype({"outcome": "str", "result": "str"})
    refused = refused.assign(outcome="UNAVAILABLE", result="fail", done_ns=110).astype({"done_ns": "Int64"})
    assert check(refused, state, [read_stock(9, 105, 9, 8)]).holds
    assert check(refused, state, [read_stock(9, 111, 9, 8)]).holds is False


def test_a_restocked_product_has_the_stock_of_either_sale_for_a_moment() -> None:
    sales = [Terms(stock=3), Terms(stock=7, opens_ns=1_050)]
    history, state = play([at(100, 1), at(200, 2), at(1_200, 3)], sales)

    def holds(sent_ns: int, initial: int, remaining: int) -> bool | None:
        return check(history, state, [read_stock(9, sent_ns, initial, remaining)], RESTOCK).holds

    assert holds(980, 3, 1)
    assert holds(980, 7, 7) is False, "not yet"
    assert holds(1_050, 3, 1)
    assert holds(1_050, 7, 7)
    assert holds(1_101, 3, 1) is False, "no longer"
    assert holds(1_101, 7, 6) is False, "the purchases of the first sale took none of the second"
    assert holds(1_200, 7, 6)
    assert holds(1_200, 7, 5) is False


def test_without_the_ledger_a_lie_is_still_a_lie() -> None:
    history, state, one, _ = two_orders()
    unread = replace(state, orders=None, sales=None)
    assert check(history, unread, [read_order(9, one, 111, None)]).holds is False
    assert check(history, unread, [read_order(9, one, 111, "PENDING")]).holds is None


def test_reads_are_counted_by_kind_and_end() -> None:
    rows = [
        read_order(1, "a", 0, "PENDING"),
        read_order(2, "a", 100, "CONFIRMED"),
        read_order(3, "b", 0, None),
        read_stock(4, 0, 3, 3),
        read_stock(5, 0, 3, 3) | {"outcome": "UNKNOWN", "done_ns": None},
    ]
    found = measure_reads(history_of(rows), 5_000)
    order = {name: value for name, value in found["order"].items() if name != "latency_ms"}
    assert order == {
        "requests": 3, "shown": 2, "not_found": 1, "unavailable": 0, "invalid": 0, "unknown": 0,
        "orders": 2, "final": 1,
    }  # fmt: skip
    assert (found["stock"]["requests"], found["stock"]["shown"], found["stock"]["unknown"]) == (2, 1, 1)
    assert found["stock"]["latency_ms"]["response"]["max"] == 5_000, "one was not answered"
    assert measure_reads(history_of([]), 5_000) == {}


# --- any run

Run = tuple[pd.DataFrame, pd.DataFrame, FinalState, list[Restocked]]


@st.composite
def runs(draw: st.DrawFn) -> Run:
    """Any run of a correct engine with overlapping purchases and reads, retries, declines and a restock."""
    sales = [
        Terms(product_id=product, stock=draw(st.integers(1, 8)), quantity=draw(st.integers(1, 3)))
        for product in (1, 2)
    ]
    restocks = []
    if draw(st.booleans()):
        opens_ns = 10 * draw(st.integers(20, 300))
        stock = draw(st.integers(1, 8))
        sales.append(Terms(stock=stock, quantity=sales[0].quantity, opens_ns=opens_ns))
        asked_s, opened_s = (opens_ns - 10) / 1e9, (opens_ns + 10) / 1e9
        restocks = [Restocked(at_s=asked_s, opened_s=opened_s, product_id=1, stock=stock, sale_id=3)]

    def times() -> dict[str, int]:
        sent = 10 * draw(st.integers(0, 400))
        gate = sent + 10 * draw(st.integers(0, 60))
        return {"sent_ns": sent, "gate_ns": gate, "done_ns": gate + 10 * draw(st.integers(0, 60))}

    asks = [
        Ask(
            user_id=draw(st.integers(1, 6)),
            product_id=draw(st.integers(1, 2)),
            key=draw(st.sampled_from([None, None, "a", "b"])),
            lost=draw(st.sampled_from([False, False, True])),
            arrives=draw(st.booleans()),
            declined=draw(st.sampled_from([False, False, True])),
            **times(),
        )
        for _ in range(draw(st.integers(1, 20)))
    ]
    looks = [
        Look(product_id=draw(st.integers(1, 2)), order=draw(st.none() | st.integers(0, 20)), **times())
        for _ in range(draw(st.integers(1, 15)))
    ]
    return *play_and_look(asks, looks, sales), restocks


@judging(runs=50)
@given(runs())
def test_what_a_correct_engine_shows_is_true(run: Run) -> None:
    history, reads, state, restocks = run
    found = check(history, state, reads, *restocks)
    assert found.holds, found.detail


def change(reads: pd.DataFrame, rows: "pd.Series[bool]", random: Random, **values: object) -> pd.DataFrame:
    """Return the reads with other values in one of these rows."""
    assume(rows.any())
    row = random.choice(reads.index[rows].tolist())
    changed = reads.astype({"outcome": "str"})
    return changed.assign(
        **{name: changed[name].mask(changed.index == row, value) for name, value in values.items()}
    )


def deny_an_order(run: Run, random: Random) -> pd.DataFrame:
    history, reads, *_ = run
    accepted_ns = reads["order_id"].map(history.groupby("order_id")["done_ns"].min())
    heard = (reads["sent_ns"] > accepted_ns).fillna(False).astype(bool)
    return change(reads, heard, random, outcome="NOT_FOUND", order_status=None)


def end_otherwise(run: Run, random: Random) -> pd.DataFrame:
    return change(run[1], run[1]["order_status"].notna(), random, order_status="REJECTED")


def miscount(run: Run, random: Random) -> pd.DataFrame:
    reads = run[1]
    return change(reads, reads["kind"] == "stock", random, remaining=random.choice([-5, 99]))


def sell_everything(run: Run, random: Random) -> pd.DataFrame:
    """Show nothing left to somebody that looks before the first purchase is sent."""
    history, reads, *_ = run
    early = dict.fromkeys(("sent_ns", "done_ns"), int(history["sent_ns"].min()) - 1)
    return change(reads, reads["kind"] == "stock", random, remaining=0, initial=8, sold=8, **early)


@pytest.mark.parametrize("lie", [deny_an_order, end_otherwise, miscount, sell_everything])
@judging(runs=10)
@given(run=runs(), seed=st.integers(0, 2**32))
def test_any_lie_is_caught(lie: Callable[[Run, Random], pd.DataFrame], run: Run, seed: int) -> None:
    history, _, state, restocks = run
    assert check(history, state, lie(run, Random(seed)), *restocks).holds is False
