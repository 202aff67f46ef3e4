"""A suite: many runs on one set of private services. Each finds them empty.

Of a run that ends as expected its summary, its manifest, the facts of its set-up and a brief report are kept;
of any other one the whole record, too.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

from msgspec import Struct, field

from engine.bus.connection import connect_bus
from engine.bus.topology import DEAD, LEDGER, PURCHASES
from simulation.record.series import drop_record
from simulation.report.page import write_tables
from simulation.run import Say, run
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.machine import describe_machine, read_commit
from simulation.target.services import Services
from simulation.target.stores import connect_ledger, open_gate
from simulation.verdict import judge_run, write_products


class Suite(Struct, kw_only=True):
    """The result of a suite: here where it comes from, in subclasses what each run gave."""

    command: str
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    commit: str = field(default_factory=read_commit)
    machine: dict[str, str | int] = field(default_factory=describe_machine)


class Judged(NamedTuple):
    """A run of a suite."""

    summary: dict[str, Any]
    folder: Path
    tries: int


def passes(summary: dict[str, Any]) -> bool:
    """Return whether a run passed."""
    return bool(summary["verdict"] == "pass")


async def judge_planned(
    scenario: Scenario,
    folder: Path,
    services: Services,
    command: str,
    code: Path | None = None,
    is_expected: Callable[[dict[str, Any]], bool] = passes,
) -> Judged:
    """Run a scenario as `judge_one` does, and once more, into a folder that ends in -2, if that says nothing.

    A load that was not as planned says nothing about the engine.
    """
    summary = await judge_one(scenario, folder, services, command, code, is_expected)
    if summary["verdict"] != "unknown":
        return Judged(summary, folder, 1)
    again = folder.with_name(f"{folder.name}-2")
    return Judged(await judge_one(scenario, again, services, command, code, is_expected), again, 2)


async def judge_one(
    scenario: Scenario,
    folder: Path,
    services: Services,
    command: str,
    code: Path | None = None,
    is_expected: Callable[[dict[str, Any]], bool] = passes,
) -> dict[str, Any]:
    """Run a scenario on these services, emptied, write its report, and return its summary.

    `code` is the folder of another copy of the engine's package. Where the summary is as expected, the record
    is dropped, and the report is brief. Raises what `run` raises.
    """
    async with empty_services(services, scenario.topology.shards) as fresh:
        await run(scenario, folder, lambda _: None, services=fresh, command=command, code=code)
    summary = await asyncio.to_thread(judge_run, folder)
    expected = is_expected(summary)
    await asyncio.to_thread(write_products, folder, summary, expected)
    if expected:
        drop_record(folder)
    return summary


@asynccontextmanager
async def empty_services(services: Services, shards: int = 1) -> AsyncIterator[Services]:
    """Empty Redis, delete the queues, and give the services a ledger of their own until the end."""
    async with open_gate(services.redis_url, shards) as gate:
        for redis in set(gate):
            await redis.flushall()
    if services.amqp_url is not None:
        async with await connect_bus(services.amqp_url, "suite") as bus, bus.channel() as channel:
            for name in (PURCHASES, DEAD):
                await channel.queue_delete(name)
            # The ledger of the next run is another one.
            await channel.exchange_delete(LEDGER)
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


class SoakRun(Struct, frozen=True, kw_only=True):
    """One seed of a soak."""

    seed: int
    folder: str
    verdict: str
    verdict_in_words: str
    faults: list[str]
    accepted: int
    refused: int
    unknown: int
    sold: int | None
    oversold: int | None
    healed_s: float | None
    """The longest time from the end of a fault until the engine works as before; None: it never did."""
    drained_s: float | None


class Soak(Suite, kw_only=True):
    """All seeds, and where they come from."""

    runs: list[SoakRun] = field(default_factory=list)


async def soak(
    scenario: str, minutes: float, first_seed: int, folder: Path, services: Services, say: Say, command: str
) -> Judged:
    """Run a scenario, seed after seed, for so many minutes, until one does not pass. Return the last.

    Writes soak.json, soak.md and soak.html into the folder, beside what is kept of each run.
    """
    deadline, result = time.monotonic() + 60 * minutes, Soak(command=command)
    for seed in count(first_seed):
        place, repeat = folder / f"seed-{seed}", f"flashsim run {scenario} --seed {seed}"
        summary = await judge_one(load_scenario(scenario, seed=seed), place, services, repeat)
        say(f"{repeat}: {explain(summary)}")
        healed = [fault["healed_s"] for fault in summary["faults"]]
        result.runs.append(
            SoakRun(
                seed=seed,
                folder=place.name,
                faults=[f"{fault['kind']} {fault['on']}".replace("_", " ") for fault in summary["faults"]],
                healed_s=None if None in healed else max(healed, default=0.0),
                **read_counts(summary),
            )
        )
        passed = [run.verdict for run in result.runs].count("pass")
        write_tables("soak", result, folder, good=passed, total=len(result.runs))
        if summary["verdict"] != "pass" or time.monotonic() >= deadline:
            break
    return Judged(summary, place, 1)


async def _execute(postgres_url: str, statement: str) -> None:
    async with connect_ledger(postgres_url) as connection:
        await connection.execute(statement)
