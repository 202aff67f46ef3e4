"""What `flashgrid serve` promises: one command serves it all, restarts what dies, and leaves nothing."""

import asyncio
import errno
import os
import shutil
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import msgspec
import psutil
import pytest
from aiohttp import web
from redis.asyncio import Redis

from engine.errors import SettingsError
from engine.gate.gate import Gate
from engine.http.app import LEAVING
from engine.http.listener import bind, listen
from engine.http.looking import Looking
from engine.local.ports import free_port
from engine.metrics import METRICS_FOLDER
from engine.settings import PREFIX, Settings

PROGRAM = [sys.executable, "-c", "from engine.cli import main; main()"]


class Server:
    """A running `flashgrid serve`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: list[str]) -> None:
        self.process = process
        self.url = url
        self.log = log

    def children(self, role: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):  # it died meanwhile
                command = child.cmdline()
                if "engine.stages.process" in command and role in command:
                    found.append(child)
        return found

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), 60)


def environment_of(settings: Settings, **more: str) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    for name, value in msgspec.structs.asdict(settings).items():
        if value is not None:
            environment[PREFIX + name.upper()] = str(value)
    return environment | {PREFIX + name: value for name, value in more.items()}


@asynccontextmanager
async def serving(
    settings: Settings, *arguments: str, log: list[str] | None = None, **more: str
) -> AsyncIterator[Server]:
    """Run the command until the context ends; whatever it started must be gone then.

    Each line that it logs is appended to `log` at once.
    """
    process = await asyncio.create_subprocess_exec(
        *PROGRAM,
        "serve",
        "--dev",
        *arguments,
        env=environment_of(settings, **more),
        stderr=asyncio.subprocess.PIPE,
        process_group=0,
    )
    log = [] if log is None else log
    assert process.stderr is not None

    async def next_line() -> str:
        assert process.stderr is not None
        line = (await process.stderr.readline()).decode()
        if not line:
            raise AssertionError("the server ended:\n" + "".join(log))
        log.append(line)
        return line

    async def read_on() -> None:
        while True:
            await next_line()

    while not (line := await asyncio.wait_for(next_line(), 60)).startswith("flashgrid: "):
        pass
    url = line.split()[3] if "listening" in line else ""
    reading = asyncio.ensure_future(read_on())
    descendants = psutil.Process(process.pid).children(recursive=True)
    try:
        yield Server(process, url, log)
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 60)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
        left = [
            child for child in descendants if child.is_running() and child.status() != psutil.STATUS_ZOMBIE
        ]
        assert not left


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def post(http: aiohttp.ClientSession, url: str, **options: Any) -> tuple[int, dict[str, Any]]:
    async with http.post(url, **options) as response:
        return response.status, await response.json(content_type=None)


async def get(http: aiohttp.ClientSession, url: str) -> tuple[int, dict[str, Any]]:
    async with http.get(url) as response:
        return response.status, await response.json(content_type=None)


async def open_sale(http: aiohttp.ClientSession, server: Server, stock: int) -> None:
    status, body = await post(http, f"{server.url}/purchase/init?productId=1&stock={stock}")
    assert status == 200, body


async def buy(http: aiohttp.ClientSession, server: Server, user: int = 101) -> tuple[int, dict[str, Any]]:
    return await post(http, f"{server.url}/purchase/buy", json={"userId": user, "productId": 1})


async def eventually(check: Callable[[], Any], within_s: float = 30.0) -> None:
    """Await until `check()` holds; a promise about the end, not about the time."""
    async with asyncio.timeout(within_s):
        while True:
            result = check()
            if await result if asyncio.iscoroutine(result) else result:
                return
            await asyncio.sleep(0.02)


async def statuses(settings: Settings) -> Counter[str]:
    connection = await asyncpg.connect(settings.postgres_url)
    try:
        rows = await connection.fetch("SELECT status FROM orders")
    finally:
        await connection.close()
    return Counter(row["status"] for row in rows)


async def is_confirmed(http: aiohttp.ClientSession, server: Server, order_id: str) -> bool:
    return (await get(http, f"{server.url}/purchase/orders/{order_id}"))[1].get("status") == "CONFIRMED"


async def test_three_of_five_buyers_are_served_and_their_orders_confirmed(
    settings: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings) as server:
        await open_sale(http, server, 3)
        answers = [await buy(http, server) for _ in range(5)]
        assert [status for status, _ in answers] == [200, 200, 200, 429, 429]
        for _, body in answers[:3]:
            await eventually(partial(is_confirmed, http, server, body["orderId"]))
        assert await statuses(settings) == {"CONFIRMED": 3}
        assert await server.stop() == 0
    async with serving(settings) as server:
        assert (await buy(http, server))[0] == 429, "what was sold stays sold"
        assert await is_confirmed(http, server, answers[0][1]["orderId"])


async def test_without_a_bus_fulfilment_reads_the_outbox_and_says_so(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings_without_bus) as server:
        assert any("fulfilment reads the outbox itself" in line for line in server.log)
        await open_sale(http, server, 1)
        _, body = await buy(http, server)
        await eventually(lambda: is_confirmed(http, server, body["orderId"]))


async def test_a_stop_settles_everything_that_was_accepted(
    settings: Settings, http: aiohttp.ClientSession, redis: Redis
) -> None:
    async with serving(settings) as server:
        await open_sale(http, server, 300)
        await asyncio.gather(*(buy(http, server, user) for user in range(1, 301)))
        assert await server.stop(signal.SIGINT) == 0
    assert await statuses(settings) == {"CONFIRMED": 300}
    assert not await redis.exists("fg:{0}:pending")


@pytest.mark.parametrize("role", ["relay", "fulfilment"])
async def test_a_stage_killed_in_mid_sale_is_started_again_and_loses_nothing(
    settings: Settings, http: aiohttp.ClientSession, role: str
) -> None:
    settings = msgspec.structs.replace(settings, relay_claim_ms=200)
    async with serving(settings) as server:
        await open_sale(http, server, 400)
        for round_number in range(4):
            await asyncio.gather(*(buy(http, server, user) for user in range(1, 101)))
            if round_number < 3:
                (victim,) = server.children(role)
                victim.kill()
                await eventually(partial(another, server, role, victim.pid))
        await eventually(lambda: settled(settings, 400))
    assert await statuses(settings) == {"CONFIRMED": 400}


async def test_a_front_door_that_is_told_to_leave_serves_until_another_does(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings_without_bus) as server:
        await open_sale(http, server, 10_000)
        for _ in range(2):
            (old,) = server.children("front-door")
            old.terminate()
            while old.is_running() and old.status() != psutil.STATUS_ZOMBIE:
                async with aiohttp.ClientSession() as fresh:
                    assert (await buy(fresh, server))[0] == 200
            assert len(server.children("front-door")) == 1
    assert not any("killed" in line for line in server.log)


def another(server: Server, role: str, pid: int) -> bool:
    return any(child.pid != pid for child in server.children(role))


async def settled(settings: Settings, count: int) -> bool:
    return (await statuses(settings)).total() == count


async def test_a_killed_worker_costs_only_its_own_connections(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings_without_bus, "--workers", "2") as server:
        await open_sale(http, server, 1000)
        victim = server.children("front-door")[0]
        victim.kill()
        for _ in range(50):
            async with aiohttp.ClientSession() as fresh:
                assert (await buy(fresh, server))[0] == 200
        await eventually(lambda: len(server.children("front-door")) == 2)
        assert any("SIGKILL" in line for line in server.log)


async def test_connections_spread_evenly_over_workers_also_after_one_died(
    settings_without_bus: Settings,
) -> None:
    async with serving(settings_without_bus, "--workers", "4") as server:
        assert all(60 <= count <= 140 for count in (await spread(server, 400)).values())
        victim = server.children("front-door")[1]
        victim.kill()
        assert (await spread(server, 40)).total() == 40, "the others serve those that wait for it"
        await eventually(lambda: serves(server, server.children("front-door")[-1].pid))
        counts = await spread(server, 400)
        assert len(counts) == 4
        assert all(60 <= count <= 140 for count in counts.values())


async def spread(server: Server, count: int) -> Counter[int]:
    """The connections by their worker, of a crowd that comes at once and is served."""
    port = urlsplit(server.url).port
    async with asyncio.timeout(60):
        clients = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(count)))
        for reader, writer in clients:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200 OK" in await reader.readuntil(b"}")
    ports = {writer.get_extra_info("sockname")[1] for _, writer in clients}
    found = Counter(
        worker.pid
        for worker in server.children("front-door")
        for connection in worker.net_connections("tcp4")
        if connection.raddr and connection.raddr.port in ports
    )
    for _, writer in clients:
        writer.close()
    return found


async def serves(server: Server, pid: int) -> bool:
    return len(server.children("front-door")) == 4 and pid in await spread(server, 16)


async def test_metrics_add_up_over_all_workers(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings_without_bus, "--workers", "2") as server:
        await open_sale(http, server, 10)
        for _ in range(30):
            async with aiohttp.ClientSession() as fresh:
                await buy(fresh, server)

        async def count(line: str) -> bool:
            async with http.get(f"{server.url}/metrics") as response:
                assert response.content_type == "text/plain"
                return line in (await response.text()).splitlines()

        assert await count('flashgrid_purchases_total{outcome="ACCEPTED"} 10.0')
        # Refusals are counted once in each turn of a worker's loop.
        await eventually(lambda: count('flashgrid_purchases_total{outcome="SOLD_OUT"} 20.0'))
        await eventually(lambda: count('flashgrid_orders_total{status="CONFIRMED"} 10.0'))


async def test_workers_that_die_again_and_again_leave_no_more_files_than_one(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings_without_bus) as server:
        await open_sale(http, server, 10)
        files = set(os.listdir(worker_folder(server)))  # noqa: PTH208
        for _ in range(3):
            async with aiohttp.ClientSession() as fresh:
                assert (await buy(fresh, server))[0] == 200
            (worker,) = server.children("front-door")
            worker.kill()
            await eventually(partial(another, server, "front-door", worker.pid))
        async with aiohttp.ClientSession() as fresh:
            assert (await buy(fresh, server))[0] == 200
            async with fresh.get(f"{server.url}/metrics") as response:
                assert 'flashgrid_purchases_total{outcome="ACCEPTED"} 4.0' in await response.text()
        assert set(os.listdir(worker_folder(server))) == files  # noqa: PTH208


async def test_a_cleaner_of_the_metrics_folder_stops_neither_metrics_nor_workers(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings_without_bus) as server:
        await open_sale(http, server, 10)
        (worker,) = server.children("front-door")
        shutil.rmtree(worker.environ()[METRICS_FOLDER])
        async with http.get(f"{server.url}/metrics") as response:
            assert response.status == 200
        shutil.rmtree(worker.environ()[METRICS_FOLDER])
        worker.kill()
        await eventually(partial(another, server, "front-door", worker.pid))
        async with aiohttp.ClientSession() as fresh:
            assert (await buy(fresh, server))[0] == 200
            async with fresh.get(f"{server.url}/metrics") as response:
                assert 'flashgrid_purchases_total{outcome="ACCEPTED"} 1.0' in await response.text()
        assert Path(worker_folder(server)).is_relative_to(settings_without_bus.data_dir)


async def test_what_a_killed_server_left_of_its_metrics_is_removed(settings_without_bus: Settings) -> None:
    def folders() -> set[Path]:
        return set(Path(settings_without_bus.data_dir).glob("flashgrid-metrics-*"))

    async with serving(settings_without_bus) as killed:
        [left] = folders()
        stages = killed.children("front-door") + killed.children("fulfilment")
        killed.process.kill()
        await eventually(lambda: not any(stage.is_running() for stage in stages))
    async with serving(settings_without_bus) as first:
        [its] = folders() - {left}
        async with serving(settings_without_bus):
            assert its in folders(), "a server that lives keeps its own"
            assert left not in folders()
        assert await first.stop() == 0
    assert not folders()


def worker_folder(server: Server) -> str:
    return str(server.children("front-door")[0].environ()[METRICS_FOLDER])


async def test_operations_have_an_address_of_their_own(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings_without_bus, OPERATIONS_BIND="127.0.0.1:0") as server:
        operations = server.log[-1].rpartition("operations on ")[2].strip(")\n")
        for path in ("/metrics", "/readyz"):
            assert (await http.get(f"{server.url}{path}")).status == 404
            assert (await http.get(f"{operations}{path}")).status == 200
        query = "/purchase/init?productId=1&stock=1"
        assert (await http.post(f"{server.url}{query}")).status == 404
        assert (await http.post(f"{operations}{query}")).status == 200
        assert (await buy(http, server))[0] == 200
        assert (await http.post(f"{operations}/purchase/buy", json={})).status == 404
        assert (await http.get(f"{operations}/healthz")).status == 200


async def test_roles_run_apart_as_on_many_machines(settings: Settings, http: aiohttp.ClientSession) -> None:
    async with (
        serving(settings, "--role", "front-door") as server,
        serving(settings, "--role", "relay"),
        serving(settings, "--role", "fulfilment"),
    ):
        await open_sale(http, server, 1)
        _, body = await buy(http, server)
        await eventually(lambda: is_confirmed(http, server, body["orderId"]))


async def test_stages_end_when_the_server_is_killed(settings_without_bus: Settings) -> None:
    async with serving(settings_without_bus) as server:
        stages = server.children("front-door") + server.children("fulfilment")
        server.process.kill()
        await eventually(lambda: not any(stage.is_running() for stage in stages))


async def test_a_terminal_that_closes_stops_the_server_in_order(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    """https://github.com/ddollar/foreman/pull/201: what it started would go on without it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup themselves
    try:
        async with serving(settings_without_bus) as server:
            await open_sale(http, server, 1)
            await buy(http, server)
            assert await server.stop(signal.SIGHUP) == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert await statuses(settings_without_bus) == {"CONFIRMED": 1}


