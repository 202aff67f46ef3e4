"""The driver's processes together send the whole plan, and none of them outlives it."""

import asyncio
import os
import resource
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from simulation.drive.driver import LoadSpec, drive
from simulation.drive.open_loop import OpenLoop
from simulation.drive.parts import deal, merge_results, prepare_loop, save_result
from simulation.drive.plan import Plan, build_plan
from simulation.drive.progress import Progress
from simulation.drive.schedule import RESET
from simulation.errors import DriverError
from simulation.model.address import Address
from simulation.model.history import DTYPES
from simulation.scenario.loading import read_scenario
from simulation.scenario.schema import DriverOptions
from simulation.tests.http_server import ACCEPTED, NOT_STARTED, SOLD_OUT, Request, answer, http_server
from simulation.tests.scenario.test_scenario import minimal

pytestmark = pytest.mark.slow


def small_plan(seconds: float = 1, rate_rps: float = 200) -> Plan:
    raw = minimal(
        arrivals=[{"shape": "constant", "seconds": seconds, "rate_rps": rate_rps}],
        population={"users": 10**6, "keyed_share": 0.5},
        sales=[{"product_id": 3, "stock": 1}, {"product_id": 4, "stock": 1}],
    )
    return build_plan(read_scenario(raw))


def driver_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "simulation.drive.process" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


async def first_fifty(request: Request) -> None:
    """Accept fifty requests, lose two, and refuse the rest."""
    if request.number < 50:
        request.send(answer(200, b'{"status":"ACCEPTED","orderId":"order-%d"}' % request.number))
    elif request.number == 50:
        request.send(answer(503, b'{"code":"OUTCOME_UNKNOWN"}'))
    elif request.number == 51:
        request.reset()
    else:
        request.send(SOLD_OUT)


async def test_the_history_tells_what_became_of_every_request() -> None:
    plan = small_plan()
    seen: list[Progress] = []
    before = datetime.now(UTC)
    async with http_server(first_fifty) as server:
        result = await drive(
            LoadSpec(plan, (server.url,), DriverOptions(processes=2), on_progress=seen.append)
        )
    history = result.history
    assert list(history.columns) == list(DTYPES)
    assert history["op"].tolist() == list(range(len(plan)))
    assert history["intended_ns"].tolist() == plan.intended_ns.tolist()
    assert history["user_id"].tolist() == plan.user_id.tolist()
    assert history["product_id"].tolist() == plan.product_id.tolist()
    assert [None if key is np.nan else key for key in history["key"].tolist()] == plan.key
    assert history["driver"].tolist() == [op % 2 for op in range(len(plan))]

    counts = history["outcome"].value_counts()
    assert counts["ACCEPTED"] == 50
    assert counts["UNKNOWN"] == 2
    assert counts["SOLD_OUT"] == len(plan) - 52
    assert (history["result"] == "unknown").sum() == 2
    orders = history.loc[history["result"] == "ok", "order_id"]
    assert sorted(orders) == sorted(f"order-{number}" for number in range(50))
    assert history["order_id"].notna().sum() == 50
    assert (history["sent_ns"] >= history["intended_ns"]).all()
    assert history["done_ns"].isna().sum() == 1
    assert (history["done_ns"].dropna() >= history.loc[history["done_ns"].notna(), "sent_ns"]).all()

    last = seen[-1]
    assert last.planned == last.intended == last.sent == last.done == len(plan)
    assert last.outcomes == {name: int(counts[name]) for name in last.outcomes}
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert last.t0_ns == result.t0_ns
    assert before <= result.started_at <= datetime.now(UTC) + timedelta(seconds=1)
    assert any(each.response_ms(0.5) for each in seen)
    assert seen[0].response_ms(0.5) is None


