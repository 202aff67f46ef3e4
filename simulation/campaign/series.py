"""Many runs on one private stack: each finds its services empty, and keeps its record only if it must."""

import asyncio
import shlex
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any, Final, cast
from uuid import uuid4

import asyncpg

from engine.bus.connection import connect_bus
from engine.bus.topology import DEAD, PURCHASES
from engine.gate.client import connect_redis
from simulation.run import Watch, run
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.engine_process import private_services
from simulation.target.services import Services
from simulation.verdict import finish_run, judge_run

TIMEOUT_MS: Final = 30_000

Say = Callable[[str], None]


async def judge_one(
    scenario: Scenario,
    folder: Path,
    services: Services,
    command: str,
    watch: Watch | None = None,
    code: Path | None = None,
) -> dict[str, Any]:
    """Runs a scenario on these services, emptied, and returns its summary.

    `code` is the folder of another copy of the engine's package. The run's folder stays, with the whole
    report, only if the verdict is not pass. Raises what `run` raises.
    """
    async with empty_services(services) as fresh:
        await run(scenario, folder, lambda _: None, watch=watch, services=fresh, command=command, code=code)
    summary = await asyncio.to_thread(judge_run, folder)
    if summary["verdict"] == "pass":
        shutil.rmtree(folder)
    else:
        await asyncio.to_thread(finish_run, folder)
    return summary


@asynccontextmanager
async def empty_services(services: Services) -> AsyncIterator[Services]:
    """The services without anything in them: an empty Redis, no queues, and a ledger of its own."""
    async with connect_redis(services.redis_url, TIMEOUT_MS) as redis:
        await redis.flushall()
    if services.amqp_url is not None:
        async with await connect_bus(services.amqp_url, "series") as bus, bus.channel() as channel:
            for name in (PURCHASES, DEAD):
                await channel.queue_delete(name)
    name = f"run_{uuid4().hex}"
    await _execute(services.postgres_url, f"CREATE DATABASE {name}")
    try:
        yield replace(services, postgres_url=f"{services.postgres_url.rpartition('/')[0]}/{name}")
    finally:
        await _execute(services.postgres_url, f"DROP DATABASE {name} WITH (FORCE)")


async def _execute(postgres_url: str, statement: str) -> None:
    connection = await asyncpg.connect(postgres_url, timeout=TIMEOUT_MS / 1000)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def soak(minutes: float, first_seed: int, folder: Path, say: Say) -> dict[str, Any] | None:
    """Runs the chaos scenario, seed after seed, for so long; returns the summary of the first that does not
    pass, whose record is in `folder`, or None.
    """
    deadline = time.monotonic() + 60 * minutes
    async with private_services(say) as services:
        for seed in count(first_seed):
            scenario = load_scenario("chaos", seed=seed)
            command = shlex.join(["flashsim", "run", "chaos", "--seed", str(seed)])
            summary = await judge_one(scenario, folder, services, command)
            say(f"seed {seed}: {say_result(summary)}")
            if summary["verdict"] != "pass":
                say(f"replay it with: {command}")
                return summary
            if time.monotonic() >= deadline:
                return None
    return None


def say_result(summary: dict[str, Any]) -> str:
    """Verdict and faults of a run, in one line."""
    faults = ", ".join(f"{fault['kind']} {fault['on']}" for fault in summary["faults"]) or "no fault"
    times = [fault["healed_s"] for fault in summary["faults"]]
    known = [cast(float, each) for each in times if each is not None]
    healed = f"recovered within {max(known):.1f} s" if known and len(known) == len(times) else "not recovered"
    why = (
        "" if summary["verdict"] == "pass" else f": {summary['verdict_in_words']} {summary['load']['reason']}"
    )
    return f"{summary['verdict']} ({faults}; {healed}){why}"
