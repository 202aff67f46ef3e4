"""One run from start to end: starts an engine, opens the sales, drives the load, awaits the drain, records.

It is judged afterwards, from the record alone (simulation.verdict).
"""

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from engine.model.sale import Sale
from engine.settings import read_settings
from engine.stages.lifecycle import running
from simulation.drive.driver import Drive, DriveResult, LoadSpec, drive
from simulation.drive.plan import Plan, build_plan, give_tokens
from simulation.drive.progress import Progress, find_abort
from simulation.faults.injector import Injector, check_targets
from simulation.faults.proxy import Proxy, start_proxy
from simulation.model.contract import FLASHGRID, Contract
from simulation.model.events import Abort, Interval
from simulation.model.history import take_buys, take_reads
from simulation.model.state import FinalState
from simulation.record.facts import ENGINE_LOG, RunFacts, write_record
from simulation.record.folder import drop_empty, make_folder
from simulation.record.manifest import list_record, seal
from simulation.scenario.condition import parse_abort
from simulation.scenario.schema import Scenario
from simulation.target.cluster.roles import Roles
from simulation.target.engine_process import Engines, private_services, start_engines
from simulation.target.foreign.engine import FLASHGRID_ENGINE, Engine
from simulation.target.foreign.programs import Programs, reset_engine, start_programs
from simulation.target.machine import describe_machine, read_commit, read_versions
from simulation.target.opening import check_url, open_sales
from simulation.target.probes import Probe, Sample
from simulation.target.process_meter import ProcessMeter
from simulation.target.restocks import Restocker
from simulation.target.services import Services, find_services
from simulation.target.stores import measure_skew
from simulation.target.witness.witness import NoWitness, Witness

Say = Callable[[str], None]
"""Is told what a person should know."""
Watch = Callable[[Progress | None, Sample | None, Sequence[Interval]], None]
"""Is given, several times a second, the latest progress and sample, and the faults that have ended."""

TICK_S: Final = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The engine under test."""

    urls: tuple[str, ...]
    """Its front doors."""
    admin_token: str | None = None
    services: Services | None = None
    """Its own services, as far as they are known."""
    witness: Witness = field(default_factory=NoWitness)
    """Tells its final state; without one the verdict will be unknown."""
    contract: Contract = FLASHGRID
    ca: str | None = None
    """For https: a file with the certificate of an authority; None: the system's authorities."""
    process: Engines | Programs | None = None
    """None for an engine that the run did not start."""
    proxy: Proxy | None = None
    """Between the engine and the services that have a network fault."""


def find_target(
    urls: tuple[str, ...],
    admin_token: str | None,
    services: Services | None,
    scenario: Scenario,
    engine: Engine = FLASHGRID_ENGINE,
) -> Target:
    """Return the running engine that has these front doors, with the given services or else, for Flashgrid,
    those of the environment.

    Raises SettingsError or EngineError if the environment or a URL is bad.
    """
    for url in urls:
        check_url(url)
    settings = read_settings()
    shards = scenario.topology.shards if scenario.topology.shards > 1 else settings.gate_shards
    if engine.witness == "flashgrid":
        services = services or find_services(urls[0], settings)
    return Target(
        urls=urls,
        admin_token=admin_token or settings.admin_token,
        services=services,
        witness=engine.make_witness(urls[0], services, shards),
        contract=engine.contract,
        ca=engine.ca,
    )


async def run(
    scenario: Scenario,
    folder: Path,
    say: Say,
    *,
    watch: Watch = lambda *_: None,
    target: Target | None = None,
    services: Services | None = None,
    command: str = "",
    code: Path | None = None,
    driver: Drive = drive,
    engine: Engine = FLASHGRID_ENGINE,
) -> None:
    """Run the scenario and write the record into `folder`, which is made.

    The run uses `target`, or else starts `engine` on `services`, or on private services if there are none.
    It stops what it started, also when it fails; when it is cancelled, it removes the folder, too.
    `command` repeats the run, `code` is the folder of another copy of the engine's package, `driver` sends
    the load. Raises RunError, EngineError, DriverError, FaultError or the engine's StackError.
    """
    make_folder(folder)
    # An engine that outlives the run remembers the keys of the run before.
    lasting = target is not None or services is not None
    scenario = engine.fit(scenario, say)
    plan = build_plan(scenario, key_prefix=f"{datetime.now(UTC):%Y%m%d%H%M%S%f}-" if lasting else "")
    plan = give_tokens(plan, engine.tokens) if engine.tokens else plan
    try:
        async with AsyncExitStack() as cleanup:
            if target is None:
                target = await _start_target(scenario, folder, say, services, code, engine, cleanup)
            else:
                check_targets(scenario.timeline(), None)
            if engine.reset:
                say("resetting the engine")
                await reset_engine(engine.reset)
            await _Run(scenario, target, engine, say, watch).record(plan, driver, folder, command)
    except asyncio.CancelledError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except Exception:
        drop_empty(folder)
        raise


async def _start_target(
    scenario: Scenario,
    folder: Path,
    say: Say,
    services: Services | None,
    code: Path | None,
    engine: Engine,
    cleanup: AsyncExitStack,
) -> Target:
    """Start an engine, and private services if none are given; `cleanup` stops all of them."""
    if services is None:
        say("starting private services")
        machines = scenario.topology.machines
        services = await cleanup.enter_async_context(private_services(say, machines))
    check_targets(scenario.timeline(), services, engine.stages)
    proxy, seen = None, services
    if behind := {fault.on for fault in scenario.timeline() if fault.of_network}:
        proxy, seen = await cleanup.enter_async_context(start_proxy(services, behind, scenario.seed))
    say("starting the engine")
    log = folder / ENGINE_LOG
    process: Engines | Programs
    if engine.programs:
        process = await cleanup.enter_async_context(start_programs(engine.programs, seen, log))
    else:
        process = await cleanup.enter_async_context(
            start_engines(seen, scenario.topology, scenario.engine, log, code)
        )
    return Target(
        urls=process.urls,
        admin_token=process.admin_token,
        services=services,
        witness=engine.make_witness(process.urls[0], services, scenario.topology.shards),
        contract=engine.contract,
        process=process,
        proxy=proxy,
    )


