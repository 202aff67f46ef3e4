"""PostgreSQL of three machines as a private service: of two standbys, one confirms each commit."""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import asyncpg

import engine
from engine.errors import StackError
from engine.local.machines import Network
from engine.local.ports import note_ports, read_ports
from engine.local.postgres import Postgres, find_place, find_programs
from engine.local.process import (
    HERE,
    Machine,
    ProcessId,
    find_processes,
    kill_processes,
    run,
    spawn,
    stop_process,
    survivors,
)

_NAMES: Final = ("one", "two", "three")
_ON_EACH: Final = {
    "synchronous_standby_names": f"ANY 1 ({', '.join(_NAMES)})",
    "wal_keep_size": "1GB",
    # So a primary that is cut off from its standbys soon knows that none follows it.
    "wal_sender_timeout": "2s",
    "wal_retrieve_retry_interval": "100ms",
}
"""A standby that became the primary waits for a standby, too."""
_ACCESS: Final = "".join(f"host {what} all samenet scram-sha-256\n" for what in ("all", "replication"))
"""Who is let in from other machines."""
_WAIT_S: Final = 1.0
LOST: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""Errors of a server that does not answer."""


class PostgresCluster:
    """Three servers, and a promoter that runs them (promoter.py)."""

    name = "postgres-cluster"
    ports = len(_NAMES)
    stop_signal = signal.SIGTERM
    machines = (1, 2, 3)
    """The machine of each server."""

    def url(self, _port: int, folder: Path) -> str:
        """Return a URL with all hosts, of the superuser."""
        return name_hosts(list_servers(folder))

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start the promoter, which starts the servers."""
        note_ports(folder, ports)
        for server in list_servers(folder):
            server.release()
        package = {"PYTHONPATH": str(Path(engine.__file__).parents[1])}
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "engine.local.cluster.promoter",
            folder,
        ]
        return [spawn(command, folder, package)]

    async def probe(self, _port: int, folder: Path) -> str:
        """Return the version once a primary has two standbys. Raises OSError until then."""
        servers = list_servers(folder)
        for server in servers:
            with suppress(*LOST):
                if await server.count_followers() == len(servers) - 1:
                    return str(await server.fetch("SHOW server_version")).split()[0]
        raise ConnectionError("no primary has two standbys yet")


