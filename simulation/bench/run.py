"""A run of the benchmark: starts what it needs, measures one thing after the other, writes what it found."""

import os
import shutil
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from simulation.bench.measures.disk import measure_disk
from simulation.bench.measures.front_door import compare
from simulation.bench.measures.growth import grow_connections, grow_orders, grow_products, grow_stock
from simulation.bench.measures.ledger import measure_ledger
from simulation.bench.measures.memory import watch_memory, weigh_connections
from simulation.bench.measures.open_loop import measure_crowd, measure_driver, measure_responses
from simulation.bench.options import SERVED_WITHOUT_ENGINE, Options, Say, Subject
from simulation.bench.page import write_page
from simulation.bench.programs import describe_missing, find_program, serve_baseline, serve_nginx
from simulation.bench.results import Bench
from simulation.bench.subjects import Constant, Engine, EngineInState, HttpSubject, Textbook, serve_engine
from simulation.run import make_folder
from simulation.target.engine_process import private_services
from simulation.target.machine import describe_machine, read_commit, read_versions
from simulation.target.services import Services

_BY_WRK: Final = frozenset(
    {
        Subject.NGINX, Subject.AIOHTTP, Subject.TEXTBOOK, Subject.SOLD_OUT, Subject.ACCEPTING,
        Subject.CONNECTIONS, Subject.PRODUCTS, Subject.ORDERS, Subject.MEMORY,
    }
)  # fmt: skip
_BESIDE_NGINX: Final = frozenset({Subject.NGINX, Subject.DRIVER, Subject.CONNECTIONS})


async def run_bench(options: Options, folder: Path, say: Say, command: str) -> None:
    """Measures what `options` ask for and writes bench.json, bench.md and plots into `folder`, which is made.

    What it started is stopped when it returns; when it is cancelled nothing is left of the folder either.
    Raises BenchError, RunError, EngineError, DriverError or the engine's StackError.
    """
    make_folder(folder)
    try:
        async with AsyncExitStack() as cleanup:
            bench = await _Run(options, folder, say, cleanup).measure(command)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / "bench.json").write_bytes(msgspec.json.format(msgspec.json.encode(bench)) + b"\n")
    write_page(bench, folder)


