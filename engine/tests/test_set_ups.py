"""Set-ups that are not ours: each works, or is refused at start in one line that names the setting."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import asyncpg
import msgspec
import pytest
from asyncpg import connect_utils
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from engine.checks import check_shard, list_commands
from engine.errors import SettingsError
from engine.gate.client import Shard, connect_redis
from engine.http.listener import bind
from engine.ledger.environment import forget_libpq_variables
from engine.local.stack import start_stack
from engine.settings import Settings
from engine.tests import test_server
from engine.tests.services import execute, skip_or_fail
from engine.tests.test_server import (
    buy,
    eventually,
    get,
    http,
    is_confirmed,
    open_sale,
    run_to_the_end,
    serving,
)

__all__ = ["http"]
pytestmark = pytest.mark.slow

ERRORS_S = 25
"""Longest wait for what no time mends; a start that waits for an answer takes 30 s."""


def change(settings: Settings, **changes: str | None) -> Settings:
    return msgspec.structs.replace(settings, **changes)


async def refused(settings: Settings, *said: str, **more: str) -> None:
    """The start ends soon, in one line that says all of this, beside warnings."""
    async with asyncio.timeout(ERRORS_S):
        code, errors = await run_to_the_end(settings, "serve", **more)
    last = errors.splitlines()[-1]
    assert code == 1
    assert last.startswith("flashgrid: ")
    assert all(part in last for part in said), errors
    assert "Traceback" not in errors


@asynccontextmanager
async def pgbouncer(url: str, mode: str, size: int = 20) -> AsyncIterator[str]:
    """PgBouncer of the distribution before a PostgreSQL: its URL."""
    program = shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        skip_or_fail("pgbouncer is not installed")
    parts = urlsplit(url)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "users").write_text(f'"{parts.username}" "{parts.password or ""}"\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host={parts.hostname} port={parts.port}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"pool_mode = {mode}\ndefault_pool_size = {size}\nauth_type = trust\n"
            f"auth_file = {folder}/users\nignore_startup_parameters = extra_float_digits\n"
        )
        for path in (folder, folder / "users", folder / "ini"):
            if user:
                shutil.chown(path, user)
        process = await asyncio.create_subprocess_exec(
            str(program),
            "-q",
            str(folder / "ini"),
            user=user,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            await eventually(lambda: answers(port))
            yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"
        finally:
            process.terminate()
            await process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_a_pooler_of_transactions_is_refused(settings_without_bus: Settings) -> None:
    async with pgbouncer(settings_without_bus.postgres_url or "", "transaction") as url:
        await refused(change(settings_without_bus, postgres_url=url), "POSTGRES_URL", "transaction mode")


async def test_a_pooler_of_sessions_serves(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    async with pgbouncer(settings_without_bus.postgres_url or "", "session") as url:
        await sells(change(settings_without_bus, postgres_url=url), http)


async def test_a_pooler_with_too_few_sessions_is_refused(settings_without_bus: Settings) -> None:
    """https://github.com/pgbouncer/pgbouncer/issues/384: it takes every client, and answers the first few."""
    async with pgbouncer(settings_without_bus.postgres_url or "", "session", size=5) as url:
        said = "serves 5 sessions at once, and 9 may be needed"
        await refused(
            change(settings_without_bus, postgres_url=url), "POSTGRES_URL", said, "default_pool_size"
        )


async def sells(settings: Settings, http: aiohttp.ClientSession, log: list[str] | None = None) -> list[str]:
    """An engine with these settings sells a unit and settles it: what it logged."""
    async with serving(settings, log=log) as server:
        await open_sale(http, server, 1)
        _, body = await buy(http, server)
        await eventually(lambda: is_confirmed(http, server, body["orderId"]))
        return server.log


@asynccontextmanager
async def role_of(url: str, grants: str = "") -> AsyncIterator[str]:
    """A role of its own that may do little with a database: its URL."""
    name, parts = f"role_{uuid4().hex[:8]}", urlsplit(url)
    await execute(url, f"CREATE ROLE {name} LOGIN PASSWORD 'secret'; {grants.format(role=name)}")
    yield f"postgresql://{name}:secret@{parts.hostname}:{parts.port}{parts.path}"
    await execute(url, f"DROP OWNED BY {name}; DROP ROLE {name}")


DML = "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role}"