async def test_the_history_tells_the_retries_and_what_they_repeat() -> None:
    raw = minimal(
        arrivals=[{"shape": "constant", "seconds": 0.5, "rate_rps": 200}],
        population={"users": 10**6, "keyed_share": 0.5, "patience": {"pause_ms": 20, "most": 2}},
    )
    plan = build_plan(read_scenario(raw))
    assert plan.pause_ns is not None
    seen: list[Progress] = []

    async def accept_the_third_try(request: Request) -> None:
        tries = server.users.count(request.user)
        request.send(NOT_STARTED if tries < 3 else ACCEPTED)

    async with http_server(accept_the_third_try) as server:
        options = DriverOptions(processes=2)
        history = (await drive(LoadSpec(plan, (server.url,), options, on_progress=seen.append))).history
    assert history["op"].tolist() == list(range(3 * len(plan)))
    assert history["attempt"].value_counts().to_dict() == dict.fromkeys(range(3), len(plan))
    assert history["intended_ns"].iloc[: len(plan)].tolist() == plan.intended_ns.tolist()
    retries = history.iloc[len(plan) :]
    assert retries["intended_ns"].is_monotonic_increasing
    for _, tries in history.groupby("first_op"):
        assert tries["attempt"].tolist() == [0, 1, 2]
        assert tries["outcome"].tolist() == ["NOT_STARTED", "NOT_STARTED", "ACCEPTED"]
        first = int(tries["op"].iloc[0])
        assert set(tries["first_op"]) == {first}
        assert set(tries["user_id"]) == {plan.user_id[first]}
        assert set(tries["key"].fillna("")) == {plan.key[first] or ""}
        assert tries["driver"].nunique() == 1
        pauses = tries["intended_ns"].to_numpy("int64")[1:] - tries["done_ns"].to_numpy("int64")[:-1]
        assert set(pauses.tolist()) == {int(plan.pause_ns[first])}
    keys = {request.headers.get("idempotency-key") for request in server.requests} - {None}
    assert keys == {key for key in plan.key if key}
    last = seen[-1]
    assert last.planned == last.intended == last.sent == last.done == 3 * len(plan)


async def test_the_server_gets_the_requests_that_were_planned() -> None:
    plan = small_plan()
    async with http_server(first_fifty) as server:
        await drive(LoadSpec(plan, (f"{server.url}/",), DriverOptions()))
    got = {
        (request.user, request.headers.get("idempotency-key"), request.body) for request in server.requests
    }
    rows = zip(plan.user_id.tolist(), plan.product_id.tolist(), plan.key, strict=True)
    assert got == {
        (user, key, b'{"userId":%d,"productId":%d}' % (user, product)) for user, product, key in rows
    }
    assert {request.line for request in server.requests} == {"POST /purchase/buy HTTP/1.1"}
    assert {request.headers["host"] for request in server.requests} == {f"127.0.0.1:{server.port}"}
    assert {request.headers["content-type"] for request in server.requests} == {"application/json"}


async def test_a_process_that_dies_ends_the_run_with_an_error() -> None:
    async def kill_one(request: Request) -> None:
        if request.number == 20:
            driver_processes()[0].kill()
        request.send(SOLD_OUT)

    async with http_server(kill_one) as server:
        with pytest.raises(DriverError, match=r"driver process \d ended with code -9"):
            await drive(LoadSpec(small_plan(seconds=60), (server.url,), DriverOptions(processes=2)))
    assert driver_processes() == []


async def test_a_run_that_is_cancelled_leaves_no_process_behind() -> None:
    begun = asyncio.Event()

    async def notice(request: Request) -> None:
        begun.set()
        request.send(SOLD_OUT)

    async with http_server(notice) as server:
        driving = asyncio.create_task(
            drive(LoadSpec(small_plan(seconds=60), (server.url,), DriverOptions(processes=2)))
        )
        await begun.wait()
        driving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await driving
    assert driver_processes() == []


async def test_a_process_ends_with_its_parent(tmp_path: Path) -> None:
    plan = small_plan()
    (job,) = deal(plan, [Address("127.0.0.1", 9, "localhost", "/")], DriverOptions(), tmp_path)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "simulation.drive.process",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin
    assert process.stdout
    process.stdin.write(msgspec.json.encode(job) + b"\n")
    assert await process.stdout.readline() == b"ready\n"
    process.stdin.write(b"%d\n" % (time.monotonic_ns() + 3_600 * 10**9))
    assert await process.stdout.readline(), "it has begun"
    process.stdin.close()
    await process.communicate()
    assert process.returncode == 0
    assert os.listdir(tmp_path) == ["plan-0.npz"]  # noqa: PTH208


async def test_a_view_that_fails_ends_the_run() -> None:
    def fail(progress: Progress) -> None:
        raise RuntimeError("no such screen")

    async with http_server(first_fifty) as server:
        with pytest.raises(RuntimeError, match="no such screen"):
            await drive(LoadSpec(small_plan(seconds=60), (server.url,), DriverOptions(), on_progress=fail))
    assert driver_processes() == []