async def test_under_nohup_a_terminal_that_closes_stops_nothing(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with serving(settings_without_bus) as server:
            server.process.send_signal(signal.SIGHUP)
            await open_sale(http, server, 1)
            assert (await buy(http, server))[0] == 200
            assert await server.stop() == 0
    finally:
        signal.signal(signal.SIGHUP, ignored)


async def test_an_address_in_brackets_is_the_same_address(settings_without_bus: Settings) -> None:
    """https://github.com/Kludex/uvicorn/issues/782"""
    async with serving(settings_without_bus, HOST="[::1]") as server:
        assert server.url.startswith("http://[::1]:")


async def test_declined_payments_fail_and_their_units_are_sold_to_others(
    settings: Settings, http: aiohttp.ClientSession
) -> None:
    async with serving(settings, PAYMENT_DECLINE_RATE="0.5") as server:
        await open_sale(http, server, 20)

        async def sell_on() -> bool:
            await buy(http, server)
            return (await statuses(settings))["CONFIRMED"] == 20

        await eventually(sell_on)
        assert (await statuses(settings))["FAILED"] > 0
        await eventually(lambda: remaining(http, server, 0))
    assert (await statuses(settings))["CONFIRMED"] == 20


async def remaining(http: aiohttp.ClientSession, server: Server, units: int) -> bool:
    return bool((await get(http, f"{server.url}/purchase/stock?productId=1"))[1]["remaining"] == units)


async def run_to_the_end(settings: Settings, *arguments: str, **more: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, *arguments, env=environment_of(settings, **more), stderr=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, errors = await asyncio.wait_for(process.communicate(), 60)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
    return process.returncode or 0, errors.decode()


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PORT", "eighty", "FLASHGRID_PORT"),
        ("PORT", "70000", "FLASHGRID_PORT"),
        ("GATE_BATHC", "5", "unknown setting FLASHGRID_GATE_BATHC"),
        ("HOST", "0.0.0.0", "FLASHGRID_ADMIN_TOKEN"),
        ("OPERATIONS_BIND", "0.0.0.0:0", "FLASHGRID_ADMIN_TOKEN"),
        ("OPERATIONS_BIND", "127.0.0.1:70000", "can't listen on 127.0.0.1:70000"),
        ("REDIS_URL", "localhost:6379", "FLASHGRID_REDIS_URL"),
        ("LOG_LEVEL", "loud", "FLASHGRID_LOG_LEVEL"),
    ],
)
async def test_a_wrong_setting_stops_the_start_with_one_clear_line(
    settings: Settings, variable: str, value: str, said: str
) -> None:
    code, errors = await run_to_the_end(settings, "serve", **{variable: value})
    assert code == 1
    assert said in errors
    assert errors.count("\n") == 1