async def test_a_role_that_may_only_read_and_write_serves_a_schema_of_another(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    url = settings_without_bus.postgres_url or ""
    async with role_of(url) as stranger:
        settings = change(settings_without_bus, postgres_url=stranger)
        said = ("POSTGRES_URL: the schema lacks 0001_ledger", "flashgrid migrate", "SELECT, INSERT, UPDATE")
        await refused(settings, *said)
        await run_to_the_end(settings_without_bus, "migrate")
        await refused(settings, "POSTGRES_URL: role role_", "lacks SELECT on sales", "flashgrid migrate")
        await execute(url, DML.format(role=urlsplit(stranger).username))
        await sells(settings, http)
        await execute(url, "DELETE FROM flashgrid_migrations")
        await refused(settings, *said)
        await run_to_the_end(settings_without_bus, "migrate")
    async with role_of(url, DML.replace(", UPDATE", "")) as reader:
        await refused(change(settings_without_bus, postgres_url=reader), "lacks UPDATE on sales")
    async with role_of(url, f"{DML}; REVOKE SELECT ON flashgrid_migrations FROM {{role}}") as blind:
        await refused(
            change(settings_without_bus, postgres_url=blind), "lacks SELECT on flashgrid_migrations"
        )


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        ("/test_", "/lost_", "does not exist"),
        ("//postgres", "//nobody-known", "nobody-known"),
        ("@127.0.0.1", "@nowhere.invalid", "POSTGRES_URL"),
    ],
)
async def test_a_ledger_that_will_never_answer_is_said_soon(
    settings_without_bus: Settings, find: str, put: str, said: str
) -> None:
    url = (settings_without_bus.postgres_url or "").replace(find, put)
    await refused(change(settings_without_bus, postgres_url=url), "POSTGRES_URL", said)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        # https://github.com/apecloud/kubeblocks-addons/issues/126: some platforms turn it off for all.
        ("synchronous_commit = off", "synchronous_commit is off"),
        ("default_transaction_read_only = on", "it takes no writes"),
        ("session_replication_role = replica", "session_replication_role is replica"),
    ],
)
async def test_a_database_that_keeps_too_little_is_refused(
    settings_without_bus: Settings, setting: str, said: str
) -> None:
    url = settings_without_bus.postgres_url or ""
    await execute(url, f"ALTER DATABASE {urlsplit(url).path[1:]} SET {setting}")
    await refused(settings_without_bus, "POSTGRES_URL", said)


async def test_a_server_without_tls_where_it_is_asked_for_is_refused(settings_without_bus: Settings) -> None:
    """https://github.com/RedHatInsights/vulnerability-engine/pull/968"""
    url = f"{settings_without_bus.postgres_url}?sslmode=require"
    await refused(change(settings_without_bus, postgres_url=url), "POSTGRES_URL", "rejected SSL")


