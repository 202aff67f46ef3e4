"""Part of the crowd looks: at the stock as planned, and at its orders after the answers."""

import asyncio
import json
from collections import Counter
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulation.drive.driver import Drive, LoadSpec, drive
from simulation.drive.locust.driver import drive_locust
from simulation.drive.plan import Plan, build_plan
from simulation.drive.progress import Progress
from simulation.errors import ScenarioError
from simulation.judge.numbers.load import measure_load
from simulation.model.contract import FLASHGRID
from simulation.model.history import BUY, STOCK, take_buys, take_reads
from simulation.scenario.loading import load_scenario, read_scenario
from simulation.scenario.schema import DriverOptions, Scenario
from simulation.tests.http_server import SOLD_OUT, Request, answer, http_server
from simulation.tests.scenario.test_scenario import minimal

READS = {"stock_share": 0.3, "order_share": 0.5, "pause_ms": 20, "most": 6}


def scenario(seconds: float = 0.5, rate_rps: float = 200, **population: Any) -> Scenario:
    raw = minimal(
        arrivals=[{"shape": "constant", "seconds": seconds, "rate_rps": rate_rps}],
        population={"users": 10**6, "keyed_share": 0.5} | population,
        sales=[{"product_id": 3, "stock": 50}, {"product_id": 4, "stock": 60}],
    )
    return read_scenario(raw)


def plan(seconds: float = 10, **population: Any) -> Plan:
    return build_plan(scenario(seconds, **population))


def test_reads_come_on_top_of_purchases_and_change_none() -> None:
    plain, looked = plan(patience={}), plan(patience={}, reads=READS)
    bought = looked.kind == BUY
    assert set(plain.kind.tolist()) == {BUY}
    for name in ("intended_ns", "user_id", "product_id", "pause_ns"):
        assert getattr(looked, name)[bought].tolist() == getattr(plain, name).tolist(), name
    assert [looked.key[op] for op in np.flatnonzero(bought)] == plain.key
    assert (looked.kind == STOCK).sum() == pytest.approx(0.3 * len(plain), rel=0.15)
    assert looked.poll_ns is not None
    assert np.all(np.diff(looked.intended_ns) >= 0)
    assert not looked.poll_ns[~bought].any()
    assert (looked.poll_ns[bought] > 0).mean() == pytest.approx(0.5, abs=0.05)
    assert {looked.key[op] for op in np.flatnonzero(~bought)} == {None}
    assert set(looked.product_id[~bought].tolist()) == {3, 4}
    again = plan(patience={}, reads=READS)
    assert np.array_equal(looked.intended_ns, again.intended_ns)
    assert again.poll_ns is not None
    assert np.array_equal(looked.poll_ns, again.poll_ns)


def test_bots_do_not_look() -> None:
    looked = plan(bots={"users": 5, "share": 0.5}, reads=READS | {"order_share": 1})
    assert looked.poll_ns is not None
    is_bot = looked.user_id > 10**6
    assert not looked.poll_ns[is_bot].any()
    assert looked.poll_ns[~is_bot & (looked.kind == BUY)].all()


def test_reads_can_be_switched_off() -> None:
    assert load_scenario("spike").population.reads is not None
    for name in ("spike", "bots"):
        assert load_scenario(name, {"population.reads": False}).population.reads is None
    assert (build_plan(load_scenario("spike", {"population.reads": {}}, rate_rps=100)).kind == BUY).all()


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        ({"stock_share": 1.1}, "population.reads.stock_share: expected"),
        ({"order_share": -1}, "population.reads.order_share: expected"),
        ({"pause_ms": 0}, "population.reads.pause_ms: expected"),
        ({"most": 0}, "population.reads.most: expected"),
        ({"rate": 3}, "population.reads.rate: there is no such key"),
        (True, "population.reads: expected"),
    ],
)
def test_a_bad_table_is_named(reads: Any, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        scenario(reads=reads)


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [
        (200, b'{"initial":3,"remaining":2,"sold":1}', "SHOWN"),
        (200, b'{"productId":7,"initial":3,"remaining":-2,"sold":5}', "SHOWN"),
        (200, b'{"productId":8,"initial":3,"remaining":2,"sold":1}', "UNKNOWN"),
        (200, b'{"initial":3,"remaining":"two","sold":1}', "UNKNOWN"),
        (200, b'{"initial":3,"remaining":99999999999999999999,"sold":1}', "UNKNOWN"),
        (200, b'{"initial":3,"remaining":2}', "UNKNOWN"),
        (200, b"\xff", "UNKNOWN"),
        (404, b"", "NOT_FOUND"),
        (429, b"", "INVALID"),
        (503, b"", "UNAVAILABLE"),
        (500, b"", "UNKNOWN"),
        (0, b"", "UNKNOWN"),
    ],
)
def test_an_answer_about_stock_is_understood(status: int, body: bytes, found: str) -> None:
    outcome, stock = FLASHGRID.classify_stock(status, body, 7)
    assert (outcome, stock is None) == (found, found != "SHOWN")


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [
        (200, b'{"status":"PENDING"}', ("SHOWN", "PENDING")),
        (200, b'{"status":"CONFIRMED","orderId":"a"}', ("SHOWN", "CONFIRMED")),
        (200, b'{"status":"CONFIRMED","orderId":"b"}', ("UNKNOWN", None)),
        (200, b'{"status":[7]}', ("UNKNOWN", None)),
        (200, b"[", ("UNKNOWN", None)),
        (404, b"", ("NOT_FOUND", None)),
        (503, b"", ("UNAVAILABLE", None)),
        (502, b"", ("UNKNOWN", None)),
    ],
)
def test_an_answer_about_an_order_is_understood(
    status: int, body: bytes, found: tuple[str, str | None]
) -> None:
    assert FLASHGRID.classify_order(status, body, "a") == found


