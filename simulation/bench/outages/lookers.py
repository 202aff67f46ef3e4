"""What a crowd of lookers does to buyers while PostgreSQL is frozen: a test by hand, of some minutes.

    python -m simulation.bench.outages.lookers [--rounds 5] [--connections 2000] [--looks 400] [--buys 500]

Each round offers purchases three times, in turn: alone; while each connection looks now and then: at the
stock, at an order that is settled, or at one that was accepted meanwhile; and while they look and PostgreSQL
is frozen. In the middle of the last an operator opens a sale. Driver, front door and Redis run at real-time
priority where the system allows it, so that buyers do not wait for the process that looks.
"""

import asyncio
import resource
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import aiohttp
import click
import numpy as np

from engine.gate.client import connect_redis
from engine.local.process import family, freeze_processes, identify, send_signal
from engine.settings import Settings
from simulation.bench.measures.mix import Rates, Watch, at_once, plan_mix
from simulation.bench.samples import Spread
from simulation.bench.subjects import PLENTY, Engine
from simulation.drive.driver import LoadSpec, drive
from simulation.errors import BenchError
from simulation.judge.numbers.latency import lag_ms, response_ms
from simulation.scenario.schema import DriverOptions
from simulation.signals import run_until_signal
from simulation.target.engine_process import EngineProcess, private_services, start_engine

OPTIONS: Final = DriverOptions(connections=256, timeout_ms=60_000)
LOOK_S: Final = Settings().look_timeout_ms / 1000
INIT_S: Final = 2.0
"""Longest time until an operator is answered."""
READY_S: Final = 8.0
"""Time for the driver's process to start and for lookers to connect."""
ORDERS: Final = 500
"""Orders of each kind that are looked at."""


class Sizes(NamedTuple):
    """What is offered."""

    connections: int
    looks: float
    buys: float
    seconds: float


class Purchases(NamedTuple):
    """Response times of purchases, the driver's lag, what the host took away, and what was answered."""

    p99_ms: float
    lag_p99_ms: float
    stolen_percent: float
    answers: Counter[str]

    def __str__(self) -> str:
        return f"{self.p99_ms:.2f} ms (lag {self.lag_p99_ms:.2f} ms, {self.stolen_percent:.1f} % stolen)"


class Looks(NamedTuple):
    """How long each look took, and what was answered, by what was looked at."""

    took_s: list[float]
    answers: Counter[str]


@click.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--connections", default=2_000, show_default=True, help="Connections of lookers.")
@click.option("--looks", default=400.0, show_default=True, help="Looks per second, of all of them.")
@click.option("--buys", default=500.0, show_default=True, help="Purchases per second.")
@click.option("--seconds", default=10.0, show_default=True, help="How long PostgreSQL is frozen.")
def main(rounds: int, connections: int, looks: float, buys: float, seconds: float) -> None:
    """Measure buyers, lookers and an operator while PostgreSQL is frozen."""
    run_until_signal(_measure(rounds, Sizes(connections, looks, buys, seconds)))


async def _measure(rounds: int, sizes: Sizes) -> None:
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    looked_at, ratios, slowest_s, inits_s = [], [], [], []
    with tempfile.TemporaryDirectory(prefix="flashsim-") as folder:
        async with (
            private_services(click.echo) as services,
            start_engine(services, {}, Path(folder, "engine.log")) as process,
            connect_redis(services.redis_url, 10_000) as redis,
        ):
            engine = Engine(process, services, redis)
            await engine.open_sale(PLENTY)
            real_time = _allows_real_time(engine)
            await _offer(engine, sizes, _soon_ns(), real_time)
            for number in range(1, rounds + 1):
                alone = await _offer(engine, sizes, _soon_ns(), real_time)
                settled = await _settle(engine)
                t0_ns = _soon_ns()
                beside, _ = await asyncio.gather(
                    _offer(engine, sizes, t0_ns, real_time), _look(engine.url, sizes, t0_ns, settled)
                )
                await engine.drain()
                # The door remembers settled orders that were looked at.
                settled = await _settle(engine)
                t0_ns = _soon_ns()
                async with _frozen((services.pids["postgres"],), t0_ns, sizes.seconds):
                    frozen, looks, (init_s, status) = await asyncio.gather(
                        _offer(engine, sizes, t0_ns, real_time),
                        _look(engine.url, sizes, t0_ns, settled),
                        _open_sale(process, t0_ns, sizes.seconds / 2),
                    )
                await engine.drain()
                looked_at.append(beside.p99_ms / alone.p99_ms)
                ratios.append(frozen.p99_ms / alone.p99_ms)
                slowest_s.append(max(looks.took_s))
                inits_s.append(init_s)
                click.echo(
                    f"round {number}: purchases p99 {alone} alone, {beside} beside looks, {frozen} with"
                    f" PostgreSQL frozen, {_say(frozen.answers)};"
                    f" {len(looks.took_s):,} looks, the slowest {slowest_s[-1]:.2f} s, {_say(looks.answers)};"
                    f" init {status} after {init_s:.2f} s"
                )
    click.echo(f"p99 of purchases over alone: beside looks {_describe(looked_at)}")
    click.echo(f"with PostgreSQL frozen as well {_describe(ratios)}")
    click.echo(f"slowest look: {_describe(slowest_s)} s, its bound is {LOOK_S:g} s")
    click.echo(f"init: {_describe(inits_s)} s, its bound is {INIT_S:g} s")