async def test_a_full_server_is_waited_for_in_one_line_and_without_a_traceback(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    """https://github.com/MagicStack/asyncpg/issues/796: so is one that starts up."""
    url = settings_without_bus.postgres_url or ""
    name = urlsplit(url).path.strip("/")
    async with serving(settings_without_bus):
        pass
    async with role_of(url, DML) as writer:
        await execute(url, f"ALTER DATABASE {name} CONNECTION LIMIT 0")
        settings = change(settings_without_bus, postgres_url=writer)
        log = list[str]()
        starting = asyncio.create_task(sells(settings, http, log))
        connection = await asyncpg.connect(settings_without_bus.postgres_url)
        await eventually(lambda: any("PostgreSQL does not work" in line for line in log))
        await asyncio.sleep(2)  # it tries a few times more
        assert not starting.done()
        await connection.close()
        await execute(url, f"ALTER DATABASE {name} CONNECTION LIMIT -1")
        await starting
    assert sum("PostgreSQL does not work" in line for line in log) == 1
    assert not any("Traceback" in line for line in log)


@asynccontextmanager
async def redis_user(redis: Redis, url: str, *rules: str) -> AsyncIterator[str]:
    await redis.execute_command("ACL", "SETUSER", "app", "on", ">secret", *rules)  # type: ignore[no-untyped-call]
    yield url.replace("redis://", "redis://app:secret@")
    await redis.execute_command("ACL", "DELUSER", "app")  # type: ignore[no-untyped-call]


async def test_a_redis_user_without_a_needed_right_is_refused_and_one_without_config_serves(
    settings_without_bus: Settings, redis: Redis, redis_url: str, http: aiohttp.ClientSession
) -> None:
    async with redis_user(redis, redis_url, "~fg:*", "+@all", "-xautoclaim") as url:
        await refused(change(settings_without_bus, redis_url=url), "REDIS_URL", "xautoclaim")
    async with redis_user(redis, redis_url, "~other:*", "+@all") as url:
        await refused(change(settings_without_bus, redis_url=url), "REDIS_URL")
    wrong = redis_url.replace("redis://", "redis://app:wrong@")
    await refused(change(settings_without_bus, redis_url=wrong), "REDIS_URL", "invalid username-password")
    async with redis_user(redis, redis_url, "~fg:*", "+@all", "-config") as url:
        log = await sells(change(settings_without_bus, redis_url=url), http)
        assert any("can't read Redis' settings" in line for line in log)
        assert not any("Redis' INFO" in line for line in log)
    async with redis_user(redis, redis_url, "~fg:*", "+@all", "-info") as url:
        log = await sells(change(settings_without_bus, redis_url=url), http)
        assert sum("can't read Redis' INFO" in line for line in log) == 1


async def test_a_redis_user_without_any_one_command_of_the_engine_s_is_refused(
    redis: Redis, redis_url: str
) -> None:
    scripts = "".join(
        file.read_text() for file in files("engine.gate").iterdir() if file.name.endswith(".lua")
    )
    needed = {command for command, *_ in list_commands("")}
    assert set(re.findall(r"redis\.call\('(\w+)'", "".join(scripts))) <= needed
    for command in sorted(needed | {"MULTI", "EXEC"}):
        async with (
            redis_user(redis, redis_url, "~fg:*", "+@all", f"-{command.lower()}") as url,
            connect_redis(url) as app,
        ):
            with pytest.raises((NoPermissionError, SettingsError), match=f"(?i)'{command}"):
                await check_shard(Shard(app), "")
    assert not await redis.keys("fg:*check*")


async def test_a_redis_that_shows_no_settings_serves_with_a_warning(
    settings_without_bus: Settings, redis_url: str, http: aiohttp.ClientSession
) -> None:
    """Hosted ones answer CONFIG GET with nothing: so does any for a name that it does not know."""
    parts = urlsplit(redis_url)

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(parts.hostname, parts.port)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65_536):
                for name in (b"maxmemory-policy", b"appendonly", b"appendfsync"):
                    data = data.replace(name, b"x" * len(name))
                sink.write(data)
            sink.close()

        await asyncio.gather(copy(reader, up_writer), copy(up_reader, writer), return_exceptions=True)

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as server:
        url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        log = await sells(change(settings_without_bus, redis_url=url), http)
    assert any("can't read Redis' settings (it shows none)" in line for line in log)


async def test_what_is_no_redis_is_said_at_once(settings_without_bus: Settings, bus_url: str) -> None:
    """https://github.com/redis/redis/issues/7896: an address of another service."""
    url = f"redis://127.0.0.1:{urlsplit(bus_url).port}/0"
    await refused(change(settings_without_bus, redis_url=url), "REDIS_URL", "RabbitMQ answers at")


async def test_a_redis_that_will_never_answer_is_said_soon(
    settings_without_bus: Settings, redis_url: str
) -> None:
    await refused(change(settings_without_bus, redis_url="redis://nowhere.invalid:6379"), "REDIS_URL")
    await refused(
        change(settings_without_bus, redis_url=redis_url.replace("/0", "/99")), "REDIS_URL", "DB index"
    )


@pytest.mark.parametrize(
    ("find", "put", "said"),
    [
        ("guest:guest@", "guest:wrong@", "ACCESS_REFUSED"),
        ("127.0.0.1", "nowhere.invalid", ""),
        ("", "lost", "vhost lost not found"),
    ],
)
async def test_a_bus_that_refuses_is_said_at_start_and_one_that_is_away_is_waited_for(
    settings: Settings, find: str, put: str, said: str
) -> None:
    amqp_url = settings.amqp_url or ""
    settings = change(settings, amqp_url=amqp_url.replace(find, put) if find else amqp_url + put)
    if said:
        await refused(settings, "AMQP_URL", said)
    else:
        async with serving(settings) as server:
            assert any("RabbitMQ does not answer" in line for line in server.log)


