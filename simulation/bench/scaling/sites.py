"""What is measured: throttled machines of one kind, with services and stages that are not throttled."""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, Final, NamedTuple

import psutil
from redis.exceptions import RedisError

from engine.gate.clearing import count_pending
from engine.gate.client import Shards, connect_shards
from engine.gate.keys import shard_of
from engine.local.cluster.redis import connect_nodes, introduce, launch_node
from engine.local.ports import free_port
from engine.local.process import HERE, ProcessId, kill_processes
from engine.model.purchase import Outcome
from engine.settings import Settings
from simulation.bench.programs import run_wrk
from simulation.bench.results import ScaledRound
from simulation.bench.samples import Sample
from simulation.bench.scaling.control_groups import ControlGroup, Periods, throttle
from simulation.bench.spellings import HOST, JSON, LENGTH, write_buy
from simulation.bench.subjects import DRAIN_S, PLENTY, count_answers
from simulation.errors import BenchError
from simulation.scenario.schema import SaleOffer
from simulation.target.engine_process import EngineProcess, start_engine
from simulation.target.opening import open_sales
from simulation.target.process_meter import ProcessMeter
from simulation.target.services import Services

USERS: Final = 500
"""About as many as there are purchases in a batch of a shard."""
OFFERS: Final[Mapping[str, Mapping[str, int]]] = {
    "sold out": {"stock": 0},
    "accepting": {"stock": PLENTY},
    "limit reached": {"stock": PLENTY, "limit": 1},
    "accepting within a limit": {"stock": PLENTY, "limit": 1_000_000},
}
"""Sales by the state that they are in, or come to by being loaded."""
ACCEPTING: Final = ("accepting", "accepting within a limit")
USERS_OF: Final = {"limit reached": USERS, "accepting within a limit": USERS}
"""How many shoppers buy; in other states one is enough, as the gate looks up nothing for each of them."""
WARM_UPS: Final = 20
"""Most loads of a second until a sale is in its state."""
START_SHARE: Final = 0.05
"""Of a core, for each machine until it is measured."""
SLOTS: Final = 16_384
"""Of a Redis Cluster."""
MEET_S: Final = 30.0
"""Longest time until the nodes of a cluster know each other."""


class _Reading(NamedTuple):
    """Counters at one moment."""

    at_s: float
    cpu_s: dict[str, float]
    machine_s: float
    periods: list[Periods]


