"""Where a run took place, what it ran with, and what the machine did meanwhile."""

import contextlib
import os
import platform
import re
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

import psutil

from engine.bus.connection import connect_bus
from engine.gate.client import connect_redis
from simulation.errors import Unreadable
from simulation.target.services import Services
from simulation.target.stores import connect_ledger, read_within

_PACKAGES: Final = (
    "flashgrid", "aio-pika", "aiohttp", "asyncpg", "hiredis", "msgspec", "numpy", "pandas", "redis", "uvloop",
)  # fmt: skip
_TIMEOUT_S: Final = 5.0
_PROC: Final = Path("/proc")
ROOT: Final = Path(__file__).parents[2]
"""The checkout that this module belongs to."""


def describe_machine() -> dict[str, str | int]:
    """Return processor, cores that this process may use, memory and system."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        "system": platform.platform(),
    }


class MachineMeter:
    """Reads what the machine does, by Linux' own counts; elsewhere it reads nothing."""

    def __init__(self, proc: Path = _PROC) -> None:
        self._proc = proc
        self._before: dict[str, tuple[float, float]] = {}

    def read(self) -> dict[str, float]:
        """Return in percent what has happened since the reading before.

        stolen_percent          of the time of all processors, what a hypervisor gave to others (proc(5))
        cpu_pressure_percent    of the time, that in which some task waited for a processor (Linux' PSI)
        io_pressure_percent     for a disk
        """
        now = {}
        with contextlib.suppress(OSError, ValueError, IndexError):
            # user nice system idle iowait irq softirq steal; what guests use is in user and nice.
            ticks = [int(each) for each in (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]]
            now["stolen_percent"] = float(ticks[7]), float(sum(ticks))
        for name in ("cpu", "io"):
            with contextlib.suppress(OSError):
                text = (self._proc / "pressure" / name).read_text()
                for waited_us in re.findall(r"^some .*total=(\d+)", text, re.MULTILINE):
                    now[f"{name}_pressure_percent"] = float(waited_us), time.monotonic() * 1e6
        before, self._before = self._before, now
        spans = {
            name: (part - before[name][0], whole - before[name][1])
            for name, (part, whole) in now.items()
            if name in before
        }
        return {name: round(100 * part / whole, 2) for name, (part, whole) in spans.items() if whole > 0}


def read_commit(root: Path = ROOT) -> str:
    """Return the commit of a checkout, with "+dirty" if tracked files differ; "unknown" outside git."""
    command = ["git", "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+dirty"]
    if not (root / ".git").exists():
        return "unknown"
    try:
        return subprocess.check_output(
            command, cwd=root, stderr=subprocess.DEVNULL, text=True, timeout=30
        ).strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


async def read_versions(services: Services | None) -> dict[str, str]:
    """Return the versions of Python, of packages that matter to a run, and of services that answer."""
    versions = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    if services is not None:
        for name, read in {"Redis": _redis, "PostgreSQL": _postgres, "RabbitMQ": _rabbitmq}.items():
            with contextlib.suppress(Unreadable):
                versions[name] = await read_within(read(services), _TIMEOUT_S)
    return {name: found for name, found in versions.items() if found}


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


async def _redis(services: Services) -> str:
    async with connect_redis(services.redis_url, round(_TIMEOUT_S * 1000)) as redis:
        info = await redis.info("server")
    return str(info.get("valkey_version") or info["redis_version"])


async def _postgres(services: Services) -> str:
    async with connect_ledger(services.postgres_url) as connection:
        return str(connection.get_settings().server_version).split()[0]


async def _rabbitmq(services: Services) -> str:
    if services.amqp_url is None:
        return ""
    async with await connect_bus(services.amqp_url, "versions") as connection:
        underlay = getattr(connection.transport, "connection", None)
        return str(underlay.server_properties["version"]) if underlay else ""