async def test_a_bus_that_is_away_is_said_once_by_each_who_needs_it(settings: Settings) -> None:
    """https://github.com/src-d/borges/issues/255: two gigabytes of one line."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"amqp://guest:guest@127.0.0.1:{closed.getsockname()[1]}/"
    async with serving(change(settings, amqp_url=url)) as server:
        await asyncio.sleep(5)  # relay, fulfilment, keeper and their observers try dozens of times
        lines = [line for line in server.log if "refused" in line or "Connect call failed" in line]
    assert 1 <= len(lines) <= 4, lines


async def test_several_hosts_lead_to_the_one_that_answers(
    settings_without_bus: Settings, http: aiohttp.ClientSession
) -> None:
    parts = urlsplit(settings_without_bus.postgres_url or "")
    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    url = parts._replace(
        netloc=f"{parts.netloc.rpartition('@')[0]}@127.0.0.1:{closed},127.0.0.1:{parts.port}",
        query="target_session_attrs=read-write&application_name=till&connect_timeout=3&sslmode=prefer",
    ).geturl()
    connection = await asyncpg.connect(settings_without_bus.postgres_url)
    async with serving(change(settings_without_bus, postgres_url=url)):
        await eventually(
            lambda: connection.fetchval(
                "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'till'"
            )
        )
    await connection.close()


async def test_variables_of_libpq_lead_nowhere_else(
    settings_without_bus: Settings, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an operator who has them set for psql; what a URL leaves out, four of them may say."""
    url = urlsplit(settings_without_bus.postgres_url or "")
    nameless = url._replace(netloc=f"{url.hostname}:{url.port}", path="").geturl()
    with monkeypatch.context() as patch:
        for name, value in FOREIGN.items():
            patch.setenv(name, value)
        await sells(settings_without_bus, http)
        patch.setenv("PGPASSWORD", url.password or "")
        patch.setenv("PGUSER", url.username or "")
        patch.setenv("PGDATABASE", url.path[1:])
        await sells(change(settings_without_bus, postgres_url=nameless), http)


FOREIGN = {
    "PGHOST": "nowhere.invalid",
    "PGPORT": "1",
    "PGUSER": "nobody",
    "PGPASSWORD": "wrong",
    "PGDATABASE": "lost",
    "PGPASSFILE": "/nowhere",
    "PGSERVICE": "lost",
    "PGSSLMODE": "require",
    "PGSSLCERT": "/nowhere",
    "PGSSLMINPROTOCOLVERSION": "x",
    "PGTARGETSESSIONATTRS": "standby",
    "PGGSSLIB": "x",
    "PGSSLNEGOTIATION": "x",
}


async def test_private_services_start_whatever_libpq_is_told(
    stack_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)
    forget_libpq_variables()
    stack = await start_stack(stack_dir / "libpq", ["postgres"])
    await stack.stop()


def test_every_variable_that_the_client_library_reads_is_forgotten_or_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Path(connect_utils.__file__).read_text()
    read = set(re.findall(r"['\"](PG[A-Z]+)['\"]", source))
    assert len(read) > 15
    for name in read:
        monkeypatch.setenv(name, "x")
    forget_libpq_variables()
    assert read & os.environ.keys() == {"PGUSER", "PGPASSWORD", "PGPASSFILE", "PGDATABASE"}


async def test_idle_connections_leave_open_files_for_gate_and_ledger(
    settings_without_bus: Settings, http: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = ["sh", "-c", 'ulimit -n 64 && exec "$0" "$@"', *test_server.PROGRAM]
    monkeypatch.setattr(test_server, "PROGRAM", limited)
    async with serving(settings_without_bus) as server:
        await get(http, f"{server.url}/healthz")
        address = urlsplit(server.url)
        idle = [await asyncio.open_connection(address.hostname, address.port) for _ in range(150)]
        # Over the connection that was there before them.
        await open_sale(http, server, 1)
        status, body = await buy(http, server)
        assert status == 200, body
        for _, writer in idle:
            writer.close()
        await eventually(lambda: is_confirmed(http, server, body["orderId"]))


@pytest.mark.parametrize("host", ["a" * 70, "é" * 70])
def test_an_address_that_is_no_name_is_one_line(host: str) -> None:
    with pytest.raises(SettingsError, match="can't listen on"):
        bind(Settings(host=host, admin_token="0123456789abcdef"))
