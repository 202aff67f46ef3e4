"""The benchmark measures what it claims to, says so where it doesn't, and leaves nothing running."""

import asyncio
import os
import shutil
import signal
import sys
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import aiohttp
import asyncpg
import msgspec
import numpy as np
import pandas as pd
import psutil
import pytest
from click.testing import CliRunner
from redis.asyncio import Redis

from engine.http.answers import answer_purchase
from engine.ledger.ledger import Ledger
from engine.model.order_id import OrderId
from engine.model.purchase import Outcome
from engine.settings import PREFIX, Settings
from simulation.bench import programs
from simulation.bench.baselines import textbook
from simulation.bench.measures.bounds import _lacks, _wait
from simulation.bench.measures.front_door import compare_rates, describe_persistence
from simulation.bench.measures.growth import fill_ledger, make_curve
from simulation.bench.measures.ledger import settle_batches, settle_one_by_one
from simulation.bench.measures.open_loop import find_doubtful, find_faults
from simulation.bench.options import Options, Sizes, Subject
from simulation.bench.page import read_bench, render, write_page
from simulation.bench.programs import Program, serve_baseline, serve_nginx
from simulation.bench.results import Bench, Compared, DriverLag, DriverRates, FrontDoor, Responses
from simulation.bench.rounds import Rounds
from simulation.bench.run import run_bench
from simulation.bench.samples import Cost, Sample, Spread
from simulation.bench.spellings import PROXIED, list_spellings
from simulation.bench.subjects import Engine, measure_refusals
from simulation.cli.commands import main
from simulation.errors import BenchError
from simulation.model.history import make_history
from simulation.scenario.schema import DriverOptions
from simulation.target.services import Services
from simulation.tests.bench.installed import needs_nginx, needs_wrk
from simulation.tests.http_server import ACCEPTED, Request, http_server

pytestmark = pytest.mark.slow

FLASHSIM = (sys.executable, "-c", "from simulation.cli import main; main()")
TINY = Sizes(
    connections=(1, 8),
    products=(1, 3),
    stock=(1_000, 2_000),
    orders=(0, 5_000),
    idle=(20,),
    memory_requests=1_000,
    crowd_rps=50,
    clients=2,
    looked_at=500,
    lookers=80,
    mix_rps=(20, 100),
)
ROOT = Path(__file__).parents[3]
BODY = b'{"userId":101,"productId":1}'
JSON = {"Content-Type": "application/json"}


async def buy(url: str) -> tuple[int, bytes]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/purchase/buy", data=BODY, headers=JSON) as answer,
    ):
        return answer.status, await answer.read()


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def started_since(before: list[psutil.Process]) -> list[psutil.Process]:
    """Our new processes that still run; those of the session's own services come and go as they like."""
    found = []
    for process in children():
        with suppress(psutil.NoSuchProcess):
            if process not in before and runs(process) and not set(process.parents()) & set(before):
                found.append(process)
    return found


def runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def program_of(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


# What is measured


@needs_nginx
async def test_nginx_answers_as_the_engine_does_when_it_is_sold_out() -> None:
    before = children()
    sold_out = answer_purchase(Outcome.SOLD_OUT, None)
    async with serve_nginx() as nginx:
        assert await buy(nginx.url) == (sold_out.status, sold_out.body)
    assert started_since(before) == []


async def test_the_bare_application_answers_as_the_engine_does_when_it_is_sold_out() -> None:
    sold_out = answer_purchase(Outcome.SOLD_OUT, None)
    async with serve_baseline("bare") as bare:
        assert await buy(bare.url) == (sold_out.status, sold_out.body)


async def test_the_textbook_sells_its_stock_and_publishes_each_order(
    redis: Redis, settings: Settings
) -> None:
    await redis.set(textbook.stock_key(1), 3)
    amqp_url = str(settings.amqp_url)
    async with serve_baseline("textbook", str(settings.redis_url), amqp_url) as server:
        answers = [await buy(server.url) for _ in range(5)]
    assert [status for status, _ in answers] == [200, 200, 200, 429, 429]
    assert answers[4] == (429, answer_purchase(Outcome.SOLD_OUT, None).body)
    async with await aio_pika.connect(amqp_url) as bus:
        queue = await (await bus.channel()).declare_queue(textbook.QUEUE, passive=True)
        published = [msgspec.json.decode(message.body) for message in [await queue.get() for _ in range(3)]]
        await queue.delete(if_empty=False)
    sold = [msgspec.json.decode(body)["orderId"] for _, body in answers[:3]]
    assert [order["orderId"] for order in published] == sold


async def test_a_baseline_that_does_not_start_is_an_error() -> None:
    with pytest.raises(BenchError, match="does not listen"):
        async with serve_baseline("textbook"):
            pass


# That it measured what it claims to


@needs_wrk
async def test_a_server_that_does_not_refuse_is_no_constant_429() -> None:
    async def accept(request: Request) -> None:
        request.send(ACCEPTED)

    async with http_server(accept) as server:
        sample = await measure_refusals(Program("server", server.url, os.getpid()), 2, 1)
    assert sample.requests
    assert sample.fault == "not every answer was a 429"


@needs_wrk
async def test_a_sale_that_ends_in_the_middle_was_not_accepting(engine: Engine) -> None:
    await engine.open_sale(5)
    sample = await engine.measure(Outcome.ACCEPTED, 4, 1)
    assert sample.accepted == 5
    assert "5 ACCEPTED" in sample.fault
    assert "SOLD_OUT" in sample.fault
    await engine.open_sale(0)
    sample = await engine.measure(Outcome.SOLD_OUT, 4, 1)
    assert sample.fault == ""
    assert sample.refused == sample.requests


@needs_wrk
async def test_after_a_measurement_the_ledger_has_all_that_was_accepted(
    engine: Engine, services: Services
) -> None:
    await engine.open_sale(10**9)
    sample = await engine.measure(Outcome.ACCEPTED, 4, 1)
    assert sample.fault == ""
    assert sample.accepted >= sample.requests
    assert all(sample.cpu_s[name] > 0 for name in ("front-door 1", "relay", "fulfilment", "redis"))
    connection = await asyncpg.connect(services.postgres_url)
    assert await connection.fetchval("SELECT count(*) FROM orders") == sample.accepted
    await connection.close()


async def test_both_ways_of_settling_settle(engine: Engine, services: Services) -> None:
    sale = await engine.open_sale(10**9)
    assert await settle_batches(services.postgres_url, sale, 0.05) > 0
    assert await settle_one_by_one(services.postgres_url, sale, 0.05) > 0
    connection = await asyncpg.connect(services.postgres_url)
    orders, sold = await connection.fetchrow("SELECT (SELECT count(*) FROM orders), sold FROM sales") or (
        0,
        1,
    )
    await connection.close()
    assert orders == sold > 2_000


async def test_a_ledger_is_filled_with_orders_as_they_would_be(postgres_db: str) -> None:
    ledger = await Ledger.connect(postgres_db)
    await ledger.migrate()
    await ledger.close()
    await fill_ledger(postgres_db, 0, 600)
    await fill_ledger(postgres_db, 600, 2_500)
    connection = await asyncpg.connect(postgres_db)
    order_ids = [
        str(row[0]) for row in await connection.fetch("SELECT order_id FROM orders ORDER BY user_id")
    ]
    await connection.close()
    assert len(order_ids) == 2_500
    msgspec.convert(order_ids, list[OrderId])


# The whole of it


@needs_wrk
@pytest.mark.timeout(400)
async def test_a_run_measures_every_subject_and_leaves_nothing_running(tmp_path: Path) -> None:
    before = children()
    told: list[str] = []
    folder = tmp_path / "run"
    # These have services of their own (test_scaling.py).
    subjects = frozenset(Subject) - {Subject.GROWTH, Subject.COPIES}
    options = Options(rounds=1, seconds=1, sizes=TINY, subjects=subjects)
    await run_bench(options, folder, told.append, "flashsim bench")
    assert started_since(before) == []
    bench = msgspec.json.decode((folder / "bench.json").read_bytes(), type=Bench)
    assert {row.subject for row in bench.front_door} >= {
        "aiohttp, bare",
        "engine, sold out",
        "engine, accepting",
    }
    assert [sample.fault for row in bench.front_door for sample in row.samples if sample.fault] == []
    assert [row.connections for row in bench.persisted] == [64, 256]
    assert [row.subject for row in bench.clients] == [*[*list_spellings()][:2], PROXIED]
    assert [fault for row in bench.clients for fault in row.faults] == []
    assert [(row.subject, row.connections) for row in bench.looks] == [
        ("stock", 64),
        ("stock", 80),
        ("orders, the same 100", 256),
        ("orders, 500 in turn", 256),
    ]
    # An engine may refuse so many looks at once; nginx must not fail.
    assert [fault for row in bench.looks for fault in row.faults if fault.startswith("nginx")] == []
    assert [row.faults for row in bench.looks if row.connections == 64] == [[]]
    for row in [*bench.clients, *bench.looks]:
        assert row.ratio.median == pytest.approx(row.engine_rps.median / row.nginx_rps.median, rel=1e-4)
        assert min(row.nginx_us.median, row.engine_us.median) > 0
    assert {row.kind for row in bench.mix} == {"buy", "stock", "order"}
    assert sum(row.lost for row in bench.mix) == 0
    assert {cost.subject for cost in bench.costs} >= {
        "nginx", "textbook, accepting", "engine, accepting", "engine, plain", "engine, stock",
        "mix, accepting, as they are", "engine, accepting, 3 products", "nginx, 8 connections",
    }  # fmt: skip
    [proxied] = [cost.us for cost in bench.costs if cost.subject == f"engine, {PROXIED}"]
    assert proxied["others"].median > 1, "that of the proxy"
    assert all(cost.us["load"].median > 0 for cost in bench.costs)
    assert all(cost.us["door"].median > 0 for cost in bench.costs if not cost.subject.startswith("ledger"))
    assert bench.ledger
    assert bench.disk
    assert 0 < bench.disk.p50_ms.median <= bench.disk.p99_ms.median <= bench.disk.longest_ms.median
    assert {row.share for row in bench.responses} == {0.25, 0.5, 0.75, None}
    assert sum(row.lost for row in bench.responses) == 0
    assert {curve.axis for curve in bench.growth} == {"connections", "products", "stock", "orders"}
    assert [row.connections for row in bench.idle] == [20]
    assert bench.memory
    assert bench.memory.requests[-1] >= 1_000
    assert told, "a run of minutes tells how far it is"
    page = (folder / "bench.md").read_text()
    for title in ("In short", "Clients", "Looks", "Processor time", "Few buy, many look"):
        assert f"\n## {title}\n" in page
    for name in ("front_door", "responses", "growth"):
        assert f"plots/{name}.png" in page
        assert (folder / "plots" / f"{name}.png").stat().st_size > 1_000


@needs_wrk
async def test_two_checkouts_are_measured_in_turn(tmp_path: Path) -> None:
    before = children()
    told: list[str] = []
    options = Options(rounds=2, seconds=1, against=ROOT)
    await run_bench(options, tmp_path / "run", told.append, "flashsim bench --against .")
    assert started_since(before) == []
    rounds = [line.partition(", ")[2].partition(" connections")[0] for line in told if "round " in line]
    order = [f"{who}, {state}, 256" for state in ("sold out", "accepting") for who in ("this", "other")]
    assert rounds == order + order[::-1], "every second round runs backwards"
    bench = msgspec.json.decode((tmp_path / "run" / "bench.json").read_bytes(), type=Bench)
    assert bench.against
    assert bench.against.commit == bench.commit
    assert [sample.fault for row in bench.against.front_door for sample in row.samples if sample.fault] == []
    assert [row.name for row in bench.against.ratios] == [
        f"{state}: {what}"
        for state in ("sold out", "accepting")
        for what in (
            "answers per second",
            "processor time per answer of front door",
            "processor time per answer of Redis",
            "processor time per answer of front door and Redis",
        )
    ]
    for row in bench.against.ratios:
        assert len(row.ratio.values) == 2
        assert 0.1 < row.ratio.median < 10
        assert row.interval is None, "two rounds are too few for an interval"
    costs = {row.process: row for row in bench.against.processes}
    assert {"front-door 1", "relay", "fulfilment", "server", "redis", "postgres", "rabbitmq"} <= set(costs)
    assert costs["fulfilment"].this_us.median > 0
    assert costs["fulfilment"].other_us.median > 0
    assert not bench.front_door
    assert not bench.growth
    page = (tmp_path / "run" / "bench.md").read_text()
    assert "## This engine against that of another checkout" in page
    assert "| fulfilment |" in page


async def test_a_folder_without_an_engine_is_no_checkout(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is no checkout"):
        await run_bench(Options(against=tmp_path), tmp_path / "run", lambda _: None, "flashsim bench")


async def test_what_is_not_installed_is_skipped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "_PATH", str(tmp_path))
    options = Options(subjects=frozenset({Subject.NGINX, Subject.AIOHTTP, Subject.DRIVER}))
    await run_bench(options, tmp_path / "run", lambda _: None, "flashsim bench")
    page = (tmp_path / "run" / "bench.md").read_text()
    assert "wrk is not installed (Debian, Ubuntu: apt-get install wrk); skipped: aiohttp, nginx" in page
    assert "nginx is not installed (Debian, Ubuntu: apt-get install nginx-light); skipped: driver" in page


@needs_wrk
async def test_a_signal_stops_it_and_all_that_it_started(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    process = await asyncio.create_subprocess_exec(
        *FLASHSIM, "bench", "--only=aiohttp", "--only=sold-out", "--out=run", "--seconds=30",
        cwd=tmp_path, env=environment, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr
    started: list[psutil.Process] = []
    while not any(command.endswith("wrk") for command in map(program_of, started)):
        started = psutil.Process(process.pid).children(recursive=True)
        await asyncio.sleep(0.05)
    process.send_signal(signal.SIGINT)
    await process.communicate()
    assert process.returncode == 2
    assert [child for child in started if runs(child)] == []
    assert not (tmp_path / "run").exists()


# What it makes of it


def test_ratios_and_costs_are_taken_round_by_round() -> None:
    ratio = Spread.of([100, 50, 10]).over(Spread.of([200, 50, 40]))
    assert ratio == Spread(median=0.5, low=0.25, high=1.0, values=[0.5, 1.0, 0.25])
    curve = make_curve("products", "engine", [1, 10], [[100.0, 200.0], [50.0, 50.0]], "")
    assert curve.points[0].times_smallest.values == [1, 1]
    assert curve.points[1].times_smallest.values == [2, 4]
    assert curve.points[1].cost_us.median == 20_000


def test_what_was_accepted_is_counted_over_the_time_that_wrk_took() -> None:
    sample = Sample(
        requests=900, rps=300, refused=0, socket_errors=0, p50_ms=1, p99_ms=1,
        accepted=930, backlog=330, drain_s=0.5,
    )  # fmt: skip
    rows = [FrontDoor(subject="engine", connections=64, rps=Spread.of([300]), samples=[sample])]
    [persisted] = describe_persistence(rows)
    assert persisted.accepted_rps.values == [310]
    assert persisted.during_rps.values == [200]
    assert persisted.drain_rps.values == [660]


def test_the_interval_of_a_median_lies_between_order_statistics() -> None:
    assert Spread.of(range(1, 6)).interval() is None
    assert Spread.of(range(1, 7)).interval() == (1, 6)
    assert Spread.of([15, *range(1, 15)]).interval() == (4, 12)


async def test_every_second_round_runs_backwards() -> None:
    order: list[str] = []

    async def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    told: list[str] = []
    measures = {name: partial(measure, name) for name in "ab"}
    assert await Rounds(2, 1, told.append).repeat(measures) == [[1, 4], [2, 3]]
    assert order == ["a", "b", "b", "a"]
    assert told[2] == "round 2/2, b: 3/s"


def test_a_record_of_before_makes_the_same_page(tmp_path: Path) -> None:
    record = ROOT / "reports" / "reference-bench"
    shutil.copy(record / "bench.json", tmp_path)
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, f"report: {tmp_path / 'bench.md'}\n")
    tables = [
        [line for line in (folder / "bench.md").read_text().splitlines() if line.startswith("|")]
        for folder in (tmp_path, record)
    ]
    assert tables[0] == tables[1]
    plots = {file.stem for file in (tmp_path / "plots").iterdir()}
    assert plots == {"front_door", "responses", "growth"}


def make_bench(**found: Any) -> Bench:
    return Bench(
        started_at=datetime.now(UTC),
        command="flashsim bench",
        commit="unknown",
        machine={"cpu": "a", "cores": 2, "memory": "b", "system": "c"},
        versions={},
        load_before=0,
        rounds=1,
        seconds=1,
        growth_seconds=1,
        **found,
    )


def compare(subject: str, nginx_rps: float, engine_rps: float, faults: list[str] | None = None) -> Compared:
    nginx, engine = Spread.of([nginx_rps]), Spread.of([engine_rps])
    return Compared(
        subject=subject,
        connections=64,
        nginx_rps=nginx,
        engine_rps=engine,
        ratio=engine.over(nginx),
        nginx_us=Spread.of([7]),
        engine_us=Spread.of([21.5]),
        faults=faults or [],
    )


async def test_the_tables_of_the_readme_show_the_worst_spelling_beside_the_best(tmp_path: Path) -> None:
    rates = {
        "nginx": 100_000,
        "engine, sold out": 90_000,
        "engine, accepting": 50_000,
        "textbook, sold out": 5_000,
    }
    rows = [
        FrontDoor(subject=name, connections=256, rps=Spread.of([rps]), samples=[])
        for name, rps in rates.items()
    ]
    bench = make_bench(
        front_door=rows,
        ratios=compare_rates(rows),
        clients=[
            compare("plain", 100_000, 80_000),
            compare("Go, a map", 90_000, 9_000),
            compare("charset=utf-8", 100_000, 95_000),
            compare(PROXIED, 12_000, 600),
        ],
        costs=[
            Cost.of("engine, accepting", 256, [({"front-door 1": 0.12, "redis": 0.03, "wrk": 0.05}, 10_000)])
        ],
        looks=[compare("stock", 100_000, 70_000, ["engine: 3 of 9 were refused"])],
    )
    write_page(bench, tmp_path)
    (tmp_path / "bench.json").write_bytes(msgspec.json.encode(bench))
    process = await asyncio.create_subprocess_exec(
        *FLASHSIM, "bench", "--summary", str(tmp_path), cwd=tmp_path, stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    summary = (await process.communicate())[0].decode()
    assert "| nginx, one worker, a constant 429 | 100,000 | 1 |  |" in summary
    assert "| **engine, sold out**, one worker | 90,000 | 0.90 | 18.00 |" in summary
    assert "| bare aiohttp, a handler that does nothing | – |  |  |" in summary
    assert "the best of 3 spellings: charset=utf-8, 64 connections | 95,000 | 0.95 |" in summary
    assert "the worst of them: Go, a map, 64 connections | 9,000 | 0.10 |" in summary
    assert "both behind nginx's default proxy, 64 connections | 600 | 0.05 |" in summary
    assert "| a look at stock, 64 connections | 70,000 | 0.70 |" in summary
    assert "takes 20.0 µs of processor time: door 12.0, Redis 3.0, " in summary
    page = (tmp_path / "bench.md").read_text()
    assert summary.strip() in page
    assert "| Go, a map | 64 | 90,000 | 9,000 | 0.10 | 7 | 21.5 |" in page
    assert "- stock: engine: 3 of 9 were refused" in page


def test_a_folder_without_a_record_is_no_run_of_the_benchmark(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="is no run of the benchmark"):
        read_bench(tmp_path)


def test_the_page_shows_what_was_skipped_and_what_went_wrong() -> None:
    sample = Sample(
        requests=1, rps=1, refused=0, socket_errors=0, p50_ms=1, p99_ms=1, fault="9 UNKNOWN_PRODUCT"
    )
    one = Spread.of([1])
    lag = DriverLag(
        pacer="exact", offered_rps=5_000, p50_ms=one, p99_ms=one, cores=one, faults=["no request was sent"]
    )
    responses = Responses(
        subject="engine, sold out", share=0.5, offered_rps=7_000, answered_rps=one,
        ms={"p50": one, "p99": one}, lag_p99_ms=one, lost=0, doubtful=["p50"], faults=["it waited"],
    )  # fmt: skip
    page = render(
        make_bench(
            notes=["nginx is not installed"],
            front_door=[FrontDoor(subject="engine", connections=64, rps=Spread.of([1]), samples=[sample])],
            driver=DriverRates(connections=1, capacity_rps=one, offered_rps=1, lag_p99_ms=one, lags=[lag]),
            responses=[responses],
        )
    )
    assert "nginx is not installed" in page
    assert "9 UNKNOWN_PRODUCT" in page
    assert "| exact | 5,000 | 1 ms | 1 ms | 1.00 |" in page
    assert "- exact at 5,000/s: no request was sent" in page
    assert "| 7,000 | 1 ms † | 1 ms | 1 ms | 0 |" in page
    assert "† driver-limited" in page
    assert "- engine, sold out at 7,000/s: it waited" in page


def test_a_loop_that_was_not_open_is_told_and_so_is_a_percentile_that_the_driver_made() -> None:
    options = DriverOptions(connections=1)

    def history(late_ms: int) -> pd.DataFrame:
        at_ns = np.arange(100) * 1_000_000_000
        sent_ns = at_ns + late_ms * 1_000_000
        columns: dict[str, Any] = {
            "op": range(100), "driver": 0, "user_id": 1, "product_id": 1, "key": None, "intended_ns": at_ns,
            "sent_ns": sent_ns, "done_ns": sent_ns + 10_000_000, "status": 429, "outcome": "SOLD_OUT",
            "result": "fail", "order_id": None,
        }  # fmt: skip
        return make_history(columns)

    assert find_faults([history(0), history(1)], options) == []
    [fault] = find_faults([history(0), history(60)], options)
    assert "waited while all 1 connections were busy" in fault
    options = DriverOptions(connections=9)
    assert find_doubtful([history(0), history(1)], options) == []
    assert find_doubtful([history(0), history(2)], options) == ["p50", "p90", "p99", "p99.9"]


async def test_a_gate_that_does_not_open_ends_the_measure(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulation.bench.measures.bounds._WAIT_S", 0.2)
    await redis.set("here", 1)
    await _wait("it is not here", partial(redis.exists, "here"))
    with pytest.raises(BenchError, match=r"it is still here in 0\.2 s"):
        await asyncio.wait_for(_wait("it is still here", partial(_lacks, redis, "here")), 10)
