"""One fault of each kind under a sale: nothing is lost or sold twice, and the engine comes back by itself."""

import asyncio
import os
import signal
from pathlib import Path

import msgspec
import psutil
import pytest

from engine.local.process import family, identify
from engine.local.stack import Stack
from engine.settings import Settings
from simulation.run import run
from simulation.scenario.fault import Fault
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.services import Services, services_of
from simulation.verdict import judge_run

# What this machine has time for, while it runs the tests, says nothing about the engine.
PATIENT = {
    "driver.late_p99_ms": 60_000,
    "driver.timeout_ms": 3_000,
    "driver.connections": 4_000,
    "driver.connections_may_run_out": True,
}
STOPPED = psutil.STATUS_STOPPED


def sale_with(fault: Fault) -> Scenario:
    """Some four thousand requests for 2,500 units."""
    changes = PATIENT | {"population.keyed_share": 0.3}
    scenario = load_scenario("spike", changes, rate_rps=2_400, duration_s=3, stock=2_500)
    # The thresholds are those of a day without faults.
    return msgspec.structs.replace(scenario, faults=[fault], thresholds=[])


@pytest.fixture
def services(settings: Settings, stack: Stack) -> Services:
    known = services_of(stack)
    return Services(
        redis_url=known.redis_url,
        postgres_url=settings.postgres_url or "",
        amqp_url=known.amqp_url,
        pids=known.pids,
        stack=stack,
    )


@pytest.mark.parametrize(
    ("kind", "on"),
    [
        ("kill", "redis"),
        ("stop", "front-door"),
        ("restart", "relay"),
        ("latency", "redis"),
        ("cut", "rabbitmq"),
        ("freeze", "postgres"),
        ("drop_replies", "redis"),
        ("bandwidth", "rabbitmq"),
        ("out_of_memory", "redis"),
        ("disk_full", "rabbitmq"),
        ("read_only", "postgres"),
        ("no_connections", "postgres"),
        ("drop_connections", "rabbitmq"),
        ("flush", "redis"),
        ("wipe", "redis"),
        ("rollback", "redis"),
        ("failover", "redis"),
    ],
)
async def test_a_sale_survives(kind: str, on: str, services: Services, tmp_path: Path) -> None:
    scenario = sale_with(Fault(at_s=0.8, seconds=0.7, kind=kind, on=on))
    await run(scenario, tmp_path / "run", print, services=services)
    summary = judge_run(tmp_path / "run")
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    [fault] = summary["faults"]
    assert (fault["kind"], fault["on"]) == (kind, on)
    assert 0.8 <= fault["start_s"] <= fault["end_s"]
    assert fault["healed_s"] is not None


def states(stack: Stack) -> list[str]:
    return [psutil.Process(each.pid).status() for each in family(identify(stack.pid("postgres")))]


async def test_an_interrupted_run_ends_its_faults(services: Services, tmp_path: Path) -> None:
    stack = services.stack
    assert stack is not None
    interrupted = False

    def interrupt(*_: object) -> None:
        """Send this process SIGINT once the service is stopped."""
        nonlocal interrupted
        if not interrupted and set(states(stack)) == {STOPPED}:
            interrupted = True
            os.kill(os.getpid(), signal.SIGINT)

    scenario = sale_with(Fault(at_s=0.3, seconds=60, kind="stop", on="postgres"))
    work = asyncio.create_task(run(scenario, tmp_path / "run", print, watch=interrupt, services=services))
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, work.cancel)
    try:
        with pytest.raises(asyncio.CancelledError):
            await work
    finally:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
    assert interrupted
    assert STOPPED not in states(stack)
