"""Locust sends the same plan, and what it records is judged like any other run; nothing of it stays."""

import asyncio
import re
import socket
from functools import partial
from importlib.metadata import version
from operator import attrgetter
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import psutil
import pytest

from simulation.drive.driver import OPEN_LOOP, LoadSpec
from simulation.drive.locust.clock import Exchange, compare_clocks
from simulation.drive.locust.driver import drive_locust, work
from simulation.drive.plan import build_plan
from simulation.drive.progress import Progress
from simulation.errors import DriverError
from simulation.record.facts import read_facts
from simulation.record.history import read_history
from simulation.run import run
from simulation.scenario.loading import load_scenario, read_scenario
from simulation.scenario.schema import DriverOptions
from simulation.target.services import Services
from simulation.tests.cli.test_cli import flashsim
from simulation.tests.drive.test_driver import first_fifty, small_plan
from simulation.tests.http_server import SOLD_OUT, Request, answer, http_server
from simulation.tests.run_folders import make_run
from simulation.tests.scenario.test_scenario import minimal
from simulation.tests.test_run import PATIENT, services
from simulation.verdict import judge_load, judge_run

__all__ = ["services"]

pytestmark = pytest.mark.slow


def locust_processes() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "simulation.drive.locust.process" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def silent(_: str) -> None:
    """Say nothing."""


async def answers_and_failures(request: Request) -> None:
    """Accept ten requests, lose one response, hold one back, and refuse the rest."""
    match request.number:
        case number if number < 10:
            request.send(answer(200, b'{"status":"ACCEPTED","orderId":"order-%d"}' % number))
        case 10:
            request.reset()
        case 11:
            await asyncio.Event().wait()
        case _:
            request.send(SOLD_OUT)


@pytest.mark.parametrize(("client", "by"), [("own", ""), ("fasthttp", " with its client fasthttp")])
async def test_locust_sends_the_plan_and_records_what_became_of_it(client: str, by: str) -> None:
    plan = small_plan(0.5)
    seen: list[Progress] = []
    async with http_server(answers_and_failures) as server:
        options = DriverOptions(timeout_ms=600)
        load = LoadSpec(plan, (server.url,), options, on_progress=seen.append)
        result = await drive_locust(load, say=silent, client=client)
        got = {(each.user, each.headers.get("idempotency-key"), each.body) for each in server.requests}
    rows = zip(plan.user_id.tolist(), plan.product_id.tolist(), plan.key, strict=True)
    assert got == {
        (user, key, b'{"userId":%d,"productId":%d}' % (user, product)) for user, product, key in rows
    }
    history = result.history
    assert history["intended_ns"].tolist() == plan.intended_ns.tolist()
    assert (history["sent_ns"] >= history["intended_ns"]).all()
    counts = history["outcome"].value_counts()
    assert (counts["ACCEPTED"], counts["UNKNOWN"], counts["SOLD_OUT"]) == (10, 2, len(plan) - 12)
    lost = history[history["outcome"] == "UNKNOWN"]
    assert lost["done_ns"].isna().all()
    assert set(lost["result"]) == {"unknown"}
    assert set(history["order_id"].dropna()) == {f"order-{number}" for number in range(10)}
    assert result.driver == f"Locust {version('locust')}{by}, 1 worker"
    assert seen[-1].done == seen[-1].sent == len(plan)
    assert locust_processes() == []


@pytest.mark.parametrize("client", ["own", "fasthttp"])
async def test_refused_requests_were_never_sent_and_may_be_retried(client: str) -> None:
    raw = minimal(
        arrivals=[{"shape": "constant", "seconds": 0.2, "rate_rps": 200}],
        population={"users": 100, "patience": {"after": ["UNAVAILABLE"], "pause_ms": 50, "most": 1}},
    )
    plan = build_plan(read_scenario(raw))
    result = await drive_locust(
        LoadSpec(plan, (f"http://127.0.0.1:{free_port()}",), DriverOptions()), say=silent, client=client
    )
    history = result.history
    assert (set(history["outcome"]), set(history["result"])) == ({"UNAVAILABLE"}, {"fail"})
    assert history["sent_ns"].isna().all()
    assert history["done_ns"].notna().all()
    assert history["attempt"].tolist() == [0] * len(plan) + [1] * len(plan)


async def test_workers_that_are_started_apart_share_the_plan() -> None:
    plan = small_plan(0.5)
    where: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def hear(line: str) -> None:
        if found := re.search(r"waiting for 2 workers at 127\.0\.0\.1:(\d+)", line):
            where.set_result(int(found[1]))

    async with http_server(first_fifty) as server:
        load = LoadSpec(plan, (server.url,), DriverOptions(processes=2))
        driving = asyncio.create_task(drive_locust(load, say=hear, awaits_workers=True))
        port = await where
        await asyncio.gather(*(work("127.0.0.1", port, 60) for _ in range(2)))
        history = (await driving).history
    assert history["driver"].tolist() == [op % 2 for op in range(len(plan))]
    assert (history["outcome"] == "ACCEPTED").sum() == 50
    assert len({request.user for request in server.requests}) == len(set(plan.user_id.tolist()))
    assert locust_processes() == []


