"""A run of the benchmark: starts what it needs, measures one thing after the other, writes what it found."""

import os
import shutil
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from simulation.bench.measures import (
    against,
    clients,
    disk,
    front_door,
    growth,
    ledger,
    memory,
    mix,
    open_loop,
)
from simulation.bench.options import SERVED_WITHOUT_ENGINE, Options, Subject
from simulation.bench.page import write_page
from simulation.bench.programs import Program, find_program, serve_baseline, serve_nginx
from simulation.bench.results import Against, Bench, Scaling
from simulation.bench.rounds import Rounds, Say
from simulation.bench.samples import Cost
from simulation.bench.scaling.control_groups import throttle
from simulation.bench.scaling.copies import measure_copies
from simulation.bench.scaling.measure import measure_scaling
from simulation.bench.subjects import STATES, Engine, measure_refusals, measure_textbook, serve_engine
from simulation.errors import BenchError
from simulation.record.facts import write_json
from simulation.record.folder import make_folder
from simulation.target.engine_process import private_services
from simulation.target.machine import ROOT, describe_machine, read_commit, read_versions
from simulation.target.services import Services

_NEEDS: Final = {
    "wrk": {
        Subject.NGINX, Subject.AIOHTTP, Subject.TEXTBOOK, Subject.SOLD_OUT, Subject.ACCEPTING,
        Subject.CONNECTIONS, Subject.PRODUCTS, Subject.ORDERS, Subject.MEMORY, Subject.CLIENTS, Subject.LOOKS,
        Subject.GROWTH, Subject.COPIES,
    },
    "nginx": {Subject.NGINX, Subject.DRIVER, Subject.CONNECTIONS, Subject.CLIENTS, Subject.LOOKS},
}  # fmt: skip
"""The subjects that are measured with a program that may not be installed."""
_STATE_OF: Final = {Subject.SOLD_OUT: "sold out", Subject.ACCEPTING: "accepting"}


async def run_bench(options: Options, folder: Path, say: Say, command: str) -> None:
    """Measure what `options` ask for; write bench.json, bench.md and plots into `folder`, which is made.

    Everything that it started is stopped when it returns; a run that is cancelled leaves no folder either.
    Raises BenchError, RunError, EngineError, DriverError or the engine's StackError.
    """
    # Where there is no other engine, Python would start this one instead.
    if options.against and not (options.against / "engine" / "__init__.py").is_file():
        raise BenchError(f"{options.against} is no checkout: it has no package named engine")
    make_folder(folder)
    try:
        async with AsyncExitStack() as cleanup:
            bench = await _Run(options, folder, say, cleanup).measure(command)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    write_json(bench, folder / "bench.json")
    write_page(bench, folder)