class Server:
    """One of the servers."""

    def __init__(self, name: str, folder: Path, port: int, machine: Machine = HERE) -> None:
        self.name = name
        self.port = port
        self.place = f"{machine.address}:{port}"
        self._machine = machine
        self._folder = folder
        self._user = "nobody" if os.geteuid() == 0 else None
        self._process: ProcessId | None = None

    @property
    def url(self) -> str:
        """The URL of the superuser."""
        return Postgres().url(self.port, self._folder, self._machine.address)

    @property
    def is_held(self) -> bool:
        """Whether the promoter leaves it down."""
        return self._hold.exists()

    @property
    def _hold(self) -> Path:
        return self._folder / "held"

    def hold(self) -> None:
        """Keep it from being started again, once it is down."""
        self._hold.touch()

    def release(self) -> None:
        """Let it be started again."""
        self._hold.unlink(missing_ok=True)

    @property
    def exists(self) -> bool:
        """Whether it has data."""
        return self.data.exists()

    @property
    def runs(self) -> bool:
        """Whether it runs, as far as it was started here."""
        return self._process is not None and bool(survivors([self._process]))

    @property
    def was_primary(self) -> bool:
        """Whether it would start as a primary."""
        return not (self.data / "standby.signal").exists()

    @property
    def data(self) -> Path:
        """The folder of its data."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return find_place(self._folder, self._user) / "data"

    async def create(self) -> None:
        """Make its data, and set in them what holds on each server."""
        self._folder.mkdir(parents=True, exist_ok=True)
        [process] = await Postgres().launch(self._folder, [self.port])
        try:
            # The probe makes the database.
            while survivors([process]):
                with suppress(*LOST):
                    await Postgres().probe(self.port, self._folder)
                    break
                await asyncio.sleep(0.05)
        finally:
            await stop_process(process, signal.SIGINT, 30)
        if self._machine != HERE:
            with (self.data / "pg_hba.conf").open("a") as access:
                access.write(_ACCESS)
        with (self.data / "postgresql.auto.conf").open("a") as settings:
            settings.writelines(f"{name} = '{value}'\n" for name, value in _ON_EACH.items())

    async def copy(self, primary: "Server") -> None:
        """Make its data a copy of a server that runs, and let it follow that one. It has to be down."""
        password = self._folder / "password"
        password.touch(mode=0o600)
        shutil.copyfile(primary._folder / "password", password)
        unfinished = self.data.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        # It is written to disk as it starts.
        options = ("-R", "-c", "fast", "--no-sync")
        await self._run("pg_basebackup", "-d", primary.url, "-D", unfinished, *options)
        shutil.rmtree(self.data, ignore_errors=True)
        unfinished.rename(self.data)

    async def start(self) -> None:
        """Start it. It may need another server before it answers."""
        await self.kill()
        program = find_programs(self._user) / "bin" / "postgres"
        options = {
            "port": self.port, "cluster_name": self.name, "listen_addresses": self._machine.address,
            "unix_socket_directories": "",
        }  # fmt: skip
        command: list[str | Path] = [program, "-D", self.data]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = spawn(command, self._folder, user=self._user, yields=True, machine=self._machine)

    async def wait(self) -> None:
        """Wait until it answers, once it was started."""
        while self.runs:
            with suppress(*LOST):
                await self.fetch("SELECT 1")
                return
            await asyncio.sleep(0.05)
        raise StackError(f"PostgreSQL {self.name} ends while it starts")

    async def can_reach(self, other: "Server") -> bool:
        """Return whether another server answers from its own machine."""
        try:
            await self._run("pg_isready", "-d", other.url, "-t", "1")
        except StackError:
            return False
        return True

    async def rewind(self, primary: "Server") -> None:
        """Discard what it has and the primary has not, and let it follow that one. It is down afterwards."""
        await self.kill()
        source = f"--source-server={primary.url}"
        await self._run("pg_rewind", "-D", self.data, source, "--write-recovery-conf")

    async def follow(self, primary: "Server | None") -> None:
        """Let a standby follow another server, or none."""
        await self.fetch(f"ALTER SYSTEM SET primary_conninfo = '{primary.url if primary else ''}'")
        await self.fetch("SELECT pg_reload_conf()")
        while primary is None and await self.fetch("SELECT count(*) FROM pg_stat_wal_receiver"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    async def follows(self, primary: "Server") -> bool:
        """Return whether a standby is set to follow that server."""
        return f"@{primary.place}/" in str(await self.fetch("SHOW primary_conninfo"))

    async def find_timeline(self) -> str | None:
        """Return the timeline of a primary, as text that sorts; None of a standby."""
        if await self.fetch("SELECT pg_is_in_recovery()"):
            return None
        return str(await self.fetch("SELECT pg_walfile_name(pg_current_wal_lsn())"))[:8]

    async def count_received(self) -> int:
        """Return how far a standby has received."""
        return int(await self.fetch("SELECT coalesce(pg_last_wal_receive_lsn(), '0/0') - '0/0'::pg_lsn"))

    async def count_followers(self) -> int:
        """Return how many standbys follow it."""
        # pg_basebackup streams as well, under its own name.
        question = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        return int(await self.fetch(f"{question} AND application_name = ANY($1)", _NAMES))

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        """Return the one value that a statement yields, on a connection of its own. Raises LOST."""
        connection = await asyncpg.connect(self.url, timeout=_WAIT_S, command_timeout=30)
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            connection.terminate()

    async def stop(self) -> None:
        """Shut it down in order."""
        if self._process:
            await stop_process(self._process, signal.SIGINT, 30)

    async def kill(self) -> None:
        """Send SIGKILL to all of its processes."""
        await kill_processes(self.list_processes())

    def list_processes(self) -> list[ProcessId]:
        """Return all of its processes, whoever started them."""
        return find_processes(find_programs(self._user) / "bin" / "postgres", self.data)

    async def _run(self, program: str, *arguments: str | Path) -> None:
        command = [find_programs(self._user) / "bin" / program, *arguments]
        await run(command, self._folder, user=self._user, machine=self._machine)


def list_servers(folder: Path) -> list[Server]:
    """Return the servers of a service whose ports are written down."""
    places = zip(_NAMES, read_ports(folder), Network(folder.parent).machines, strict=True)
    return [Server(name, folder / name, port, machine) for name, port, machine in places]


def name_hosts(servers: Sequence[Server]) -> str:
    """Return a URL with all of these hosts."""
    return servers[0].url.replace(servers[0].place, ",".join(server.place for server in servers))
