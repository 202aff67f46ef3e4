"""The distribution's Redis and PostgreSQL, where they are installed."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import asyncpg
from redis.asyncio import Redis

from engine.local.ports import free_port
from engine.local.process import run, spawn, stop_process
from engine.tests.replicas import answers
from engine.tests.services import skip_or_fail
from engine.tests.test_server import eventually


class Place(NamedTuple):
    """Where a server listens."""

    port: int
    socket: Path


def find_redis() -> Path:
    program = shutil.which("redis-server")
    if program is None:
        skip_or_fail("redis-server is not installed")
    return Path(program or "")


def find_postgres() -> Path:
    """The newest installation: the folder above its programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    if not found:
        skip_or_fail("postgresql is not installed")
    return found[-1].parents[1]


@asynccontextmanager
async def run_redis(folder: Path) -> AsyncIterator[Place]:
    """Redis with its own defaults."""
    place = Place(free_port(), folder / "redis.sock")
    command: list[str | Path] = [find_redis(), "--bind", "127.0.0.1", "--port", str(place.port)]
    command += ["--dir", folder, "--unixsocket", place.socket]
    process = spawn(command, folder)

    async def probe(port: int, _folder: Path) -> None:
        async with Redis(port=port) as client:
            await client.ping()

    try:
        await eventually(partial(answers, probe, place.port, folder))
        yield place
    finally:
        await stop_process(process, signal.SIGTERM, 10)


@asynccontextmanager
async def run_postgres(folder: Path, superuser: str) -> AsyncIterator[Place]:
    """PostgreSQL with its own defaults, which trusts whoever reaches it."""
    programs, user = find_postgres() / "bin", "nobody" if os.geteuid() == 0 else None
    place = Place(free_port(), folder)
    if user:
        shutil.chown(folder, user)
    await run([programs / "initdb", "-D", folder / "data", "-U", superuser], folder, user=user)
    command: list[str | Path] = [programs / "postgres", "-D", folder / "data", "-p", str(place.port)]
    command += ["-k", place.socket, "-c", "listen_addresses=127.0.0.1"]
    process = spawn(command, folder, user=user)

    async def probe(port: int, _folder: Path) -> None:
        url = f"postgresql://{superuser}@127.0.0.1:{port}/postgres"
        await (await asyncpg.connect(url)).close()

    try:
        await eventually(partial(answers, probe, place.port, folder))
        yield place
    finally:
        await stop_process(process, signal.SIGINT, 10)