async def test_a_start_that_comes_too_soon_is_an_error() -> None:
    with pytest.raises(DriverError, match="before the driver was ready"):
        await drive(
            LoadSpec(small_plan(), ("http://127.0.0.1:9",), DriverOptions(), t0_ns=time.monotonic_ns())
        )


async def test_a_start_may_be_given() -> None:
    async with http_server(first_fifty) as server:
        for ahead_s in (2, 8, 32, 128):
            t0_ns = time.monotonic_ns() + ahead_s * 10**9
            # A busy machine takes longer to be ready.
            with suppress(DriverError):
                result = await drive(LoadSpec(small_plan(0.1), (server.url,), DriverOptions(), t0_ns=t0_ns))
                break
    assert result.t0_ns == t0_ns
    assert result.history["sent_ns"].min() >= 0


async def test_more_connections_than_the_machine_allows_are_an_error() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not 0 < hard < 50_000:
        pytest.skip(f"this machine allows {hard} open files")
    with pytest.raises(DriverError, match="ulimit"):
        await drive(LoadSpec(small_plan(), ("http://127.0.0.1:9",), DriverOptions(connections=50_000)))


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1", "127.0.0.1:80", "http://", "http://127.0.0.1:x", "http://h?q=1"]
)
async def test_a_url_of_no_use_is_an_error(url: str) -> None:
    with pytest.raises(DriverError):
        await drive(LoadSpec(small_plan(), (url,), DriverOptions()))


async def test_a_plan_smaller_than_the_number_of_processes_is_driven() -> None:
    plan = small_plan(seconds=0.01, rate_rps=200)
    async with http_server(first_fifty) as server:
        result = await drive(LoadSpec(plan, (server.url,), DriverOptions(processes=8)))
    assert len(result.history) == len(plan)


async def test_a_name_stands_for_the_address_that_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def two_addresses(*_: object, **__: object) -> list[tuple[Any, ...]]:
        return [(0, 0, 0, "", (host, 0)) for host in ("::1", "127.0.0.1")]

    async with http_server(first_fifty) as server:
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", two_addresses)
        result = await drive(
            LoadSpec(small_plan(0.1), (f"http://engine.test:{server.port}",), DriverOptions())
        )
    assert result.history["done_ns"].notna().all()
    assert server.requests[0].headers["host"] == f"engine.test:{server.port}"


async def test_shoppers_open_connections_of_their_own_where_the_options_say_so() -> None:
    plan = small_plan(0.5)
    async with http_server(first_fifty) as server:
        await drive(LoadSpec(plan, (server.url,), DriverOptions(processes=2, connection_per_request=True)))
    assert len({request.connection for request in server.requests}) == len(server.requests) == len(plan)


async def test_a_load_that_is_stopped_ends_with_the_last_request_that_was_made() -> None:
    plan = small_plan(seconds=60)
    stop = asyncio.Event()
    seen: list[Progress] = []

    def watch(progress: Progress) -> None:
        seen.append(progress)
        if progress.done > 20:
            stop.set()

    async with http_server(first_fifty) as server:
        options = DriverOptions(processes=2)
        history = (await drive(LoadSpec(plan, (server.url,), options, on_progress=watch, stop=stop))).history
        assert len(history) == len(server.requests)
    assert 20 < len(history) < len(plan) // 2
    assert history["sent_ns"].notna().all()
    assert history["user_id"].tolist() == plan.user_id[history["op"]].tolist()
    assert (seen[-1].done, seen[-1].planned) == (len(history), len(history))


def test_what_a_clock_cannot_know_is_recorded_beside_the_times(tmp_path: Path) -> None:
    plan = small_plan(rate_rps=2)
    jobs = deal(plan, [Address("127.0.0.1", 1, "", "")], DriverOptions(processes=2), tmp_path)
    for job, unsure_ns in zip(jobs, (0, 7), strict=True):
        loop = prepare_loop(OpenLoop, job, job.plan)
        for op in range(loop.planned):
            loop.sent_ns[op] = 5
            loop.lose(op, RESET)
        save_result(loop, job.result, unsure_ns)
    history = merge_results(plan, jobs)
    assert set(zip(history["driver"], history["unsure_ns"], strict=True)) == {(0, 0), (1, 7)}
    assert set(history["sent_ns"]) == {5}
    assert set(history["end"]) == {"reset"}