class _Run:
    def __init__(self, options: Options, folder: Path, say: Say, cleanup: AsyncExitStack) -> None:
        self._options = options
        self._log = folder / "engine.log"
        self._say = say
        self._cleanup = cleanup
        self._subjects = set() if options.against else set(options.subjects)
        self._notes: list[str] = []
        self._rounds = Rounds(options.rounds, options.seconds, say)

    async def measure(self, command: str) -> Bench:
        started = time.monotonic()
        load_before = os.getloadavg()[0]
        nginx = await self._provide_nginx()
        services = await self._provide_services()
        bench = Bench(
            started_at=datetime.now(UTC),
            command=command,
            commit=read_commit(),
            machine=describe_machine(),
            versions=await read_versions(services),
            load_before=round(load_before, 2),
            rounds=self._options.rounds,
            seconds=self._options.seconds,
            # Shorter, since each cost is measured at many sizes.
            growth_seconds=max(1.0, self._options.seconds * 2 / 3),
            notes=self._notes,
        )
        if Subject.DISK in self._subjects:
            bench.disk = await disk.measure_disk(self._rounds)
        if services and self._options.against:
            bench.against = await self._compare(services, self._options.against)
        elif services:
            async with serve_engine(services, self._log) as engine:
                await self._measure_servers(bench, nginx, engine)
                await self._measure_engine(bench, nginx, engine)
            await self._measure_memory(bench, services)
        else:
            await self._measure_servers(bench, nginx, None)
        bench.scaling = await self._measure_scaling(bench.growth_seconds)
        if Subject.COPIES in self._subjects:
            bench.copies = await measure_copies(self._rounds, self._note)
        bench.costs += [cost for curve in bench.growth for cost in curve.costs]
        bench.took_s = round(time.monotonic() - started, 1)
        return bench

    async def _provide_nginx(self) -> Program | None:
        """Leave out the subjects that lack a program; return nginx, None if nothing needs it."""
        for program, subjects in _NEEDS.items():
            if skipped := self._subjects & subjects:
                try:
                    find_program(program)
                except BenchError as missing:
                    self._subjects -= skipped
                    self._note(f"{missing}; skipped: {', '.join(sorted(skipped))}")
        if not self._subjects & _NEEDS["nginx"]:
            return None
        return await self._cleanup.enter_async_context(serve_nginx())

    async def _provide_services(self) -> Services | None:
        if not (self._options.against or self._subjects - SERVED_WITHOUT_ENGINE):
            return None
        self._say("starting private services and the engine")
        return await self._cleanup.enter_async_context(private_services(self._note))

    async def _compare(self, services: Services, checkout: Path) -> Against:
        async with (
            private_services(self._say) as others,
            # Both are started in the same way, each in the folder of its code.
            serve_engine(services, self._log, ROOT) as this,
            serve_engine(others, self._log.with_name("other-engine.log"), checkout) as other,
        ):
            return await against.compare_engines(this, other, read_commit(checkout), self._rounds)

    async def _measure_servers(self, bench: Bench, nginx: Program | None, engine: Engine | None) -> None:
        """Measure all HTTP servers by wrk, and the driver."""
        servers: front_door.Servers = {}
        if nginx and Subject.NGINX in self._subjects:
            servers["nginx"] = partial(measure_refusals, nginx)
        if Subject.AIOHTTP in self._subjects:
            bare = await self._cleanup.enter_async_context(serve_baseline("bare"))
            servers["aiohttp, bare"] = partial(measure_refusals, bare)
        if Subject.TEXTBOOK in self._subjects and engine:
            servers |= await self._provide_textbook(engine.services)
        for subject, state in _STATE_OF.items():
            if subject in self._subjects and engine:
                servers[f"engine, {state}"] = partial(engine.measure_state, STATES[state])
        bench.front_door = await front_door.measure_servers(servers, self._rounds)
        bench.ratios = front_door.compare_rates(bench.front_door)
        bench.costs += [
            Cost.of_samples(row.subject, row.connections, row.samples) for row in bench.front_door
        ]
        bench.persisted = front_door.describe_persistence(bench.front_door)
        if nginx and Subject.DRIVER in self._subjects:
            bench.driver = await open_loop.measure_driver(nginx.url, self._rounds)

    async def _provide_textbook(self, services: Services) -> front_door.Servers:
        if services.amqp_url is None:
            self._note("textbook skipped: there is no RabbitMQ")
            return {}
        server = serve_baseline("textbook", services.redis_url, services.amqp_url)
        program = await self._cleanup.enter_async_context(server)
        return {
            f"textbook, {state}": partial(measure_textbook, program, services, stock)
            for state, stock in STATES.items()
        }

    async def _measure_engine(self, bench: Bench, nginx: Program | None, engine: Engine) -> None:
        chosen, rounds, sizes = self._subjects, self._rounds, self._options.sizes
        shorter = replace(rounds, seconds=bench.growth_seconds)
        if nginx and Subject.CLIENTS in chosen:
            bench.clients, costs = await clients.measure_clients(engine, nginx, sizes.clients, shorter)
            bench.costs += costs
        if nginx and Subject.LOOKS in chosen:
            bench.looks, costs = await clients.measure_looks(
                engine, nginx, sizes.looked_at, sizes.lookers, shorter
            )
            bench.costs += costs
        loads: list[tuple[str, float | None]] = []
        if Subject.RESPONSE in chosen:
            loads += [(state, None) for state in STATES]
        if Subject.CROWD in chosen:
            loads.append(("sold out", sizes.crowd_rps))
        for state, crowd_rps in loads:
            capacity, responses = await open_loop.measure_responses(engine, state, rounds, crowd_rps)
            bench.capacities.append(capacity)
            bench.responses += responses
        if Subject.MIX in chosen:
            rates = mix.Rates(*sizes.mix_rps)
            bench.mix, bench.mix_disk_p99_ms, costs = await mix.measure_mix(engine, rates, rounds, self._note)
            bench.costs += costs
        if nginx and Subject.CONNECTIONS in chosen:
            bench.growth += await growth.grow_connections(engine, nginx, sizes.connections, shorter)
        if Subject.PRODUCTS in chosen:
            bench.growth += await growth.grow_products(engine, sizes.products, shorter)
        if Subject.STOCK in chosen:
            bench.growth.append(await growth.grow_stock(engine, sizes.stock, shorter))
        if Subject.LEDGER in chosen:
            bench.ledger = await ledger.measure_ledger(engine, rounds)
        # Last, since the ledger stays large.
        if Subject.ORDERS in chosen:
            bench.growth += await growth.grow_orders(engine, sizes.orders, shorter)

    async def _measure_memory(self, bench: Bench, services: Services) -> None:
        if Subject.MEMORY not in self._subjects:
            return
        sizes = self._options.sizes
        # A fresh engine for each: memory that it used and freed hides what it takes now.
        async with serve_engine(services, self._log) as engine:
            bench.idle = await memory.weigh_connections(engine, sizes.idle, self._say, self._note)
        async with serve_engine(services, self._log) as engine:
            window_s = max(1.0, min(10.0, sizes.memory_requests / 500_000))
            bench.memory = await memory.watch_memory(engine, sizes.memory_requests, window_s, self._say)

    async def _measure_scaling(self, seconds: float) -> list[Scaling]:
        if Subject.GROWTH not in self._subjects:
            return []
        try:
            with throttle(1, {"trial": []}):
                pass
        except BenchError as missing:
            self._note(f"{missing}; skipped: {Subject.GROWTH}")
            return []
        sizes = self._options.sizes
        return await measure_scaling(sizes.doors, sizes.shards, replace(self._rounds, seconds=seconds))

    def _note(self, line: str) -> None:
        self._notes.append(line)
        self._say(line)