class _Run:
    """The load on an engine that is ready, and what is done, read and shown meanwhile."""

    def __init__(self, scenario: Scenario, target: Target, engine: Engine, say: Say, watch: Watch) -> None:
        self._scenario, self._target, self._say, self._watch = scenario, target, say, watch
        self._engine = engine
        self._conditions = [parse_abort(text) for text in scenario.abort_when]
        self._progress: Progress | None = None
        self._abort: Abort | None = None
        self._stop = asyncio.Event()

    async def record(self, plan: Plan, driver: Drive, folder: Path, command: str) -> None:
        """Open the sales, drive the load, await the drain, and write the record."""
        scenario, target, services = self._scenario, self._target, self._target.services
        self._trial = await self._engine.try_out(
            target.urls[0], target.admin_token, target.witness, self._say
        )
        if self._trial and not self._trial.wrong and "orders" not in self._trial.fitting:
            self._say("the witness does not show the order of a purchase that was made just now")
        t0_ns = _choose_start(scenario, len(plan))
        open_offers = partial(
            open_sales, target.urls, admin_token=target.admin_token, contract=target.contract, ca=target.ca
        )
        sales = await open_offers(scenario.sales, t0_ns=t0_ns)
        await target.witness.check(sales)
        versions = await read_versions(services)
        skew_s = await measure_skew(services.redis_url, services.postgres_url) if services else 0.0
        meter = ProcessMeter(
            services.pids if services else {},
            lambda: target.process.pids if target.process else (),
            services.find_pids if services else dict,
        )
        self._injector = Injector(scenario.timeline(), target.process, services, target.proxy)
        self._restocker = Restocker(scenario.restocks, sales, open_offers)
        async with self._injector, self._restocker:
            stores = target.witness.open_stores(sales)
            roles = Roles(services, scenario.topology.shards)
            async with Probe(stores, meter, roles) as probe, running(self._show(probe)):
                load = (plan, target.urls, scenario.driver, t0_ns, self._hear, self._stop)
                driven = await driver(LoadSpec(*load, contract=target.contract, ca=target.ca))
                restocks = await self._restocker.finish()
                faults = await self._injector.finish(early=self._abort is not None)
                state = await self._read_state(sales, driven)
            # The last time; where the view has failed before, this raises its error.
            self._watch(self._progress, probe.latest, faults)
        facts = RunFacts(
            scenario=scenario,
            command=command,
            started_at=driven.started_at,
            target=None if target.process else ", ".join(target.urls),
            engine=self._engine.name,
            contract=None if target.contract is FLASHGRID else target.contract,
            engine_death=target.process.death if target.process else None,
            commit=read_commit(),
            machine=describe_machine(),
            versions=versions,
            driver=driven.driver,
            restocks=restocks,
            skew_s=skew_s,
            aborted=self._end_abort(driven),
        )
        timeline = probe.timeline(driven.t0_ns, driven.started_at)
        write_record(folder, facts, driven.history, timeline, state, faults)
        seal(folder, list_record(folder))

    def _hear(self, progress: Progress) -> None:
        """Take the driver's progress: it tells the run's start, and whether the load is hopeless."""
        self._progress = progress
        self._injector.begin(progress.t0_ns)
        self._restocker.begin(progress.t0_ns)
        if self._abort is None and (abort := find_abort(self._conditions, progress)):
            self._abort = abort
            self._say(f"stopping the load: {abort.condition}, it is {abort.value:,.3g}")
            self._stop.set()

    async def _show(self, probe: Probe) -> None:
        while True:
            self._watch(self._progress, probe.latest, self._injector.intervals)
            await asyncio.sleep(TICK_S)

    async def _read_state(self, sales: Sequence[Sale], driven: DriveResult) -> FinalState:
        history = take_buys(driven.history)
        state = await self._target.witness.read(
            sales,
            history[history["outcome"] == "ACCEPTED"],
            self._scenario.drain_s,
            # Longer than the engine takes to notice that its gate has forgotten something.
            1.5 if any(fault.of_memory for fault in self._scenario.timeline()) else 0.0,
            self._trial,
        )
        reads = take_reads(driven.history)
        return await self._engine.doubt(state, self._target.urls[0], reads, self._trial, self._target.witness)

    def _end_abort(self, driven: DriveResult) -> Abort | None:
        """Return the abort, moved to a moment before which every request was meant to start."""
        if self._abort is None:
            return None
        last_ms = -(-int(driven.history["intended_ns"].max() + 1) // 1_000_000)
        return msgspec.structs.replace(self._abort, at_s=last_ms / 1e3)


def _choose_start(scenario: Scenario, requests: int) -> int | None:
    """Return the run's start on time.monotonic_ns() if a sale must know it; None: as soon as all is ready."""
    if all(sale.starts_in_s is None and sale.ends_in_s is None for sale in scenario.sales):
        return None
    # A slow machine opens 50 sales and prepares 50,000 requests in a second.
    ahead_s = 5 + len(scenario.sales) / 50 + requests / 50_000
    return time.monotonic_ns() + round(ahead_s * 1e9)
