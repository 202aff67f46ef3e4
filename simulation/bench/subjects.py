"""The servers under measurement: each is brought into a state, loaded, and shown to have been in that state.

Without other requests each of them gets the same bytes from wrk: user 101 buys product 1.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

from engine.bus.connection import connect_bus
from engine.gate.clearing import count_pending
from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from simulation.bench.baselines import textbook
from simulation.bench.programs import Program, run_wrk
from simulation.bench.samples import Sample
from simulation.bench.spellings import PLAIN
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
FRONT_DOOR: Final = "front-door 1"
GATE: Final = (FRONT_DOOR, "redis")
"""The processes that a sold-out purchase meets."""
STATES: Final = {"sold out": 0, "accepting": PLENTY}
"""The stock of a sale in each state."""


async def measure_refusals(
    server: Program,
    connections: int,
    seconds: float,
    requests: Sequence[bytes] = PLAIN,
    proxy: Program | None = None,
) -> Sample:
    """Load a server that answers 429 to everything, through a proxy if there is one."""
    programs = [server, proxy] if proxy else [server]
    meter = ProcessMeter({program.name: program.pid for program in programs})
    before_s, wrote = meter.read_cpu_s(), _count_errors(programs)
    sample = await run_wrk((proxy or server).url, connections, seconds, requests)
    sample = replace(sample, cpu_s=_subtract(meter.read_cpu_s(), before_s) | sample.cpu_s)
    if sample.refused != sample.requests:
        return replace(sample, fault="not every answer was a 429")
    return replace(sample, fault="nginx wrote errors") if _count_errors(programs) > wrote else sample


def _count_errors(programs: Sequence[Program]) -> int:
    return sum(program.errors.stat().st_size for program in programs if program.errors)


def _subtract(after_s: Mapping[str, float], before_s: Mapping[str, float]) -> dict[str, float]:
    return {name: round(spent - before_s.get(name, 0.0), 6) for name, spent in after_s.items()}


async def measure_textbook(
    server: Program, services: Services, stock: int, connections: int, seconds: float
) -> Sample:
    """Load the textbook architecture; nobody consumes its queue, which is purged afterwards."""
    meter = ProcessMeter(services.pids | {server.name: server.pid})
    async with connect_redis(services.redis_url, 5_000) as redis:
        await redis.set(textbook.stock_key(1), stock)
        before = await _count_scripts(redis)
        before_s = meter.read_cpu_s()
        sample = await run_wrk(server.url, connections, seconds)
        cpu_s = _subtract(meter.read_cpu_s(), before_s) | sample.cpu_s
        decided = await _count_scripts(redis) - before
        accepted = stock - int(await redis.get(textbook.stock_key(1)) or 0)
    async with await connect_bus(str(services.amqp_url), "benchmark") as bus:
        channel = await bus.channel()
        await (await channel.declare_queue(textbook.QUEUE, passive=True)).purge()
    fault = sample.fault
    if decided < sample.requests:
        fault = f"{decided} of {sample.requests} requests reached Redis"
    elif sample.refused != (0 if stock else sample.requests):
        fault = f"{sample.refused} of {sample.requests} were refused"
    return replace(sample, fault=fault, accepted=accepted, cpu_s=cpu_s)


async def _count_scripts(redis: Redis) -> int:
    stats = await redis.info("commandstats")
    return int(stats.get("cmdstat_evalsha", {}).get("calls", 0))


async def count_answers(url: str) -> Counter[Outcome]:
    """Return the purchases that a front door has answered since it started, by outcome."""
    async with aiohttp.ClientSession() as session, session.get(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
    samples = [sample for family in families for sample in family.samples]
    return Counter(
        {
            Outcome(sample.labels["outcome"]): int(sample.value)
            for sample in samples
            if sample.name == "flashgrid_purchases_total"
        }
    )


class Engine:
    """The engine under test with its private services; all of its stages run all the time."""

    def __init__(self, process: EngineProcess, services: Services, redis: Redis) -> None:
        self.url = process.url
        self.services = services
        self.redis = redis
        self._process = process
        self._admin_token = process.admin_token
        self._meter = ProcessMeter(services.pids, lambda: [process.pid])
        self._keys = ShardKeys(0)

    async def open_sale(self, stock: int, product_id: int = 1) -> Sale:
        """Put a new sale of the product on offer."""
        return (await self.open_sales([SaleOffer(product_id=product_id, stock=stock)]))[0]

    async def open_past_sale(self) -> Sale:
        """Open a sale, then a newer one of the same product, and return the older one.

        Orders can be settled in it without the gate: the engine audits the units of the newer sale only.
        """
        sale = await self.open_sale(PLENTY)
        await self.open_sale(PLENTY)
        return sale

    async def open_sales(self, offers: Sequence[SaleOffer]) -> list[Sale]:
        """Put many sales on offer, several at once; return them in any order."""
        groups = [offers[start::OPENED_AT_ONCE] for start in range(min(OPENED_AT_ONCE, len(offers)))]
        opened = await asyncio.gather(
            *(open_sales((self.url,), group, self._admin_token) for group in groups)
        )
        return [sale for group in opened for sale in group]

    async def count_pending(self) -> int:
        """Return the number of purchases that are accepted and not yet settled in the ledger."""
        values: Any = await self.redis.hvals(self._keys.pending)
        return count_pending(values)

    async def drain(self) -> float:
        """Wait until the ledger has everything; return the seconds that it took. Raises BenchError."""
        started = time.monotonic()
        while (behind := await self.count_pending()) or await self.redis.xlen(self._keys.outbox):
            if time.monotonic() - started > DRAIN_S:
                raise BenchError(f"the ledger is {behind} orders behind after {DRAIN_S} s")
            await asyncio.sleep(0.02)
        return time.monotonic() - started

    async def measure(
        self,
        outcome: Outcome | None,
        connections: int,
        seconds: float,
        requests: Sequence[bytes] = PLAIN,
        proxy: Program | None = None,
    ) -> Sample:
        """Load the engine by wrk, through a proxy if there is one, and wait until the ledger has everything.

        The sample has a fault unless the engine's own count says that every purchase had the outcome; without
        an outcome, unless nobody bought and every look was answered.
        """
        answers = await count_answers(self.url)
        self._meter.read()
        async with self.count_cpu(proxy) as cpu_s:
            sample = await run_wrk((proxy or self).url, connections, seconds, requests)
            backlog = await self.count_pending()
            cpu = {name: usage.cpu_percent / 100 for name, usage in self._meter.read().items()}
            drain_s = await self.drain()
        counts = await count_answers(self.url) - answers
        fault = sample.fault
        if set(counts) != ({outcome} if outcome else set()):
            fault = "answers were " + ", ".join(f"{count} {word}" for word, count in counts.items())
        elif outcome and counts[outcome] < sample.requests:
            fault = f"it counts {counts[outcome]} answers, wrk {sample.requests}"
        elif sample.refused != (sample.requests if outcome is Outcome.SOLD_OUT else 0):
            fault = f"{sample.refused} of {sample.requests} were refused"
        accepted = counts[Outcome.ACCEPTED]
        return replace(
            sample,
            fault=fault,
            cpu=cpu,
            cpu_s=cpu_s | sample.cpu_s,
            accepted=accepted,
            backlog=backlog,
            drain_s=drain_s if accepted else None,
        )

    @asynccontextmanager
    async def count_cpu(self, proxy: Program | None = None) -> AsyncIterator[dict[str, float]]:
        """Fill the dictionary, at the end, with the processor time of each process meanwhile, in seconds."""
        meter = ProcessMeter({proxy.name: proxy.pid}) if proxy else None
        spent_s: dict[str, float] = {}
        before_s = await self._read_cpu_s() | (meter.read_cpu_s() if meter else {})
        yield spent_s
        after_s = await self._read_cpu_s() | (meter.read_cpu_s() if meter else {})
        spent_s |= _subtract(after_s, before_s)

    async def measure_state(self, stock: int, connections: int, seconds: float) -> Sample:
        """Open a sale of that stock, 0 or PLENTY, and load it."""
        await self.open_sale(stock)
        return await self.measure(Outcome.ACCEPTED if stock else Outcome.SOLD_OUT, connections, seconds)

    async def _read_cpu_s(self) -> dict[str, float]:
        """Return the processor time of each process so far.

        The system counts in ticks of 10 ms, too coarse for what a sold-out sale costs Redis; Redis counts its
        own time in microseconds.
        """
        info = await self.redis.info("cpu")
        kinds = ("user", "sys", "user_children", "sys_children")
        return self._meter.read_cpu_s() | {"redis": sum(info[f"used_cpu_{kind}"] for kind in kinds)}

    def gate_pids(self) -> dict[str, int]:
        """Return the processes that a purchase waits for, by name."""
        [front_door] = self._process.find_stage("front-door")
        return {FRONT_DOOR: front_door.pid, "redis": self.services.pids["redis"]}

    def front_door_rss_mib(self) -> float:
        """Return the resident memory of the front door."""
        return self._meter.read()[FRONT_DOOR].rss_mib


@asynccontextmanager
async def serve_engine(services: Services, log: Path, code: Path | None = None) -> AsyncIterator[Engine]:
    """Serve with default settings: one front-door worker and all other stages; `code` is another checkout."""
    async with (
        start_engine(services, {}, log, code) as process,
        connect_redis(services.redis_url, 10_000) as redis,
    ):
        yield Engine(process, services, redis)
