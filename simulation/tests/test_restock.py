"""A product that is opened again in mid-load: each of its sales is judged and timed by itself."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.judge.numbers.sales import measure_restock, time_to_sell_out
from simulation.model.events import Restocked
from simulation.record.facts import read_facts
from simulation.record.history import read_history
from simulation.run import run
from simulation.scenario.loading import load_scenario
from simulation.tests.histories import (
    Ask,
    Played,
    Terms,
    at,
    broken,
    edited,
    judge,
    judging,
    order,
    order_rows,
    play,
    with_orders,
)
from simulation.tests.test_run import PATIENT, services
from simulation.verdict import judge_run

__all__ = ["services"]  # the fixture

US = 1_000
AGAIN_NS = 2_000 * US
RESTOCK = Restocked(
    at_s=(AGAIN_NS - US) / 1e9, opened_s=(AGAIN_NS + US) / 1e9, product_id=1, stock=2, sale_id=2
)
OLD, NEW = Terms(stock=3), Terms(stock=2, opens_ns=AGAIN_NS)


def restocked_sale() -> tuple[pd.DataFrame, Played]:
    """Three of five buy, and after the restock two of four."""
    before = [at(100 * US * number, number) for number in range(1, 6)]
    after = [at(AGAIN_NS + 100 * US * number, 10 + number) for number in range(1, 5)]
    return play([*before, *after], [OLD, NEW])


def broken_rules(history: pd.DataFrame, state: Played) -> set[str]:
    return broken(judge(history, state))


def without_orders_of(state: Played, *users: int) -> Played:
    return with_orders(state, [row for row in order_rows(state) if row["user_id"] not in users])


def refuse(history: pd.DataFrame, op: int) -> pd.DataFrame:
    return edited(history, op, outcome="SOLD_OUT", result="fail", order_id=None)


def test_a_correct_restock_passes_and_every_answer_of_both_sales_is_judged() -> None:
    history, state = restocked_sale()
    checks = {check.name: check for check in judge(history, state)}
    assert {name for name, check in checks.items() if not check.holds} == set()
    assert checks["sold out means sold out"].detail.startswith("4 SOLD_OUT answers judged")
    assert checks["demand empties the stock"].detail.startswith("demand reached the stock of 2 of 2 sales")
    assert checks["no oversell"].detail.startswith("5 units confirmed of 5")


def test_units_too_many_of_one_sale_are_not_hidden_by_the_other() -> None:
    history, state = restocked_sale()
    moved = [row | {"sale_id": 2} if row["user_id"] == 3 else row for row in order_rows(state)]
    assert "no oversell" in broken_rules(history, with_orders(state, moved))


@pytest.mark.parametrize(("op", "user"), [(0, 1), (5, 11)])
def test_nobody_is_turned_away_from_either_sale_while_units_are_left(op: int, user: int) -> None:
    history, state = restocked_sale()
    found = broken_rules(refuse(history, op), without_orders_of(state, user))
    assert {"sold out means sold out", "demand empties the stock"} <= found


def test_units_that_a_sale_still_had_when_it_was_replaced_are_no_fault_if_nobody_was_turned_away() -> None:
    history, state = play([at(100 * US, 1), at(AGAIN_NS + 100 * US, 2)], [OLD, NEW])
    assert broken_rules(history, state) == set()


def test_a_product_that_somebody_opened_again_unasked_is_no_pass() -> None:
    history, state = restocked_sale()
    assert {"terms are as asked", "no oversell"} <= broken(judge(history, state, sales=[OLD.ask()]))


@st.composite
def restocked_runs(draw: st.DrawFn) -> tuple[pd.DataFrame, Played]:
    """Any run of a correct engine with one restock: overlapping requests, lost answers, declined payments."""
    quantity, limit = draw(st.integers(1, 2)), draw(st.none() | st.integers(1, 4))
    terms = [replace(each, quantity=quantity, limit=limit) for each in (OLD, NEW)]
    terms[0] = replace(terms[0], stock=draw(st.integers(0, 8)))
    asks = []
    for _ in range(draw(st.integers(1, 30))):
        sent = draw(st.integers(0, 2 * AGAIN_NS))
        gate = sent + draw(st.integers(0, 600 * US))
        asks.append(
            Ask(
                user_id=draw(st.integers(1, 6)),
                key=draw(st.sampled_from([None, None, "a"])),
                sent_ns=sent,
                gate_ns=gate,
                done_ns=gate + draw(st.integers(0, 600 * US)),
                lost=draw(st.sampled_from([False, False, False, True])),
                arrives=draw(st.booleans()),
                declined=draw(st.sampled_from([False, False, False, True])),
            )
        )
    return play(asks, terms)


@judging(runs=20)
@given(restocked_runs())
def test_every_correct_run_with_a_restock_passes(found: tuple[pd.DataFrame, Played]) -> None:
    checks = judge(*found)
    assert {check.name: check.detail for check in checks if check.holds is False} == {}


def test_each_stock_is_timed_from_its_own_opening() -> None:
    history, state = restocked_sale()
    first_s = (300 - 100) * US / 1e9 + 10e-9  # the third buyer's answer, from the first request on
    assert time_to_sell_out(history, [RESTOCK]) == pytest.approx(first_s)
    timed = measure_restock(history, state, RESTOCK, [RESTOCK])
    assert timed["sold_out_after_s"] == pytest.approx((200 * US + 10) / 1e9 + US / 1e9)
    assert timed["sold"] == 2
    assert timed.items() >= {"sale_id": 2, "stock": 2, "at_s": RESTOCK.at_s}.items()


def test_a_stock_that_was_not_sold_out_has_no_time() -> None:
    history, state = play([at(100 * US, 1), at(AGAIN_NS + 100 * US, 2)], [OLD, NEW])
    assert time_to_sell_out(history, [RESTOCK]) is None
    assert (
        measure_restock(history, replace(state, orders=None), RESTOCK, [RESTOCK])["sold_out_after_s"] is None
    )
    lone = order("x", at(AGAIN_NS, 2), 2, status="FAILED")
    assert measure_restock(history, with_orders(state, [lone]), RESTOCK, [RESTOCK])["sold"] == 0


def short_restock(**changes: Any) -> Any:
    """The scenario of that name in four seconds: the sale, and two more in mid-load."""
    stocks = {"sales.0.stock": 400, "restocks.0.stock": 200, "restocks.1.stock": 100}
    return load_scenario("restock", PATIENT | stocks | changes, rate_rps=500, duration_s=4)


async def test_a_run_that_restocks_sells_every_unit_of_every_sale(services: Any, tmp_path: Path) -> None:
    scenario = short_restock(**{"engine.payment_decline_rate": 0.02})
    folder = tmp_path / "run"
    await run(scenario, folder, print, services=services)
    summary = judge_run(folder)
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["stock"]["initial"] == 700
    assert summary["stock"]["oversold"] == 0
    assert [row["stock"] for row in summary["restocks"]] == [200, 100]
    last_s = read_history(folder / "history.parquet")["done_ns"].max() / 1e9
    assert all(0 < row["sold_out_after_s"] <= last_s - row["at_s"] for row in summary["restocks"])
    assert 0 < summary["time_to_sell_out_s"] <= last_s
    assert len({row.sale_id for row in read_facts(folder).restocks}) == 2
    timeline = pd.read_csv(folder / "timeline.csv")
    assert timeline["ledger_confirmed"].iloc[-1] == summary["fulfilment"]["confirmed"]


async def test_a_hopeless_load_is_stopped_and_judged_by_what_was_sent(services: Any, tmp_path: Path) -> None:
    said: list[str] = []
    scenario = load_scenario(
        "restock",
        PATIENT
        | {"sales.0.stock": 50, "abort_when": ["sold_out.share > 0.1"], "thresholds": ["all.count > 0"]},
        rate_rps=200,
        duration_s=60,
    )
    folder = tmp_path / "run"
    await run(scenario, folder, said.append, services=services)
    summary = judge_run(folder)
    assert any(line.startswith("stopping the load: sold_out.share > 0.1, it is 0.") for line in said)
    assert summary["verdict"] == "fail"
    assert summary["verdict_in_words"].startswith("Stopped after ")
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert [check["name"] for check in summary["thresholds"] if not check["holds"]] == [
        "stop when sold_out.share > 0.1"
    ]
    assert 3 <= summary["duration_s"] < 30
    assert summary["load"]["valid"]
    assert summary["load"]["requests"] == summary["load"]["sent"] == sum(summary["outcomes"].values())
    assert summary["phases"][-1]["end_s"] == summary["duration_s"]
    assert sum(phase["requests"] for phase in summary["phases"]) == summary["load"]["requests"]
    assert summary["restocks"] == []
