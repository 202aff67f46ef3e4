"""The HTTP servers that are measured, each in the state that its name claims, and the proof that it was.

Every one of them gets the same bytes from wrk: user 101 buys product 1.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from engine.bus.connection import connect_bus
from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys
from engine.gate.pending import count_pending
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from simulation.bench.baselines import textbook
from simulation.bench.programs import WrkReport, run_wrk
from simulation.bench.results import Sample
from simulation.errors import BenchError
from simulation.scenario.schema import SaleOffer
from simulation.target.engine_process import EngineProcess, start_engine
from simulation.target.opening import open_sales
from simulation.target.process_meter import ProcessMeter
from simulation.target.services import Services

PLENTY: Final = 10**9
"""A stock that no measurement sells."""
DRAIN_S: Final = 180.0
"""Longest wait for the ledger to have everything."""
OPENED_AT_ONCE: Final = 16
GATE: Final = ("front-door 1", "redis")
"""The processes that a sold-out purchase meets."""


class HttpSubject(Protocol):
    """A server in one state."""

    name: str

    async def measure(self, connections: int, seconds: float) -> Sample:
        """Bring it into its state, load it, and let it come to rest."""
        ...


class Constant:
    """A server that answers 429, whatever comes."""

    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self.url = url

    async def measure(self, connections: int, seconds: float) -> Sample:
        """Load it."""
        report = await run_wrk(self.url, connections, seconds)
        return make_sample(report, "" if report.refused == report.requests else "not every answer was a 429")


class Textbook:
    """The textbook architecture, sold out or with units for everybody."""

    def __init__(self, url: str, services: Services, sold_out: bool) -> None:
        self.name = "textbook, sold out" if sold_out else "textbook, accepting"
        self.url = url
        self._services = services
        self._sold_out = sold_out

    async def measure(self, connections: int, seconds: float) -> Sample:
        """Load it; nobody consumes its queue, which is emptied afterwards."""
        stock = 0 if self._sold_out else PLENTY
        async with connect_redis(self._services.redis_url, 5_000) as redis:
            await redis.set(textbook.stock_key(1), stock)
            before = await _count_scripts(redis)
            report = await run_wrk(self.url, connections, seconds)
            decided = await _count_scripts(redis) - before
            accepted = stock - int(await redis.get(textbook.stock_key(1)) or 0)
        async with await connect_bus(str(self._services.amqp_url), "benchmark") as bus:
            channel = await bus.channel()
            await (await channel.declare_queue(textbook.QUEUE, passive=True)).purge()
        expected = report.requests if self._sold_out else 0
        fault = "" if report.refused == expected else f"{report.refused} of {report.requests} were refused"
        if decided < report.requests:
            fault = f"{decided} of {report.requests} requests reached Redis"
        return make_sample(report, fault, accepted=accepted)


async def _count_scripts(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


class Engine:
    """The engine under test with its private services; relay and fulfilment run all the time."""

    def __init__(self, process: EngineProcess, services: Services, redis: Redis) -> None:
        self.url = process.url
        self.services = services
        self.redis = redis
        self._process = process
        self._meter = ProcessMeter(services.pids, process.pid)
        self._keys = ShardKeys(0)

    async def open_sale(self, stock: int, product_id: int = 1) -> Sale:
        """Put a new sale of the product on offer."""
        return (await self.open_sales([SaleOffer(product_id=product_id, stock=stock)]))[0]

    async def open_past_sale(self) -> Sale:
        """A sale that a newer one has taken the place of.

        What is settled in it behind the gate's back is none of the current sale's units, which the engine
        would otherwise miss at the gate.
        """
        sale = await self.open_sale(PLENTY)
        await self.open_sale(PLENTY)
        return sale

    async def open_sales(self, offers: Sequence[SaleOffer]) -> list[Sale]:
        """Put many on offer, several at once; in any order."""
        groups = [offers[start::OPENED_AT_ONCE] for start in range(min(OPENED_AT_ONCE, len(offers)))]
        opened = await asyncio.gather(*(open_sales(self.url, group, None) for group in groups))
        return [sale for group in opened for sale in group]

    async def count_answers(self) -> dict[Outcome, int]:
        """Purchases answered since it started, by outcome."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        counts = dict.fromkeys(Outcome, 0)
        for family in text_string_to_metric_families(text):
            for sample in family.samples if family.name == "flashgrid_purchases" else ():
                if sample.name.endswith("_total"):
                    counts[Outcome(sample.labels["outcome"])] += int(sample.value)
        return counts

    async def count_pending(self) -> int:
        """Purchases accepted and not yet settled in the ledger."""
        values: Any = await self.redis.hvals(self._keys.pending)
        return count_pending(values)

    async def drain(self) -> float:
        """Wait until the ledger has everything; returns the seconds it took. Raises BenchError."""
        started = time.monotonic()
        while (behind := await self.count_pending()) or await self.redis.xlen(self._keys.outbox):
            if time.monotonic() - started > DRAIN_S:
                raise BenchError(f"the ledger is {behind} orders behind after {DRAIN_S} s")
            await asyncio.sleep(0.02)
        return time.monotonic() - started

    async def measure(
        self, outcome: Outcome, connections: int, seconds: float, products: int | None = None
    ) -> Sample:
        """Load it by wrk, and prove by its own count that every purchase had the outcome."""
        before = await self.count_answers()
        self._meter.read()
        report = await run_wrk(self.url, connections, seconds, products)
        backlog = await self.count_pending()
        cpu = {name: usage.cpu_percent / 100 for name, usage in self._meter.read().items()}
        drain_s = await self.drain()
        after = await self.count_answers()
        counts = {word: after[word] - before[word] for word in Outcome if after[word] > before[word]}
        fault = ""
        if set(counts) != {outcome}:
            fault = "answers were " + ", ".join(f"{count} {word}" for word, count in counts.items())
        elif counts[outcome] < report.requests:
            fault = f"it counts {counts[outcome]} answers, wrk {report.requests}"
        elif report.refused != (0 if outcome is Outcome.ACCEPTED else report.requests):
            fault = f"{report.refused} of {report.requests} were refused"
        accepted = counts.get(Outcome.ACCEPTED, 0)
        return make_sample(report, fault, cpu, accepted, backlog, drain_s if accepted else None)

    def front_door_rss_mib(self) -> float:
        """Resident memory of the front door."""
        return self._meter.read()["front-door 1"].rss_mib


