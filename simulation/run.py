"""A run: starts what is needed, opens the sales, drives the load, waits for the drain, and records it all.

Judging comes afterwards, from the record alone (simulation.record).
"""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from engine.sale import Sale
from engine.settings import read_settings
from simulation.driver import Progress, drive
from simulation.engine_process import EngineProcess, private_services, start_engine
from simulation.errors import RunError
from simulation.final_state import FinalState, read_final_state
from simulation.injector import Injector, check_targets
from simulation.live import LiveView
from simulation.machine import describe_machine, read_commit, read_versions
from simulation.opening import check_ownership, open_sales
from simulation.plan import Plan, build_plan
from simulation.probes import Probe
from simulation.process_meter import ProcessMeter
from simulation.proxy import Proxy, start_proxy
from simulation.record import ENGINE_LOG, RunFacts, write_record
from simulation.scenario import Scenario
from simulation.services import Services, find_services

TICK_S: Final = 0.25


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
    view: LiveView,
    say: Callable[[str], None],
    *,
    target: Target | None = None,
    services: Services | None = None,
    command: str = "",
) -> None:
    """Runs the scenario and writes the record into `folder`, which is made.

    It runs against `target`, or else against an engine of its own on `services`, or on private ones where
    none are given. Whatever it started is stopped when it returns, also when it fails; when it is cancelled
    nothing is left of the folder either. `say` hears what a person should know, `command` is kept as what
    repeats the run. Raises RunError, EngineError, DriverError, FaultError or the engine's StackError.
    """
    make_folder(folder)
    # An engine that outlives the run remembers the keys of the run before.
    lasting = target is not None or services is not None
    plan = build_plan(scenario, key_prefix=f"{datetime.now(UTC):%Y%m%d%H%M%S%f}-" if lasting else "")
    try:
        async with _provide(scenario, folder, say, target, services) as engine:
            await _record(scenario, plan, engine, folder, view, command)
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
        engine = await cleanup.enter_async_context(start_engine(seen, scenario.engine, folder / ENGINE_LOG))
        shards = int(scenario.engine.get("gate_shards", 1))
        yield _Engine(Target(url=engine.url, services=services, shards=shards), engine, proxy)


async def _record(
    scenario: Scenario, plan: Plan, engine: _Engine, folder: Path, view: LiveView, command: str
) -> None:
    target, services = engine.target, engine.target.services
    sales = await open_sales(target.url, scenario.sales, target.admin_token)
    if services is not None:
        await check_ownership(services, sales, target.shards)
    versions = await read_versions(services)
    meter = ProcessMeter(services.pids if services else {}, engine.process.pid if engine.process else None)
    progress: Progress | None = None

    def keep(latest: Progress) -> None:
        nonlocal progress
        progress = latest
        injector.begin(latest.t0_ns)

    async def show() -> None:
        while True:
            view.update(progress, probe.latest)
            await asyncio.sleep(TICK_S)

    injector = Injector(scenario.timeline(), engine.process, services, engine.proxy)
    try:
        async with Probe(services, sales, target.shards, meter) as probe, _beside(show()):
            driven = await drive(plan, target.url, scenario.driver, on_progress=keep)
            faults = await injector.finish()
            state = await _read_state(scenario, target, sales)
    finally:
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
        ),
        driven.history,
        probe.timeline(driven.t0_ns),
        state,
        faults,
    )


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