async def test_a_worker_that_dies_ends_the_run_with_an_error() -> None:
    async def kill_one(request: Request) -> None:
        if request.number == 5:
            max(locust_processes(), key=attrgetter("pid")).kill()  # the master was started first
        request.send(SOLD_OUT)

    async with http_server(kill_one) as server:
        with pytest.raises(DriverError, match="a worker ended with code -9"):
            await drive_locust(
                LoadSpec(small_plan(60), (server.url,), DriverOptions(processes=2)), say=silent
            )
    assert locust_processes() == []


async def test_a_page_of_locusts_shows_the_load_and_can_stop_it() -> None:
    plan = small_plan(60)
    page: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    begun = asyncio.Event()

    def hear(line: str) -> None:
        if found := re.search(r"Locust's page: (\S+/)", line):
            page.set_result(found[1])

    async def notice(request: Request) -> None:
        request.send(SOLD_OUT)
        begun.set()

    async with http_server(notice) as server, aiohttp.ClientSession() as client:
        driving = asyncio.create_task(
            drive_locust(LoadSpec(plan, (server.url,), DriverOptions()), say=hear, web=True)
        )
        url = await page
        await begun.wait()
        async with client.get(url) as page_of_locust:
            assert "Locust" in await page_of_locust.text()
        figures: dict[str, Any] = {"stats": []}
        while len(figures["stats"]) < 2:
            async with client.get(f"{url}stats/requests") as numbers:
                figures = await numbers.json()
            await asyncio.sleep(0.1)
        assert figures["stats"][0]["name"] == "/purchase/buy: sold out"
        assert (figures["state"], figures["fail_ratio"]) == ("running", 0)
        assert figures["user_count"] == 1
        async with client.post(f"{url}stop"):
            with pytest.raises(DriverError, match="stopped on Locust's page"):
                await driving
    assert locust_processes() == []


async def test_a_run_through_locust_is_a_run_like_any_other(services: Services, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = PATIENT | {"driver.processes": 2}
    scenario = load_scenario("spike", changes, rate_rps=400, duration_s=1, stock=50)
    await run(scenario, folder, silent, services=services, driver=partial(drive_locust, say=silent))
    assert set(read_history(folder / "history.parquet")["driver"]) == {0, 1}
    assert "cpu_percent driver 3" in (folder / "timeline.csv").read_text(), "two workers and their master"
    summary = judge_run(folder)
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    assert summary["driver"] == f"Locust {version('locust')}, 2 workers"
    assert (summary["outcomes"]["accepted"], summary["outcomes"]["error"]) == (50, 0)
    assert (summary["stock"]["sold"], summary["stock"]["oversold"]) == (50, 0)
    verified = flashsim("verify", str(folder))
    assert (verified.exit_code, "PASS: " in verified.stdout) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["flood"], "no scenario 'flood'"),
        (["--worker", "--workers", "2"], "--workers waits for other workers"),
        (["--workers", "2", "--processes", "2"], "--workers waits for other workers"),
    ],
)
def test_an_error_of_use_is_one_clear_line(arguments: list[str], said: str) -> None:
    result = flashsim("locust", *arguments)
    assert (result.exit_code, said in result.stderr, result.stdout) == (2, True, "")


async def test_a_missing_master_and_a_busy_port_are_named() -> None:
    port = free_port()
    with pytest.raises(DriverError, match=f"no master answers at 127.0.0.1:{port} for 1 s"):
        await work("127.0.0.1", port, 1)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        load = LoadSpec(small_plan(), ("http://127.0.0.1:9",), DriverOptions())
        with pytest.raises(DriverError, match=rf"Address already in use.*127\.0\.0\.1:{port}"):
            await drive_locust(load, say=silent, awaits_workers=True, port=port)


def test_a_load_that_locust_could_not_carry_is_not_valid_and_says_why(tmp_path: Path) -> None:
    make_run(tmp_path)
    facts = read_facts(tmp_path)
    assert facts.driver == OPEN_LOOP, "a record of a time when there was no other"
    facts = msgspec.structs.replace(facts, driver="Locust 2.0, 1 worker")
    history = read_history(tmp_path / "history.parquet")
    assert judge_load(history, facts).valid
    late = judge_load(history.assign(sent_ns=history["sent_ns"] + 200_000_000), facts)
    assert not late.valid
    assert "p99 of the lag" in late.reason


def test_the_quickest_exchange_tells_how_far_a_clock_is_ahead() -> None:
    slow, quick = Exchange(1_000, 9_000, 300), Exchange(20_000, 20_400, 15_150)
    ahead_ns, unsure_ns = compare_clocks([slow, quick])
    assert (ahead_ns, unsure_ns) == (5_050, 200)
    assert quick.asked_ns - ahead_ns <= quick.there_ns <= quick.answered_ns - ahead_ns