class Site:
    """Engines on the same services, and the groups that throttle some of the processes."""

    def __init__(
        self,
        engines: Sequence[EngineProcess],
        shards: Shards,
        meter: ProcessMeter,
        groups: Mapping[str, ControlGroup],
    ) -> None:
        self._engines = engines
        self._shards = shards
        self._meter = meter
        self._groups = groups
        self._state = ""
        self._requests: list[bytes] = []
        # A product for each shard, so that each gets the same share of the purchases.
        products = {shard_of(number, shards).shard: number for number in range(1_000, 0, -1)}
        self._products = [products[shard.shard] for shard in shards]

    @property
    def product_id(self) -> int:
        """The product that is on sale, of the first shard."""
        return self._products[0]

    def hold_to(self, cores: float) -> None:
        """Let each machine have such a share of a core."""
        for group in self._groups.values():
            group.hold_to(cores)

    async def prepare(self, state: str, doors: int, connections: int) -> None:
        """Open sales in one of OFFERS, and load them until they are in that state. Raises BenchError."""
        self._state = state
        offers = [SaleOffer(product_id=product, **OFFERS[state]) for product in self._products]
        await open_sales((self._engines[0].url,), offers, self._engines[0].admin_token)
        users = range(1, 1 + USERS_OF.get(state, 1))
        bodies = [f'{{"userId":{user},"productId":{each}}}' for user in users for each in self._products]
        self._requests = [write_buy(HOST, JSON, LENGTH, body=body) for body in bodies]
        for _ in range(WARM_UPS):
            found = await self.measure(doors, connections, 1)
            # Each front door is sent all of them in turn.
            if not found.fault and found.requests >= doors * len(bodies):
                return
        raise BenchError(f"{state} is not reached by {found.requests} requests a second: {found.fault}")

    async def measure(self, doors: int, connections: int, seconds: float) -> ScaledRound:
        """Load so many front doors, each from so many connections, and wait until the ledger has everything.

        Without a front door, let the engines rest for as long.
        """
        loaded_engines = self._engines[:doors]
        answers = await _count(loaded_engines)
        before = self._read()
        if doors:
            loads = [run_wrk(engine.url, connections, seconds, self._requests) for engine in loaded_engines]
            samples = await asyncio.gather(*loads)
        else:
            await asyncio.sleep(seconds)
            samples = []
        loaded = self._read()
        await self.drain()
        end = self._read()
        loaded_groups = doors if len(self._engines) > 1 else len(self._groups)
        waits = [
            (now.throttled - then.throttled) / max(1, now.all - then.all)
            for then, now in zip(before.periods, loaded.periods, strict=True)
        ][:loaded_groups]
        took_s = loaded.at_s - before.at_s
        return _add_up(
            samples,
            await _count(loaded_engines) - answers,
            self._state in ACCEPTING,
            cores=round((loaded.machine_s - before.machine_s) / took_s, 3),
            throttled=round(mean(waits), 3) if waits else 0.0,
            seconds=round(end.at_s - before.at_s, 3),
            cpu_s={name: round(end.cpu_s[name] - before.cpu_s.get(name, 0.0), 6) for name in end.cpu_s},
        )

    async def drain(self) -> None:
        """Wait until the ledger has everything. Raises BenchError."""
        deadline = time.monotonic() + DRAIN_S
        while behind := [shard.shard for shard in self._shards if not await _is_drained(shard)]:
            if time.monotonic() > deadline:
                raise BenchError(f"shards {behind} are not settled after {DRAIN_S} s")
            await asyncio.sleep(0.02)

    def _read(self) -> _Reading:
        times = psutil.cpu_times()
        # What a hypervisor gave to others was not there either.
        machine_s = sum(times[:3]) + sum(getattr(times, name, 0.0) for name in ("irq", "softirq", "steal"))
        periods = [group.read_periods() for group in self._groups.values()]
        cpu_s = self._meter.read_cpu_s() | {name: group.read_cpu_s() for name, group in self._groups.items()}
        return _Reading(time.monotonic(), cpu_s, machine_s, periods)


async def _count(engines: Sequence[EngineProcess]) -> Counter[Outcome]:
    """Return what the engines have answered so far: wrk leaves out what is under way at its end."""
    return sum([await count_answers(engine.url) for engine in engines], Counter[Outcome]())


async def _is_drained(shard: Any) -> bool:
    values: Any = await shard.redis.hvals(shard.pending)
    return not count_pending(values) and not await shard.redis.xlen(shard.outbox)


def _add_up(
    samples: Sequence[Sample], answers: Counter[Outcome], accepting: bool, **found: Any
) -> ScaledRound:
    """Return one measurement of all front doors together; times are those of the slowest."""
    requests, refused = (sum(getattr(each, name) for each in samples) for name in ("requests", "refused"))
    faults = [each.fault for each in samples if each.fault]
    if refused != (0 if accepting else requests):
        faults.append(f"{refused} of {requests} were refused")
    if accepting and answers[Outcome.ACCEPTED] < answers.total():
        faults.append("answers were " + ", ".join(f"{count} {word}" for word, count in answers.items()))
    if answers.total() < requests:
        faults.append(f"the engine counts {answers.total()} answers, wrk {requests}")
    load_s = sum(each.cpu_s.get("wrk", 0.0) for each in samples)
    return ScaledRound(
        requests=requests,
        rps=round(sum(each.rps for each in samples), 1),
        refused=answers.total() - answers[Outcome.ACCEPTED],
        socket_errors=sum(each.socket_errors for each in samples),
        p50_ms=max((each.p50_ms for each in samples), default=0.0),
        p99_ms=max((each.p99_ms for each in samples), default=0.0),
        accepted=answers[Outcome.ACCEPTED],
        fault="; ".join(dict.fromkeys(faults)),
        **found | {"cpu_s": found["cpu_s"] | {"wrk": round(load_s, 6)}},
    )


