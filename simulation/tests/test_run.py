"""A run from end to end: it records and judges all it promises, and leaves no process behind, whatever
happens."""

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from engine.local.process import ProcessId, identify, survivors
from engine.local.stack import Stack
from engine.settings import Settings
from engine.tests.services import execute
from simulation.drive.progress import Progress
from simulation.errors import EngineError, RunError
from simulation.model.events import Interval
from simulation.run import Watch, run
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import SaleOffer, Scenario
from simulation.target.engine_process import start_engine
from simulation.target.opening import check_ownership, open_sales
from simulation.target.probes import Sample
from simulation.target.services import Services
from simulation.verdict import finish_run, judge_run

# What this machine has time for, while it runs the tests, says nothing about the engine.
PATIENT = {
    "driver.late_p99_ms": 60_000,
    "driver.timeout_ms": 60_000,
    "driver.connections": 200,
    "driver.connections_may_run_out": True,
}
RECORD = ("run.json", "history.parquet", "timeline.csv", "final/final_state.json", "engine.log")
RESULT = ("summary.json", "report.html")


def small_spike(**overrides: Any) -> Scenario:
    changes = PATIENT | {key.replace("__", "."): value for key, value in overrides.items()}
    return load_scenario("spike", changes, rate_rps=2_000, duration_s=3, stock=200)


@pytest.fixture
def services(settings: Settings, stack: Stack) -> Services:
    return Services(
        redis_url=settings.redis_url or "",
        postgres_url=settings.postgres_url or "",
        amqp_url=settings.amqp_url,
        pids={name: stack.pid(name) for name in ("redis", "postgres", "rabbitmq")},
    )


def once_sold(act: Callable[[], None]) -> Watch:
    """Calls `act` once the first purchase is accepted."""
    acts = [act]

    def watch(progress: Progress | None, _sample: Sample | None, _ended: Sequence[Interval]) -> None:
        if acts and progress and progress.outcomes["ACCEPTED"]:
            acts.pop()()

    return watch


def children_of(pid: int, *words: str) -> list[psutil.Process]:
    """Processes below `pid` whose command line has all these words."""
    below = psutil.Process(pid).children(recursive=True)
    found = []
    for process in below:
        with suppress(psutil.NoSuchProcess):  # it died meanwhile
            if all(word in " ".join(process.cmdline()) for word in words):
                found.append(process)
    return found


async def test_a_run_records_judges_and_reports_what_it_promises(services: Services, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    notes: list[str] = []
    scenario = small_spike(engine__workers=2)
    await run(scenario, folder, notes.append, services=services)
    assert not children_of(os.getpid(), "engine.stages.process")
    assert [name for name in RECORD if not (folder / name).stat().st_size] == []

    summary = finish_run(folder)
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    assert (summary["seed"], summary["scenario"]) == (scenario.seed, scenario.name)
    assert summary["load"]["requests"] > 2_500
    assert summary["load"]["valid"]
    assert summary["stock"] == summary["stock"] | {"initial": 200, "sold": 200, "remaining": 0, "oversold": 0}
    assert summary["fulfilment"]["bus"] == "rabbitmq"
    assert (summary["outcomes"]["accepted"], summary["outcomes"]["error"]) == (200, 0)
    assert [name for name in RESULT if not (folder / name).stat().st_size] == []
    assert list((folder / "plots").glob("*.png"))
    assert judge_run(folder) == msgspec.json.decode((folder / "summary.json").read_bytes())

    columns = (folder / "timeline.csv").read_text().splitlines()[0].split(",")
    for name in (
        "front-door 1",
        "front-door 2",
        "relay",
        "fulfilment",
        "redis",
        "postgres",
        "rabbitmq",
        "driver 1",
    ):
        assert {f"cpu_percent {name}", f"rss_mib {name}"} <= set(columns)


async def test_a_run_has_several_front_doors_and_shards(services: Services, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    scenario = small_spike(topology__front_doors=2, topology__shards=2, sales__0__products=4)
    await run(scenario, folder, print, services=services)
    assert not children_of(os.getpid(), "engine.stages.process")
    summary = finish_run(folder)
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert (summary["verdict"], summary["stock"]["sold"]) == ("pass", 800)
    assert len(summary["front_doors"]) == 2
    assert min(door["accepted"] for door in summary["front_doors"]) > 100
    columns = (folder / "timeline.csv").read_text().splitlines()[0].split(",")
    stages = ("server", "front-door", "relay", "fulfilment")
    assert {f"cpu_percent {stage} {number}" for stage in stages for number in (1, 2)} <= set(columns)
    assert "listening on" in (folder / "engine-2.log").read_text()


async def test_an_engine_that_is_killed_is_no_pass_and_leaves_nothing(
    services: Services, tmp_path: Path
) -> None:
    stages: list[ProcessId] = []

    def kill_engine() -> None:
        stages.extend(identify(stage.pid) for stage in children_of(os.getpid(), "engine.stages.process"))
        [server] = children_of(os.getpid(), "engine.cli")
        os.killpg(server.pid, signal.SIGKILL)

    scenario = small_spike()
    await run(scenario, tmp_path / "run", print, watch=once_sold(kill_engine), services=services)
    assert len(stages) == 3
    assert not survivors(stages)
    summary = finish_run(tmp_path / "run")
    assert summary["verdict"] in ("fail", "unknown")
    assert "SIGKILL" in summary["load"]["reason"]


async def test_a_folder_with_something_in_it_is_left_as_it_is(services: Services, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    scenario = small_spike()
    with pytest.raises(RunError, match="is not empty"):
        await run(scenario, tmp_path, print, services=services)
    assert os.listdir(tmp_path) == ["notes.txt"]  # noqa: PTH208


async def test_an_engine_that_cannot_start_says_why(services: Services, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"does not start(?s:.*)FLASHGRID_WORKERS"):
        async with start_engine(services, {"workers": 0}, tmp_path / "engine.log"):
            pytest.fail("it started")
    assert not children_of(os.getpid(), "engine.cli")


async def test_the_services_of_another_engine_are_refused(services: Services, tmp_path: Path) -> None:
    async with start_engine(services, {}, tmp_path / "engine.log") as engine:
        sales = await open_sales((engine.url,), [SaleOffer(product_id=1, stock=5)], engine.admin_token)
        await check_ownership(services, sales, shards=1)
        other_redis = replace(services, redis_url=services.redis_url.replace("/0", "/1"))
        with pytest.raises(EngineError, match="Redis given is not this engine's"):
            await check_ownership(other_redis, sales, shards=1)
        await execute(services.postgres_url, "UPDATE sales SET opened_at = opened_at - interval '1 day'")
        with pytest.raises(EngineError, match="PostgreSQL given is not this engine's"):
            await check_ownership(services, sales, shards=1)
