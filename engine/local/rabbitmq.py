"""RabbitMQ as a private service."""

import asyncio
import re
import secrets
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from engine.errors import StackError
from engine.local.process import HERE, Machine, ProcessId, run, spawn

_NAME: Final = "flashgrid@localhost"
"""It is part of the data: it stays, whatever the ports and wherever the folder. The private epmd keeps it
apart from other brokers."""
_OWN_FOLDER: Final = Path("/proc/self/cwd")
"""What any process may call the folder in which it runs."""


class RabbitMQ:
    """RabbitMQ out of the system's packages, with its own port mapper (epmd), Erlang cookie and folders."""

    name = "rabbitmq"
    ports = 3  # AMQP, Erlang distribution, epmd
    stop_signal = signal.SIGTERM

    def url(self, port: int, _folder: Path, address: str = HERE.address) -> str:
        """Return the URL of the broker's default user, whom it lets in from loopback only."""
        return f"amqp://guest:guest@{address}:{port}/"

    def find(self) -> Path:
        """Return the broker's start script. Raises StackError if it or Erlang is not installed."""
        # The one on PATH beside a packaged one is a wrapper that insists on the system's user and folders.
        packaged = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
        server = packaged if packaged.exists() else shutil.which("rabbitmq-server")
        if not (server and shutil.which("erl") and shutil.which("epmd")):
            raise StackError("RabbitMQ is not installed, so there is no bus: apt install rabbitmq-server")
        return Path(server)

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start epmd and the broker. Raises StackError if RabbitMQ is not installed."""
        broker = self.launch_node(folder, ports)
        # It is up long before the broker, which first starts a virtual machine, asks for it.
        return [broker, self.launch_mapper(folder, ports[2])]

    def launch_mapper(self, folder: Path, port: int, machine: Machine = HERE) -> ProcessId:
        """Start epmd."""
        command = ["epmd", "-port", str(port), "-address", machine.address]
        return spawn(command, folder, _environment(folder, port), machine=machine)

    def launch_node(
        self,
        folder: Path,
        ports: list[int],
        name: str = _NAME,
        settings: str = "",
        plugin: str = "",
        machine: Machine = HERE,
    ) -> ProcessId:
        """Start a broker with lines of settings of its own, and with a plugin."""
        server = self.find()
        port, distribution_port, epmd_port = ports
        home = folder / "home"
        home.mkdir(exist_ok=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20))
        (folder / "enabled_plugins").write_text(f"[{plugin}].\n")
        (folder / "rabbitmq.conf").write_text(f"listeners.tcp.local = {machine.address}:{port}\n{settings}")
        seen = _as_seen(folder)
        env = _environment(folder, epmd_port, name) | {
            "RABBITMQ_DIST_PORT": str(distribution_port),
            "RABBITMQ_CONFIG_FILE": str(seen / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(seen / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(seen),
            "RABBITMQ_MNESIA_DIR": str(seen / "data"),
            "RABBITMQ_LOG_BASE": str(seen),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(seen / "pid"),
            # Idle schedulers spin by default, which costs the rest of a small machine its processor.
            # And members of a queue look every five seconds whether its leader lives, and wait as long again
            # before they elect another one. RabbitMQ 3.10.8, as in Debian 12, has no setting for that.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none"
            " -aten poll_interval 1000"
            f" -kernel inet_dist_use_interface {{{machine.address.replace('.', ',')}}}",
            # Makes the script become the broker, in place of waiting for it as its parent.
            "RUNNING_UNDER_SYSTEMD": "true",
        }
        return spawn([server], folder, env, yields=True, machine=machine)

    async def control(
        self,
        folder: Path,
        ports: list[int],
        arguments: Sequence[str],
        name: str = _NAME,
        tool: str = "rabbitmqctl",
        machine: Machine = HERE,
    ) -> str:
        """Run a tool for the broker in `folder`, and return its output. Raises StackError if it fails."""
        program = str(self.find().with_name(tool))
        return await run([program, *arguments], folder, _environment(folder, ports[2], name), machine=machine)

    async def probe(self, port: int, _folder: Path, address: str = HERE.address) -> str:
        """Open a connection and read its first frame, which holds the version."""
        reader, writer = await asyncio.open_connection(address, port)
        try:
            # AMQP 0-9-1, section 4.2.2: the server answers the protocol header with a Connection.Start frame.
            writer.write(b"AMQP\x00\x00\x09\x01")
            head = await reader.readexactly(7)
            body = await reader.readexactly(int.from_bytes(head[3:7], "big"))
        finally:
            writer.close()
        match = re.search(rb"\x07versionS.{4}([0-9.]+)", body, re.DOTALL)
        return match[1].decode() if match else "unknown"


def _environment(folder: Path, epmd_port: int, name: str = _NAME) -> dict[str, str]:
    """Return what the broker and its tools need to find each other."""
    host = name.partition("@")[2]
    has_address = "." in host
    return {
        "HOME": str(_as_seen(folder) / "home"),
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": host if has_address else HERE.address,
        "RABBITMQ_NODENAME": name,
        # Erlang calls an address a long name.
        "RABBITMQ_USE_LONGNAME": str(has_address).lower(),
        "RABBITMQ_CONF_ENV_FILE": str(_as_seen(folder) / "rabbitmq-env.conf"),
    }


def _as_seen(folder: Path) -> Path:
    """Return the folder as its processes, which run in it, are told: a quote would end their commands."""
    is_plain = re.fullmatch(r"[\w/.+@:,=~-]+", str(folder), re.ASCII)
    return _OWN_FOLDER if _OWN_FOLDER.exists() and not is_plain else folder