class EngineInState:
    """The engine, sold out or accepting."""

    def __init__(self, engine: Engine, sold_out: bool) -> None:
        self.name = "engine, sold out" if sold_out else "engine, accepting"
        self._engine = engine
        self._sold_out = sold_out

    async def measure(self, connections: int, seconds: float) -> Sample:
        """Open a sale, load it, and wait until the ledger has everything."""
        await self._engine.open_sale(0 if self._sold_out else PLENTY)
        outcome = Outcome.SOLD_OUT if self._sold_out else Outcome.ACCEPTED
        return await self._engine.measure(outcome, connections, seconds)


@asynccontextmanager
async def serve_engine(services: Services, log: Path) -> AsyncIterator[Engine]:
    """An engine with default settings: one front-door worker, relay, fulfilment."""
    async with (
        start_engine(services, {}, log) as process,
        connect_redis(services.redis_url, 10_000) as redis,
    ):
        yield Engine(process, services, redis)


def make_sample(
    report: WrkReport,
    fault: str = "",
    cpu: dict[str, float] | None = None,
    accepted: int = 0,
    backlog: int = 0,
    drain_s: float | None = None,
) -> Sample:
    """A sample of what wrk reported."""
    return Sample(
        requests=report.requests,
        rps=round(report.rps, 1),
        refused=report.refused,
        socket_errors=report.socket_errors,
        p50_ms=report.p50_us / 1000,
        p99_ms=report.p99_us / 1000,
        fault=fault or (f"{report.socket_errors} socket errors" if report.socket_errors else ""),
        cpu=cpu or {},
        accepted=accepted,
        backlog=backlog,
        drain_s=drain_s,
    )
