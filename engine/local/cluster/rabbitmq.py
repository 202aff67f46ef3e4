"""RabbitMQ of three machines as a private service: three nodes, each of which holds every queue."""

import secrets
import signal
from pathlib import Path
from typing import Final

import msgspec

from engine.local.machines import Network
from engine.local.ports import note_ports, read_ports
from engine.local.process import Machine, ProcessId
from engine.local.rabbitmq import RabbitMQ

_NAMES: Final = ("one", "two", "three")
_SETTINGS: Final = (
    "cluster_formation.peer_discovery_backend = classic_config\n"
    # Two nodes go on without the third one, which stops until it sees them again.
    "cluster_partition_handling = pause_minority\n"
    # Seconds until a node that says nothing is taken for lost. By default it is 60.
    "net_ticktime = 5\n"
    # Machines have addresses of their own: the default user does not come from loopback.
    "loopback_users = none\n"
)


class RabbitMQCluster:
    """A node on each machine, and a port mapper (epmd) on each."""

    name = "rabbitmq-cluster"
    ports = 2 * len(_NAMES) + 1
    """Of each node AMQP, then of each node Erlang distribution, then epmd."""
    stop_signal = signal.SIGTERM
    machines = (1, 2, 3)
    """The machine of each node."""

    def url(self, _port: int, folder: Path) -> str:
        """Return a URL with all hosts."""
        first, *others = list_nodes(folder)
        return first.url.replace(first.place, ",".join(node.place for node in (first, *others)))

    def find(self) -> Path:
        """Return the start script. Raises StackError if RabbitMQ is not installed."""
        return RabbitMQ().find()

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start epmd and the nodes, which find each other. Raises StackError if there is no RabbitMQ."""
        note_ports(folder, ports)
        nodes = [node.launch() for node in list_nodes(folder)]
        machines = dict.fromkeys(Network(folder.parent).machines)
        return nodes + [RabbitMQ().launch_mapper(folder, ports[-1], machine) for machine in machines]

    def launch_node(self, folder: Path, number: int) -> ProcessId:
        """Start a node again."""
        return list_nodes(folder)[number].launch()

    async def probe(self, _port: int, folder: Path) -> str:
        """Ask each node for its version, and return that of the last one."""
        versions = [await node.probe() for node in list_nodes(folder)]
        return versions[-1]


class Node:
    """One of the nodes."""

    def __init__(self, number: int, folder: Path, ports: list[int], machines: list[Machine]) -> None:
        self.machine = machines[number]
        self.name = f"{_NAMES[number]}@{self.machine.address}"
        self.port = ports[number]
        self.place = f"{self.machine.address}:{self.port}"
        self._ports = [self.port, ports[len(_NAMES) + number], ports[-1]]
        """AMQP, Erlang distribution, epmd."""
        self._folder = folder / _NAMES[number]
        self._peers = "".join(
            f"cluster_formation.classic_config.nodes.{place} = {name}@{machine.address}\n"
            for place, (name, machine) in enumerate(zip(_NAMES, machines, strict=True), start=1)
        )

    @property
    def url(self) -> str:
        """The URL of this node alone."""
        return RabbitMQ().url(self.port, self._folder, self.machine.address)

    def launch(self, settings: str = "", plugin: str = "") -> ProcessId:
        """Start it, or start it again, with more settings and with a plugin."""
        cookie, own = (place / ".erlang.cookie" for place in (self._folder.parent, self._folder / "home"))
        own.parent.mkdir(parents=True, exist_ok=True)
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20))
        own.touch(mode=0o600)
        own.write_text(cookie.read_text())
        settings = f"{_SETTINGS}{self._peers}{settings}"
        return RabbitMQ().launch_node(self._folder, self._ports, self.name, settings, plugin, self.machine)

    async def probe(self) -> str:
        """Return its version. Raises OSError, EOFError if it does not answer."""
        return await RabbitMQ().probe(self.port, self._folder, self.machine.address)

    async def control(self, tool: str, *arguments: str) -> str:
        """Run one of the broker's tools for it, and return its output. Raises StackError if that fails."""
        return await RabbitMQ().control(self._folder, self._ports, arguments, self.name, tool, self.machine)

    async def list_running(self) -> list[str]:
        """Return the names of the nodes that run and that this one sees. Raises StackError."""
        status = msgspec.json.decode(
            await self.control("rabbitmqctl", "cluster_status", "--formatter", "json")
        )
        return list(status["running_nodes"])


def list_nodes(folder: Path) -> list[Node]:
    """Return the nodes of a service whose ports are written down."""
    ports, machines = read_ports(folder), Network(folder.parent).machines
    return [Node(number, folder, ports, machines) for number in range(len(_NAMES))]
