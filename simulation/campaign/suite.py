"""A suite: many runs on one set of private services. Each finds them whole and empty.

Of a run that ends as expected its summary, its manifest, the facts of its set-up and a brief report are kept;
of any other one the whole record, too. A run that can't be made, or not to its end, has a row that says why,
and the next one goes on.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import uuid4

from msgspec import Struct, field
from redis.exceptions import RedisError

from engine.bus.connection import connect_bus, translate_errors
from engine.bus.topology import DEAD, LEDGER, PURCHASES
from engine.errors import FlashgridError
from engine.local.cluster.nodes import list_cluster, make_whole
from simulation.errors import RunError, SimulationError
from simulation.record.series import drop_record
from simulation.report.page import write_tables
from simulation.run import Say, run
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.cluster.postgres import SILENT
from simulation.target.machine import describe_machine, read_commit
from simulation.target.services import Services
from simulation.target.stores import connect_ledger, open_gate
from simulation.verdict import judge_run, write_products

_EMPTY_S: Final = 60.0
"""Longest time until the services of a suite are empty."""


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
    is dropped, and the report is brief. Raises SimulationError if there is no run, or it does not come to its
    end, whatever keeps it from that.
    """
    try:
        async with empty_services(services, scenario.topology.shards) as fresh:
            await run(scenario, folder, lambda _: None, services=fresh, command=command, code=code)
    except (FlashgridError, RedisError, *SILENT) as error:
        raise RunError(" ".join(str(error).split()) or type(error).__name__) from error
    summary = await asyncio.to_thread(judge_run, folder)
    expected = is_expected(summary)
    await asyncio.to_thread(write_products, folder, summary, expected)
    if expected:
        drop_record(folder)
    return summary


@asynccontextmanager
async def empty_services(services: Services, shards: int = 1) -> AsyncIterator[Services]:
    """Empty Redis, delete the queues, and give the services a ledger of their own until the end.

    Nodes that a run before has left apart from their clusters are waited for. Raises the errors of the
    clients, and FlashgridError.
    """
    if services.stack:
        await make_whole(services.stack.data_dir, list_cluster(services.stack.data_dir))
    name = f"run_{uuid4().hex}"
    async with asyncio.timeout(_EMPTY_S):
        async with open_gate(services.redis_url, shards) as gate:
            for redis in set(gate):
                await redis.flushall()
        if services.amqp_url is not None:
            with translate_errors():
                async with await connect_bus(services.amqp_url, "suite") as bus, bus.channel() as channel:
                    for queue in (PURCHASES, DEAD):
                        await channel.queue_delete(queue)
                    # The ledger of the next run is another one.
                    await channel.exchange_delete(LEDGER)
        await _execute(services.postgres_url, f"CREATE DATABASE {name}")
    try:
        yield replace(services, postgres_url=f"{services.postgres_url.rpartition('/')[0]}/{name}")
    finally:
        # Where it does not go it is in nobody's way, and the run has said what it had to say.
        with suppress(*SILENT):
            async with asyncio.timeout(_EMPTY_S):
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
    """One seed of a soak; the numbers are None where there is no run."""

    seed: int
    folder: str = ""
    """Where its report is, beside the table; empty without one."""
    verdict: str
    verdict_in_words: str
    faults: list[str]
    accepted: int | None = None
    refused: int | None = None
    unknown: int | None = None
    sold: int | None = None
    oversold: int | None = None
    healed_s: float | None = None
    """The longest time from the end of a fault until the engine works as before; None: it never did."""
    drained_s: float | None = None


class Soak(Suite, kw_only=True):
    """All seeds, and where they come from."""

    runs: list[SoakRun] = field(default_factory=list)


async def soak(
    scenario: str, minutes: float, first_seed: int, folder: Path, services: Services, say: Say, command: str
) -> tuple[Soak, Judged | None]:
    """Run a scenario, seed after seed, for so many minutes, until one does not pass; return that one, too.

    It ends as well with two seeds in a row that can't be run. Writes soak.json, soak.md and soak.html into
    the folder, beside what is kept of each run.
    """
    deadline, result, failed = time.monotonic() + 60 * minutes, Soak(command=command), None
    for seed in count(first_seed):
        place, repeat = folder / f"seed-{seed}", f"flashsim run {scenario} --seed {seed}"
        planned = load_scenario(scenario, seed=seed)
        try:
            summary = await judge_one(planned, place, services, repeat)
        except SimulationError as error:
            faults = [f"{fault.kind} {fault.on}".replace("_", " ") for fault in planned.timeline()]
            row = SoakRun(seed=seed, verdict="unknown", verdict_in_words=str(error), faults=faults)
        else:
            row = _describe_seed(seed, place, summary)
            if not passes(summary):
                failed = Judged(summary, place, 1)
        say(f"{repeat}: {row.verdict}: {row.verdict_in_words}")
        result.runs.append(row)
        passed = [run.verdict for run in result.runs].count("pass")
        write_tables("soak", result, folder, good=passed, total=len(result.runs))
        are_ill = len(result.runs) > 1 and not any(run.folder for run in result.runs[-2:])
        if failed or are_ill or time.monotonic() >= deadline:
            break
    return result, failed


def _describe_seed(seed: int, folder: Path, summary: dict[str, Any]) -> SoakRun:
    healed = [fault["healed_s"] for fault in summary["faults"]]
    return SoakRun(
        seed=seed,
        folder=folder.name,
        faults=[f"{fault['kind']} {fault['on']}".replace("_", " ") for fault in summary["faults"]],
        healed_s=None if None in healed else max(healed, default=0.0),
        **read_counts(summary),
    )


async def _execute(postgres_url: str, statement: str) -> None:
    async with connect_ledger(postgres_url) as connection:
        await connection.execute(statement)
