"""Requests go to several front doors in turn, and nowhere else: what one told a client is its answer."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pandas as pd
import pytest

from simulation.drive.driver import LoadSpec, drive
from simulation.drive.locust.driver import drive_locust
from simulation.drive.plan import Plan, build_plan
from simulation.scenario.loading import read_scenario
from simulation.scenario.schema import DriverOptions
from simulation.tests.drive.test_open_loop import free_port
from simulation.tests.http_server import ACCEPTED, NOT_STARTED, SOLD_OUT, HttpServer, Request, http_server
from simulation.tests.scenario.test_scenario import minimal

pytestmark = pytest.mark.slow

Reaction = Callable[[Request], Awaitable[None]]
locust = {client: partial(drive_locust, say=lambda _: None, client=client) for client in ("own", "fasthttp")}


def make_plan(rate_rps: float = 200, **population: Any) -> Plan:
    raw = minimal(
        arrivals=[{"shape": "constant", "seconds": 0.5, "rate_rps": rate_rps, "spacing": "even"}],
        population={"users": 10**6, **population},
    )
    return build_plan(read_scenario(raw))


async def accept(request: Request) -> None:
    request.send(ACCEPTED)


async def refuse(request: Request) -> None:
    request.send(SOLD_OUT)


async def come_again(request: Request) -> None:
    request.send(NOT_STARTED)


async def hang(_: Request) -> None:
    await asyncio.Event().wait()


async def send(
    plan: Plan, *doors: Reaction | None, by: Any = drive, **options: Any
) -> tuple[pd.DataFrame, list[HttpServer]]:
    """Send a plan to front doors that do so; at None nobody listens."""
    async with AsyncExitStack() as closing:
        servers = [await closing.enter_async_context(http_server(door)) for door in doors if door]
        listening = iter(servers)
        urls = [next(listening).url if door else f"http://127.0.0.1:{free_port()}" for door in doors]
        driven = await by(LoadSpec(plan, tuple(urls), DriverOptions(**options)))
        return driven.history, servers


@pytest.mark.parametrize("by", [drive, *locust.values()], ids=["flashsim", *locust])
async def test_each_front_door_gets_its_share_of_the_plan_in_turn(by: Any) -> None:
    plan = make_plan()
    history, servers = await send(plan, accept, refuse, accept, by=by)
    assert history["door"].tolist() == [op % 3 for op in range(len(plan))]
    for number, server in enumerate(servers):
        assert sorted(server.users) == sorted(plan.user_id[number::3].tolist())
        assert {request.headers["host"] for request in server.requests} == {f"127.0.0.1:{server.port}"}
    assert history["outcome"].tolist() == [
        ("ACCEPTED", "SOLD_OUT", "ACCEPTED")[op % 3] for op in history["op"]
    ]


async def test_the_shares_of_several_processes_cover_all_front_doors() -> None:
    plan = make_plan()
    history, servers = await send(plan, accept, accept, processes=2)
    assert [len(server.requests) for server in servers] == [len(plan) // 2] * 2
    assert history.groupby("driver")["door"].nunique().tolist() == [2, 2]


@pytest.mark.parametrize("by", [drive, locust["fasthttp"]], ids=["flashsim", "fasthttp"])
async def test_a_client_that_comes_again_comes_to_the_next_front_door(by: Any) -> None:
    plan = make_plan(keyed_share=1.0, patience={"after": ["NOT_STARTED"], "pause_ms": 20, "most": 1})
    history, servers = await send(plan, come_again, accept, by=by)
    firsts, seconds = (history[history["attempt"] == attempt] for attempt in (0, 1))
    assert set(firsts.loc[firsts["door"] == 0, "op"]) == set(seconds["first_op"])
    assert set(seconds["door"]) == {1}
    assert set(seconds["outcome"]) == {"ACCEPTED"}
    keys = [request.headers["idempotency-key"] for request in servers[1].requests]
    assert sorted(keys) == sorted(key for key in plan.key if key)
    assert {request.headers["host"] for request in servers[1].requests} == {f"127.0.0.1:{servers[1].port}"}


async def test_looks_at_an_order_go_to_each_front_door_in_turn() -> None:
    plan = make_plan(reads={"order_share": 1.0, "stock_share": 0.0, "pause_ms": 10, "most": 2})
    history, servers = await send(plan, accept, accept)
    looks = history[history["kind"] == "order"]
    assert len(looks) == 2 * len(plan)
    assert (looks["door"] == (looks["first_op"] + looks["attempt"]) % 2).all()
    seen = [sum(request.line.startswith("GET ") for request in server.requests) for server in servers]
    assert seen == [len(plan)] * 2


@pytest.mark.parametrize("by", [drive, locust["own"]], ids=["flashsim", "own"])
async def test_a_front_door_that_does_not_listen_loses_its_own_requests_alone(by: Any) -> None:
    plan = make_plan()
    history, [server] = await send(plan, None, accept, by=by)
    by_door = dict(iter(history.groupby("door")))
    assert set(by_door[0]["outcome"]) == {"UNAVAILABLE"}
    assert set(by_door[0]["end"]) == {"refused"}
    assert set(by_door[1]["outcome"]) == {"ACCEPTED"}
    assert sorted(server.users) == sorted(plan.user_id[1::2].tolist())


async def test_a_front_door_that_hangs_holds_up_no_other() -> None:
    plan = make_plan()
    history, _ = await send(plan, hang, accept, connections=8, timeout_ms=1_000)
    by_door = dict(iter(history.groupby("door")))
    assert set(by_door[0]["outcome"]) == {"UNKNOWN", "UNAVAILABLE"}
    assert set(by_door[1]["outcome"]) == {"ACCEPTED"}
    sent_ns = by_door[0]["sent_ns"].dropna()
    assert (sent_ns < sent_ns.min() + 10**9).sum() == 4, "each has its share of the connections"