async def test_a_taken_port_is_said_at_once(settings_without_bus: Settings) -> None:
    async with serving(settings_without_bus) as server:
        port = server.url.rpartition(":")[2]
        code, errors = await run_to_the_end(settings_without_bus, "serve", PORT=port)
        assert (code, errors.count("\n")) == (1, 1)
        assert errors.endswith(f"can't listen on 127.0.0.1:{port}: Address already in use\n")


def test_nobody_waits_for_a_server_that_is_not_ready() -> None:
    listeners = bind(Settings(port=free_port()))
    with listeners.buyers[0] as listener, socket.socket() as client:
        assert client.connect_ex(listener.getsockname()) == errno.ECONNREFUSED


async def test_of_two_servers_that_start_at_once_one_says_that_the_address_is_taken() -> None:
    settings = Settings(port=free_port())
    [one], [other] = bind(settings).buyers, bind(settings).buyers
    app = web.Application()
    app[LEAVING] = asyncio.Event()
    gate, looking = cast(Gate, SimpleNamespace(connections=8)), cast(Looking, None)
    with one, other:
        one.listen()
        with pytest.raises(
            SettingsError, match=f"can't listen on 127.0.0.1:{settings.port}: Address already"
        ):
            async with listen(web.AppRunner(app), gate, looking, other, 75, 10):
                pass


async def test_a_redis_that_may_evict_is_refused(settings_without_bus: Settings, redis: Redis) -> None:
    await redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        code, errors = await run_to_the_end(settings_without_bus, "serve")
        assert code == 1
        assert "maxmemory-policy must be noeviction" in errors
    finally:
        await redis.config_set("maxmemory-policy", "noeviction")