class Shop:
    """Accepts 40 purchases under ids that have to be quoted, and confirms each at its third look."""

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()
        self.accepted = 0

    async def react(self, request: Request) -> None:
        method, path, _ = request.line.split()
        if method == "POST":
            assert path == "/shop/purchase/buy"
            self.accepted += 1
            body = b'{"status":"ACCEPTED","orderId":"a b/%d"}' % self.accepted
            request.send(answer(200, body) if self.accepted <= 40 else SOLD_OUT)
        elif path.startswith("/shop/purchase/stock?productId="):
            product = int(path.partition("=")[2])
            units = {"productId": product, "initial": 10 * product, "remaining": -1, "sold": product}
            request.send(answer(200, json.dumps(units).encode()))
        else:
            order = path.removeprefix("/shop/purchase/orders/")
            self.looks[order] += 1
            word = "CONFIRMED" if self.looks[order] >= 3 else "PENDING"
            request.send(answer(200, json.dumps({"status": word}).encode()))


@pytest.mark.slow
@pytest.mark.parametrize("driver", [drive, partial(drive_locust, say=lambda _: None)], ids=["own", "locust"])
async def test_a_load_with_reads_is_sent_and_recorded(driver: Drive) -> None:
    asked = scenario(reads=READS)
    sent, shop, seen = build_plan(asked), Shop(), list[Progress]()
    async with http_server(shop.react) as server:
        load = LoadSpec(sent, (f"{server.url}/shop",), DriverOptions(processes=2), on_progress=seen.append)
        history = (await driver(load)).history
    assert history["op"].tolist() == list(range(len(history)))
    buys, reads = take_buys(history), take_reads(history)
    assert buys["op"].tolist() == np.flatnonzero(sent.kind == BUY).tolist()
    assert buys["outcome"].value_counts()[["ACCEPTED", "SOLD_OUT"]].tolist() == [40, len(buys) - 40]
    assert buys[["order_status", "initial", "remaining", "sold"]].isna().all(axis=None)

    stocks, orders = (reads[reads["kind"] == kind] for kind in ("stock", "order"))
    assert stocks["op"].tolist() == np.flatnonzero(sent.kind == STOCK).tolist()
    assert set(stocks["outcome"]) == {"SHOWN"}
    assert (stocks["initial"] == 10 * stocks["product_id"]).all()
    assert (stocks["remaining"] == -1).all()
    assert (stocks["sold"] == stocks["product_id"]).all()

    accepted = buys[buys["outcome"] == "ACCEPTED"].set_index("op")
    assert sent.poll_ns is not None
    pollers = [op for op in accepted.index if sent.poll_ns[op]]
    assert sorted(set(orders["first_op"])) == pollers
    for first in pollers:
        looks = orders[orders["first_op"] == first]
        assert looks["attempt"].tolist() == [1, 2, 3, 4], "until it is final, and once more"
        assert looks["order_status"].tolist() == ["PENDING", "PENDING", "CONFIRMED", "CONFIRMED"]
        assert set(looks["order_id"]) == {accepted["order_id"][first]}
        assert set(looks["user_id"]) == {accepted["user_id"][first]}
        ends = pd.concat([accepted.loc[[first], "done_ns"], looks["done_ns"]]).to_numpy("int64")
        assert set((looks["intended_ns"].to_numpy("int64") - ends[:-1]).tolist()) == {sent.poll_ns[first]}
    assert set(shop.looks) == {f"a%20b%2F{accepted['order_id'][op].partition('/')[2]}" for op in pollers}

    last = seen[-1]
    assert last.planned == last.intended == last.sent == last.done == len(buys)
    assert sum(last.outcomes.values()) == len(buys)
    assert last.reads == len(reads)
    measured = measure_load(history, asked.driver, asked.duration_s())
    assert (measured.requests, measured.sent, measured.retries) == (len(buys), len(buys), 0)


@pytest.mark.slow
async def test_looks_are_bounded_and_end_with_a_load_that_is_stopped() -> None:
    async def never_settle(request: Request) -> None:
        if request.line.startswith("POST"):
            request.send(answer(200, b'{"status":"ACCEPTED","orderId":"a"}'))
        elif request.number % 2:
            request.send(answer(200, b'{"status":"PENDING"}'))
        else:
            request.reset()

    sent = build_plan(scenario(reads={"order_share": 1, "pause_ms": 5, "most": 3}))
    async with http_server(never_settle) as server:
        history = (await drive(LoadSpec(sent, (server.url,), DriverOptions()))).history
    assert history["first_op"].value_counts().unique().tolist() == [4], "a purchase and three looks"

    sent = build_plan(scenario(reads={"order_share": 1, "pause_ms": 600_000, "jitter": 0}))
    seen, stop = list[Progress](), asyncio.Event()

    def stop_at_the_end(progress: Progress) -> None:
        seen.append(progress)
        if progress.done == len(sent):
            stop.set()

    async with http_server(never_settle) as server:
        load = LoadSpec(sent, (server.url,), DriverOptions(), on_progress=stop_at_the_end, stop=stop)
        history = (await drive(load)).history
    assert len(history) == len(sent)
    assert seen[-1].sent == len(sent)
