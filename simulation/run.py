"""A run: starts what is needed, opens the sales, drives the load, waits for the drain, and records it all.

Judging comes afterwards, from the record alone (simulation.record).
"""

import asyncio
import contextlib
import shutil
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from engine.model.sale import Sale
from engine.settings import read_settings
from simulation.drive.abort import find_abort
from simulation.drive.driver import Drive, LoadSpec, drive
from simulation.drive.plan import Plan, build_plan
from simulation.drive.progress import Progress
from simulation.errors import RunError
from simulation.faults.injector import Injector, check_targets
from simulation.faults.proxy import Proxy, start_proxy
from simulation.model.state import FinalState
from simulation.record.facts import ENGINE_LOG, RunFacts, write_record
from simulation.scenario.abort import Abort
from simulation.scenario.condition import parse_abort
from simulation.scenario.fault import Interval
from simulation.scenario.schema import Scenario
from simulation.target.engine_process import EngineProcess, private_services, start_engine
from simulation.target.final_state import read_final_state
from simulation.target.machine import describe_machine, read_commit, read_versions
from simulation.target.opening import Restocker, check_ownership, open_sales
from simulation.target.probes import Probe, Sample
from simulation.target.process_meter import ProcessMeter
from simulation.target.services import Services, find_services

Watch = Callable[[Progress | None, Sample | None, Sequence[Interval]], None]
"""Hears, several times a second, the latest progress and sample, and the faults that are over."""

TICK_S: Final = 0.25
STEADY_S: Final = 1.5
"""Longer than the engine takes to notice that its gate has forgotten something."""
AHEAD_S: Final = 5.0
"""How long before it a run's start is chosen where a sale has to know it: the sales have to be open and the
driver ready by then."""
OPENINGS_PER_S: Final = 50
PLANS_PER_S: Final = 50_000
"""What a slow machine opens of sales, and makes ready of requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """An engine that runs already."""

    url: str
    admin_token: str | None = None
    services: Services | None = None
    """Where its final state can be read; None: nowhere, so that the verdict will be unknown."""
    shards: int = 1


def find_target(url: str, admin_token: str | None, services: Services | None, scenario: Scenario) -> Target:
    """The engine at `url`, with its services as they are given, or else as the environment has them.

    Raises SettingsError or EngineError where the environment is bad.
    """
    settings = read_settings()
    return Target(
        url=url,
        admin_token=admin_token,
        services=services or find_services(url, settings),
        shards=int(scenario.engine.get("gate_shards", settings.gate_shards)),
    )


@dataclass(frozen=True, slots=True)
class _Engine:
    """The engine under test, whoever started it."""

    target: Target
    process: EngineProcess | None = None
    proxy: Proxy | None = None
    """Between the engine and the services that have a fault of the network."""


async def run(
    scenario: Scenario,
    folder: Path,
    say: Callable[[str], None],
    *,
    watch: Watch | None = None,
    target: Target | None = None,
    services: Services | None = None,
    command: str = "",
    code: Path | None = None,
    driver: Drive = drive,
) -> None:
    """Runs the scenario and writes the record into `folder`, which is made.

    It runs against `target`, or else against an engine of its own on `services`, or on private ones where
    none are given. Whatever it started is stopped when it returns, also when it fails; when it is cancelled
    nothing is left of the folder either. `say` hears what a person should know, `command` is kept as what
    repeats the run, `code` is the folder of another copy of the engine's package, `driver` sends the load.
    Raises RunError, EngineError, DriverError, FaultError or the engine's StackError.
    """
    make_folder(folder)
    # An engine that outlives the run remembers the keys of the run before.
    lasting = target is not None or services is not None
    plan = build_plan(scenario, key_prefix=f"{datetime.now(UTC):%Y%m%d%H%M%S%f}-" if lasting else "")
    try:
        async with _provide(scenario, folder, say, target, services, code) as engine:
            await _record(scenario, plan, driver, engine, folder, watch, say, command)
    except asyncio.CancelledError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def make_folder(folder: Path) -> None:
    """Makes the folder of a run. Raises RunError where something is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunError(f"{folder}: is not empty; a run needs a folder of its own")
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror}") from None


