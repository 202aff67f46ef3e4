"""Where a run took place, and what it ran with."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import asyncpg
import psutil
from aio_pika.exceptions import AMQPError
from redis.exceptions import RedisError

from engine.bus.connection import connect_bus
from engine.gate.client import connect_redis
from simulation.target.services import Services

_PACKAGES: Final = (
    "flashgrid", "aio-pika", "aiohttp", "asyncpg", "hiredis", "msgspec", "numpy", "pandas", "redis", "uvloop",
)  # fmt: skip
_TIMEOUT_S: Final = 5.0
ROOT: Final = Path(__file__).parents[2]
"""The checkout that this module belongs to."""


def describe_machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, memory and system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": platform.platform(),
    }


def read_commit(root: Path = ROOT) -> str:
    """Return the commit of a checkout, "+dirty" if tracked files differ from it; "unknown" outside git."""
    command = [
        "git",
        "-C",
        str(root),
        "describe",
        "--always",
        "--exclude=*",
        "--abbrev=40",
        "--dirty=+dirty",
    ]
    if not (root / ".git").exists():
        return "unknown"
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


async def read_versions(services: Services | None) -> dict[str, str]:
    """Versions of Python, of the packages that matter to a run, and of the services that answer."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    if services is None:
        return versions
    for name, read in {"Redis": _redis, "PostgreSQL": _postgres, "RabbitMQ": _rabbitmq}.items():
        try:
            if found := await read(services):
                versions[name] = found
        except (RedisError, AMQPError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            continue
    return versions


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


async def _redis(services: Services) -> str:
    async with connect_redis(services.redis_url, round(_TIMEOUT_S * 1000)) as redis:
        info = await redis.info("server")
    return str(info.get("valkey_version") or info["redis_version"])


async def _postgres(services: Services) -> str:
    connection = await asyncpg.connect(services.postgres_url, timeout=_TIMEOUT_S)
    try:
        return str(connection.get_settings().server_version).split()[0]
    finally:
        await connection.close()


async def _rabbitmq(services: Services) -> str | None:
    if services.amqp_url is None:
        return None
    async with await connect_bus(services.amqp_url, "versions") as connection:
        underlay = getattr(connection.transport, "connection", None)
        return str(underlay.server_properties["version"]) if underlay else None