class _Run:
    def __init__(self, options: Options, folder: Path, say: Say, cleanup: AsyncExitStack) -> None:
        self._options = options
        self._log = folder / "engine.log"
        self._say = say
        self._cleanup = cleanup
        self._subjects = set(options.subjects)
        self._notes: list[str] = []

    async def measure(self, command: str) -> Bench:
        started = time.monotonic()
        load_before = os.getloadavg()[0]
        nginx_url = await self._provide_nginx()
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
            growth_seconds=self._options.growth_seconds,
            notes=self._notes,
        )
        if Subject.DISK in self._subjects:
            bench.disk = await measure_disk(self._options.rounds, self._options.seconds, self._say)
        if services is None:
            await self._measure_servers(bench, nginx_url, None)
        else:
            async with serve_engine(services, self._log) as engine:
                await self._measure_servers(bench, nginx_url, engine)
                await self._measure_engine(bench, nginx_url, engine)
            await self._measure_memory(bench, services)
        bench.took_s = round(time.monotonic() - started, 1)
        return bench

    async def _provide_nginx(self) -> str | None:
        if find_program("wrk") is None and (skipped := self._subjects & _BY_WRK):
            self._note(f"{describe_missing('wrk')}; skipped: {', '.join(sorted(skipped))}")
            self._subjects -= skipped
        if not self._subjects & _BESIDE_NGINX:
            return None
        if find_program("nginx") is None:
            skipped = self._subjects & {Subject.NGINX, Subject.DRIVER}
            self._note(f"{describe_missing('nginx')}; skipped: {', '.join(sorted(skipped))}")
            self._subjects -= skipped
            return None
        return await self._cleanup.enter_async_context(serve_nginx())

    async def _provide_services(self) -> Services | None:
        if not self._subjects - SERVED_WITHOUT_ENGINE:
            return None
        self._say("starting private services and the engine")
        return await self._cleanup.enter_async_context(private_services(self._note))

    async def _measure_servers(self, bench: Bench, nginx_url: str | None, engine: Engine | None) -> None:
        """All HTTP servers by wrk, and the driver."""
        options, chosen = self._options, self._subjects
        async with AsyncExitStack() as cleanup:
            servers: list[HttpSubject] = []
            if Subject.NGINX in chosen and nginx_url:
                servers.append(Constant("nginx", nginx_url))
            if Subject.AIOHTTP in chosen:
                url = await cleanup.enter_async_context(serve_baseline("bare"))
                servers.append(Constant("aiohttp, bare", url))
            if Subject.TEXTBOOK in chosen and engine:
                servers += await self._provide_textbook(engine.services, cleanup)
            if engine:
                states = {Subject.SOLD_OUT: True, Subject.ACCEPTING: False}
                servers += [EngineInState(engine, out) for name, out in states.items() if name in chosen]
            bench.front_door, bench.ratios, bench.persisted = await compare(
                servers, options.rounds, options.seconds, self._say
            )
        if Subject.DRIVER in chosen and nginx_url:
            bench.driver = await measure_driver(nginx_url, options.rounds, options.seconds, self._say)

    async def _provide_textbook(self, services: Services, cleanup: AsyncExitStack) -> list[HttpSubject]:
        if services.amqp_url is None:
            self._note("textbook skipped: there is no RabbitMQ")
            return []
        server = serve_baseline("textbook", services.redis_url, services.amqp_url)
        url = await cleanup.enter_async_context(server)
        return [Textbook(url, services, sold_out) for sold_out in (True, False)]

    async def _measure_engine(self, bench: Bench, nginx_url: str | None, engine: Engine) -> None:
        options, chosen, say = self._options, self._subjects, self._say
        rounds, seconds, sizes = options.rounds, options.seconds, options.sizes
        if Subject.RESPONSE in chosen:
            for sold_out in (True, False):
                capacity, responses = await measure_responses(engine, sold_out, rounds, seconds, say)
                bench.capacities.append(capacity)
                bench.responses += responses
        if Subject.CROWD in chosen:
            capacity, response = await measure_crowd(engine, sizes.crowd_rps, rounds, seconds, say)
            bench.capacities.append(capacity)
            bench.responses.append(response)
        seconds = options.growth_seconds
        if Subject.CONNECTIONS in chosen:
            bench.growth += await grow_connections(engine, nginx_url, sizes.connections, rounds, seconds, say)
        if Subject.PRODUCTS in chosen:
            bench.growth += await grow_products(engine, sizes.products, rounds, seconds, say)
        if Subject.STOCK in chosen:
            bench.growth.append(await grow_stock(engine, sizes.stock, rounds, seconds, say))
        if Subject.LEDGER in chosen:
            bench.ledger = await measure_ledger(engine, rounds, options.seconds, say)
        # Last, since the ledger stays large.
        if Subject.ORDERS in chosen:
            bench.growth += await grow_orders(engine, sizes.orders, rounds, seconds, say)

    async def _measure_memory(self, bench: Bench, services: Services) -> None:
        if Subject.MEMORY not in self._subjects:
            return
        sizes = self._options.sizes
        # A fresh engine for each: memory that it had used and freed would hide what it takes now.
        async with serve_engine(services, self._log) as engine:
            bench.idle, notes = await weigh_connections(engine, sizes.idle, self._say)
            for note in notes:
                self._note(note)
        async with serve_engine(services, self._log) as engine:
            window_s = max(1.0, min(10.0, sizes.memory_requests / 500_000))
            bench.memory = await watch_memory(engine, sizes.memory_requests, window_s, self._say)

    def _note(self, line: str) -> None:
        self._notes.append(line)
        self._say(line)
