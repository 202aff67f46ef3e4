"""A suite: many runs on one set of private services. Each finds them empty; its record stays if it must."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import asyncpg
from msgspec import Struct, field

from engine.bus.connection import connect_bus
from engine.bus.topology import DEAD, PURCHASES
from engine.gate.client import connect_redis
from simulation.run import Say, run
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.machine import describe_machine, read_commit
from simulation.target.services import Services
from simulation.verdict import finish_run, judge_run

TIMEOUT_MS: Final = 30_000


class Suite(Struct, kw_only=True):
    """The result of a suite: here where it comes from, in subclasses what each run gave."""

    command: str
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    commit: str = field(default_factory=read_commit)
    machine: dict[str, str | int] = field(default_factory=describe_machine)


async def judge_planned(
    scenario: Scenario, folder: Path, services: Services, command: str, code: Path | None = None
) -> tuple[dict[str, Any], int]:
    """Run a scenario as `judge_one` does, and once more, into a folder that ends in -2, if that says nothing.

    A load that was not as planned says nothing about the engine. Returns the last summary and the number of
    tries.
    """
    summary = await judge_one(scenario, folder, services, command, code)
    if summary["verdict"] != "unknown":
        return summary, 1
    return await judge_one(scenario, folder.with_name(f"{folder.name}-2"), services, command, code), 2


async def judge_one(
    scenario: Scenario, folder: Path, services: Services, command: str, code: Path | None = None
) -> dict[str, Any]:
    """Run a scenario on these services, emptied, and return its summary.

    `code` is the folder of another copy of the engine's package. The run's folder stays, with the whole
    report, only if the verdict is not pass. Raises what `run` raises.
    """
    async with empty_services(services) as fresh:
        await run(scenario, folder, lambda _: None, services=fresh, command=command, code=code)
    summary = await asyncio.to_thread(judge_run, folder)
    if summary["verdict"] == "pass":
        shutil.rmtree(folder)
    else:
        await asyncio.to_thread(finish_run, folder)
    return summary


@asynccontextmanager
async def empty_services(services: Services) -> AsyncIterator[Services]:
    """Empty Redis, delete the queues, and give the services a ledger of their own until the end."""
    async with connect_redis(services.redis_url, TIMEOUT_MS) as redis:
        await redis.flushall()
    if services.amqp_url is not None:
        async with await connect_bus(services.amqp_url, "suite") as bus, bus.channel() as channel:
            for name in (PURCHASES, DEAD):
                await channel.queue_delete(name)
    name = f"run_{uuid4().hex}"
    await _execute(services.postgres_url, f"CREATE DATABASE {name}")
    try:
        yield replace(services, postgres_url=f"{services.postgres_url.rpartition('/')[0]}/{name}")
    finally:
        await _execute(services.postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


def read_counts(summary: dict[str, Any]) -> dict[str, Any]:
    """Return what became of a run's requests and units, as tables of faults show it."""
    outcomes, stock = summary["outcomes"], summary["stock"]
    return {
        "verdict": summary["verdict"],
        "verdict_in_words": summary["verdict_in_words"],
        "accepted": outcomes["accepted"],
        "refused": outcomes["error"],
        "unknown": outcomes["unknown"],
        "sold": stock["sold"],
        "oversold": stock["oversold"],
        "drained_s": summary["fulfilment"]["drained_s"],
    }


def tell_duration(runs: int, seconds: float, say: Say) -> None:
    """Tell how long so many runs take, of which each takes about so many seconds."""
    say(f"{runs} runs, about {max(1, round(runs * seconds / 60))} min; more where runs do not pass")


def explain(summary: dict[str, Any]) -> str:
    """Return the verdict in words, and why the load is not valid, if so."""
    return f"{summary['verdict']}: {summary['verdict_in_words']} {summary['load']['reason']}".rstrip()


async def soak(minutes: float, first_seed: int, folder: Path, services: Services, say: Say) -> dict[str, Any]:
    """Run the chaos scenario, seed after seed, for so many minutes.

    Returns the last run's summary. If it does not pass, its record is in `folder`.
    """
    deadline = time.monotonic() + 60 * minutes
    for seed in count(first_seed):
        command = f"flashsim run chaos --seed {seed}"
        summary = await judge_one(load_scenario("chaos", seed=seed), folder, services, command)
        say(f"{command}: {explain(summary)}")
        if summary["verdict"] != "pass" or time.monotonic() >= deadline:
            break
    return summary


async def _execute(postgres_url: str, statement: str) -> None:
    async with asyncpg.create_pool(postgres_url, min_size=0, max_size=1, timeout=TIMEOUT_MS / 1000) as pool:
        await pool.execute(statement)