@asynccontextmanager
async def _provide(
    scenario: Scenario,
    folder: Path,
    say: Callable[[str], None],
    target: Target | None,
    services: Services | None,
    code: Path | None,
) -> AsyncIterator[_Engine]:
    if target is not None:
        check_targets(scenario.timeline(), target.services, own_engine=False)
        yield _Engine(target)
        return
    async with AsyncExitStack() as cleanup:
        if services is None:
            say("starting private services")
            services = await cleanup.enter_async_context(private_services(say))
        check_targets(scenario.timeline(), services, own_engine=True)
        proxy, seen = None, services
        if behind := {fault.on for fault in scenario.timeline() if fault.of_network}:
            proxy, seen = await cleanup.enter_async_context(start_proxy(services, behind, scenario.seed))
        say("starting the engine")
        engine = await cleanup.enter_async_context(
            start_engine(seen, scenario.engine, folder / ENGINE_LOG, code)
        )
        shards = int(scenario.engine.get("gate_shards", 1))
        yield _Engine(Target(url=engine.url, services=services, shards=shards), engine, proxy)


async def _record(
    scenario: Scenario,
    plan: Plan,
    driver: Drive,
    engine: _Engine,
    folder: Path,
    watch: Watch | None,
    say: Callable[[str], None],
    command: str,
) -> None:
    target, services = engine.target, engine.target.services
    t0_ns = _choose_start(scenario, len(plan))
    sales = await open_sales(target.url, scenario.sales, target.admin_token, t0_ns)
    if services is not None:
        await check_ownership(services, sales, target.shards)
    versions = await read_versions(services)
    meter = ProcessMeter(services.pids if services else {}, engine.process.pid if engine.process else None)
    progress: Progress | None = None
    abort: Abort | None = None
    stop = asyncio.Event()
    hopeless = [parse_abort(text) for text in scenario.abort_when]

    def keep(latest: Progress) -> None:
        nonlocal progress, abort
        progress = latest
        injector.begin(latest.t0_ns)
        restocker.begin(latest.t0_ns)
        if abort is None and (abort := find_abort(hopeless, latest)):
            say(f"stopping the load: {abort.condition}, it is {abort.value:,.3g}")
            stop.set()

    def tell() -> None:
        if watch is not None:
            watch(progress, probe.latest, injector.intervals)

    async def show() -> None:
        while True:
            tell()
            await asyncio.sleep(TICK_S)

    injector = Injector(scenario.timeline(), engine.process, services, engine.proxy)
    restocker = Restocker(scenario.restocks, sales, target.url, target.admin_token)
    try:
        async with Probe(services, sales, target.shards, meter) as probe, _beside(show()):
            driven = await driver(LoadSpec(plan, target.url, scenario.driver, t0_ns, keep, stop))
            restocks = await restocker.finish()
            if abort:
                # Rounded up, so that the last request was meant to start before.
                last_ms = -(-int(driven.history["intended_ns"].max() + 1) // 1_000_000)
                abort = msgspec.structs.replace(abort, at_s=last_ms / 1e3)
            faults = await injector.finish(early=abort is not None)
            state = await _read_state(scenario, target, sales)
        tell()
    finally:
        await restocker.abandon()
        await injector.abandon()
    write_record(
        folder,
        RunFacts(
            scenario=scenario,
            command=command,
            started_at=driven.started_at,
            target=None if engine.process else target.url,
            engine_death=engine.process.death if engine.process else None,
            commit=read_commit(),
            machine=describe_machine(),
            versions=versions,
            driver=driven.driver,
            restocks=restocks,
            aborted=abort,
        ),
        driven.history,
        probe.timeline(driven.t0_ns),
        state,
        faults,
    )


def _choose_start(scenario: Scenario, requests: int) -> int | None:
    """The run's start on time.monotonic_ns() where a sale has to know it; None: as soon as all is ready."""
    if all(sale.starts_in_s is None for sale in scenario.sales):
        return None
    ahead_s = AHEAD_S + len(scenario.sales) / OPENINGS_PER_S + requests / PLANS_PER_S
    return time.monotonic_ns() + round(ahead_s * 1e9)


async def _read_state(scenario: Scenario, target: Target, sales: Sequence[Sale]) -> FinalState:
    services = target.services
    if services is None:
        reason = "the engine's services are not known: give --redis-url and --postgres-url"
        return FinalState(unread=dict.fromkeys(("gate", "bus", "ledger"), reason))
    return await read_final_state(
        services.redis_url,
        services.amqp_url,
        services.postgres_url,
        target.shards,
        sale_ids=[sale.sale_id for sale in sales],
        drain_timeout_s=scenario.drain_s,
        steady_s=STEADY_S if any(fault.of_memory for fault in scenario.timeline()) else 0.0,
    )


@asynccontextmanager
async def _beside(work: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Lets `work` run until the end of the block. An error of it does not stop the run."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