def _soon_ns() -> int:
    return time.monotonic_ns() + round(READY_S * 1e9)


async def _until(t_ns: float) -> None:
    await asyncio.sleep(max(0.0, (t_ns - time.monotonic_ns()) / 1e9))


def _allows_real_time(engine: Engine) -> bool:
    try:
        with at_once(engine.gate_pids()):
            return True
    except (OSError, AttributeError) as error:
        click.echo(f"without real-time priority, which is not allowed here: {error}")
        return False


async def _offer(engine: Engine, sizes: Sizes, t0_ns: int, real_time: bool) -> Purchases:
    """Offer purchases from `t0_ns` on."""
    plan = plan_mix(Rates(buys=sizes.buys, looks=0.001), sizes.seconds, accepting=False)
    watch = Watch(sizes.seconds, real_time)
    with at_once(engine.gate_pids() if real_time else {}):
        load = LoadSpec(plan, (engine.url,), OPTIONS, t0_ns, on_progress=watch.look)
        history = (await drive(load)).history
    bought = history[history["kind"] == "buy"]
    return Purchases(
        float(np.percentile(response_ms(bought, OPTIONS.timeout_ms), 99)),
        float(np.percentile(lag_ms(bought), 99)),
        watch.machine()["stolen_percent"],
        Counter(bought["outcome"].astype(str)),
    )


@asynccontextmanager
async def _frozen(pids: Sequence[int], t0_ns: int, seconds: float) -> AsyncIterator[None]:
    """Freeze the processes with their children from `t0_ns` on, for so long."""

    async def freeze() -> None:
        await _until(t0_ns)
        members = [member for pid in pids for member in family(identify(pid))]
        try:
            freeze_processes(members)
            await asyncio.sleep(seconds)
        finally:
            send_signal(members, signal.SIGCONT)

    freezing = asyncio.create_task(freeze())
    try:
        yield
        await freezing
    finally:
        freezing.cancel()
        await asyncio.wait({freezing})


async def _look(url: str, sizes: Sizes, t0_ns: int, settled: Sequence[str]) -> Looks:
    """Look on so many connections from `t0_ns` on; return once each look is answered."""
    looks = Looks([], Counter())
    each_s = sizes.connections / sizes.looks
    accepted: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()

    async def look(number: int) -> None:
        reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
        try:
            due_ns = t0_ns + number / sizes.connections * each_s * 1e9
            while due_ns < t0_ns + sizes.seconds * 1e9:
                await _until(due_ns)
                what = ("stock", "settled order", "accepted order")[number % 3]
                path = "/purchase/stock?productId=1"
                if what != "stock":
                    orders = settled if what == "settled order" else await accepted
                    path = f"/purchase/orders/{orders[number // 3 % len(orders)]}"
                began_s = time.monotonic()
                status = await _get(reader, writer, path)
                looks.took_s.append(time.monotonic() - began_s)
                looks.answers[f"{what} {status}"] += 1
                due_ns += each_s * 1e9
        finally:
            writer.close()

    async def buy() -> None:
        # PostgreSQL is frozen by then.
        await _until(t0_ns + 0.1e9)
        accepted.set_result(await _buy(url, ORDERS))

    await asyncio.gather(buy(), *(look(number) for number in range(sizes.connections)))
    return looks


async def _get(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> int:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
    return int(head.split()[1])


async def _buy(url: str, count: int) -> list[str]:
    """Buy so many units; return the orders. Raises BenchError if one is refused."""
    async with aiohttp.ClientSession() as session:

        async def buy(user_id: int) -> str:
            body = {"userId": user_id, "productId": 1}
            async with session.post(f"{url}/purchase/buy", json=body) as response:
                answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise BenchError(f"a purchase was answered by {response.status}")
            return str(answer["orderId"])

        return await asyncio.gather(*map(buy, range(1, count + 1)))


async def _settle(engine: Engine) -> list[str]:
    """Return orders that are settled, at which nobody has looked."""
    orders = await _buy(engine.url, ORDERS)
    await engine.drain()
    return orders


async def _open_sale(process: EngineProcess, t0_ns: int, after_s: float) -> tuple[float, int]:
    """Ask for another sale after so long; return how long that took, and the status."""
    headers = {"Authorization": f"Bearer {process.admin_token}"} if process.admin_token else {}
    async with aiohttp.ClientSession(headers=headers) as session:
        await _until(t0_ns + after_s * 1e9)
        began_s = time.monotonic()
        async with session.post(f"{process.url}/purchase/init?productId=2&stock=10") as response:
            await response.read()
        return time.monotonic() - began_s, response.status


def _say(answers: Counter[str]) -> str:
    return ", ".join(f"{count:,} {what}" for what, count in sorted(answers.items()))


def _describe(values: Sequence[float]) -> str:
    spread = Spread.of(values)
    return f"median {spread.median:.2f}, {spread.low:.2f} to {spread.high:.2f}"


if __name__ == "__main__":
    main()
