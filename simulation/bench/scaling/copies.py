"""The price of copies: what is accepted per second where one machine holds it, and where two do, in turn.

Both front doors, and both lanes, are those of one Redis Cluster.
"""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from engine.gate.client import connect_shards
from engine.gate.gate import Gate
from engine.local.cluster.redis import RedisCluster
from engine.local.ports import free_port
from engine.local.process import kill_processes
from engine.model.purchase import Outcome
from engine.settings import Settings
from simulation.bench.results import Copied
from simulation.bench.rounds import Rounds, Say
from simulation.bench.samples import Spread
from simulation.bench.scaling.sites import Site
from simulation.errors import BenchError
from simulation.target.engine_process import private_services, start_engine
from simulation.target.process_meter import ProcessMeter
from simulation.target.services import Services

COPIES: Final = (1, 2)
WAITING: Final = (64, 256)
"""Purchases under way at a time."""
LANE: Final = "lane"
PATH: Final = "accept path"
START_S: Final = 60.0
"""Longest time until the nodes are a cluster."""


class _Side:
    """A front door with so many copies, and the gate as such a front door sees it."""

    def __init__(self, site: Site, gate: Gate, note: Say) -> None:
        self.site = site
        self._note = note
        self._gate = gate

    async def measure_path(self, waiting: int, seconds: float) -> float:
        """Return how many purchases are accepted per second through HTTP."""
        found = await self.site.measure(1, waiting, seconds)
        if found.fault:
            self._note(f"{PATH}: {found.fault}")
        return found.rps

    async def measure_lane(self, waiting: int, seconds: float) -> float:
        """Return how many purchases are accepted per second by a lane."""
        answers, ended = Counter[Outcome](), asyncio.Event()
        started = time.monotonic()

        def buy() -> None:
            self._gate.submit((b"101", b"%d" % self.site.product_id, None, reply))

        def reply(outcome: Outcome, _: str | None) -> None:
            answers[outcome] += 1
            if not ended.is_set():
                buy()

        for _ in range(waiting):
            buy()
        await asyncio.sleep(seconds)
        took_s, accepted = time.monotonic() - started, answers[Outcome.ACCEPTED]
        ended.set()
        await self.site.drain()
        if answers.keys() != {Outcome.ACCEPTED}:
            self._note(f"{LANE}: answers were {dict(answers)}")
        return accepted / took_s


async def measure_copies(rounds: Rounds, note: Say) -> list[Copied]:
    """Measure lane and accept path; `note` is told what was not as planned. Raises BenchError."""
    rounds.say("starting a Redis Cluster with replicas, and two front doors")
    async with private_services(rounds.say) as services, _serve(services, note) as sides:
        for side in sides.values():
            await side.site.prepare("accepting", 1, max(WAITING))
        measures: dict[str, Callable[[], Awaitable[float]]] = {
            f"{what}, {waiting} at a time, copies {copies}": partial(measure, waiting, rounds.seconds)
            for what in (LANE, PATH)
            for waiting in WAITING
            for copies, side in sides.items()
            for measure in [side.measure_lane if what == LANE else side.measure_path]
        }
        found = iter(map(Spread.of, await rounds.repeat(measures)))
    return [compare(what, waiting, next(found), next(found)) for what in (LANE, PATH) for waiting in WAITING]


def compare(what: str, waiting: int, one: Spread, two: Spread) -> Copied:
    """Return what two copies cost, by the rates of each round."""
    return Copied(what=what, waiting=waiting, one=one, two=two, ratio=two.over(one))


@asynccontextmanager
async def _serve(services: Services, note: Say) -> AsyncIterator[dict[int, _Side]]:
    """Serve by a front door for each number of copies, beside one relay and one fulfilment."""
    async with AsyncExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="flashsim-copies-")))
        url = await cleanup.enter_async_context(_run_cluster(folder))
        services = replace(services, redis_url=url)
        sides: dict[int, _Side] = {}
        for copies in COPIES:
            start = start_engine(
                services,
                {"gate_copies": copies},
                folder / f"engine-{copies}.log",
                roles=["front-door"] * bool(sides),
            )
            engine = await cleanup.enter_async_context(start)
            shards = await cleanup.enter_async_context(connect_shards(Settings(redis_url=url)))
            gate = Gate(Settings(redis_url=url, gate_copies=copies))
            cleanup.push_async_callback(gate.close)
            # What each process takes is not looked at.
            site = Site([engine], shards, ProcessMeter({}), {})
            sides[copies] = _Side(site, gate, note)
        yield sides


@asynccontextmanager
async def _run_cluster(folder: Path) -> AsyncIterator[str]:
    """Run three primaries with two replicas each; yield the URL."""
    program = RedisCluster()
    place = folder / program.name
    place.mkdir()
    ports = [free_port() for _ in range(program.ports)]
    nodes = await program.launch(place, ports)
    try:
        said = "its nodes don't find each other"
        try:
            async with asyncio.timeout(START_S):
                while True:
                    try:
                        await program.probe(ports[0], place)
                        break
                    except (RedisError, OSError) as error:
                        said = str(error)
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise BenchError(f"the Redis Cluster does not start: {said}") from None
        yield program.url(ports[0], place)
    finally:
        await kill_processes(nodes)