@asynccontextmanager
async def serve_doors(services: Services, count: int) -> AsyncIterator[Site]:
    """Serve by `count` front doors, each with an address of its own, on one Redis that is not throttled."""
    async with AsyncExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="flashsim-doors-")))
        engines = [
            await cleanup.enter_async_context(
                start_engine(services, {}, folder / f"{number}.log", roles=["front-door"] * (number > 1))
            )
            for number in range(1, count + 1)
        ]
        pids = {f"front-door {number}": engine.pid for number, engine in enumerate(engines, 1)}
        first, *_ = pids
        meter = ProcessMeter(
            services.pids | {name: pids[name] for name in pids if name != first}, lambda: [pids[first]]
        )
        doors = {
            name: [process.pid for process in engine.find_stage("front-door")]
            for name, engine in zip(pids, engines, strict=True)
        }
        groups = cleanup.enter_context(throttle(START_SHARE, doors))
        shards = await cleanup.enter_async_context(connect_shards(Settings(redis_url=services.redis_url)))
        yield Site(engines, shards, meter, groups)


@asynccontextmanager
async def serve_shards(services: Services, count: int) -> AsyncIterator[Site]:
    """Serve by one front door on a gate of `count` shards, each of which has a throttled primary.

    Of the services Redis is not used.
    """
    async with AsyncExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="flashsim-shards-")))
        url, pids = await cleanup.enter_async_context(_run_primaries(folder, count))
        pids = {name: pid for name, pid in services.pids.items() if name != "redis"} | pids
        services = replace(services, redis_url=url, pids=pids)
        options = {"gate_shards": count}
        engine = await cleanup.enter_async_context(start_engine(services, options, folder / "engine.log"))
        primaries = {name: [pid] for name, pid in pids.items() if name.startswith("redis")}
        groups = cleanup.enter_context(throttle(START_SHARE, primaries))
        settings = Settings(redis_url=url, gate_shards=count)
        shards = await cleanup.enter_async_context(connect_shards(settings))
        yield Site([engine], shards, ProcessMeter(services.pids, lambda: [engine.pid]), groups)


@asynccontextmanager
async def _run_primaries(folder: Path, count: int) -> AsyncIterator[tuple[str, dict[str, int]]]:
    """Run a Redis Cluster of `count` primaries without replicas; yield its URL and their processes."""
    ports, nodes = [], list[ProcessId]()
    try:
        for _ in range(count):
            ports.append(free_port())
            nodes.append(launch_node(folder, ports[-1]))
        await _join(ports)
        names = {f"redis {number}": node.pid for number, node in enumerate(nodes, 1)}
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports), names
    finally:
        await kill_processes(nodes)


async def _join(ports: Sequence[int]) -> None:
    """Make a cluster of the nodes: each gets the slots of one shard."""
    count = len(ports)
    async with connect_nodes([(HERE.address, port) for port in ports]) as nodes:
        try:
            async with asyncio.timeout(MEET_S):
                while not await _answer(nodes):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                for number, node in enumerate(nodes):
                    await node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                    slots = range(number * SLOTS // count, (number + 1) * SLOTS // count)
                    await node.execute_command("CLUSTER", "ADDSLOTS", *slots)
                await introduce(nodes[0], [(HERE.address, port) for port in ports[1:]])
                while not all([await _knows_all(node, count) for node in nodes]):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise BenchError("the nodes of a Redis Cluster do not find each other") from None


async def _answer(nodes: Sequence[Any]) -> bool:
    try:
        for node in nodes:
            await node.ping()
    except (RedisError, OSError):
        return False
    return True


async def _knows_all(node: Any, count: int) -> bool:
    lines = (await node.execute_command("CLUSTER", "INFO")).split()
    return {"cluster_state:ok", f"cluster_size:{count}"} <= set(lines)
