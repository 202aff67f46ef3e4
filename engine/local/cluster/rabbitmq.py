"""RabbitMQ of three machines as a private service: three nodes, each of which holds every queue."""

import secrets
import signal
from pathlib import Path
from typing import Final

from engine.local.process import ProcessId, note_ports, read_ports
from engine.local.rabbitmq import RabbitMQ

_NAMES: Final = ("one", "two", "three")
_SETTINGS: Final = "".join(
    (
        "cluster_formation.peer_discovery_backend = classic_config\n",
        *(
            f"cluster_formation.classic_config.nodes.{number} = {name}@localhost\n"
            for number, name in enumerate(_NAMES, start=1)
        ),
        # Two nodes go on without the third one, which stops until it sees them again.
        "cluster_partition_handling = pause_minority\n",
        # Seconds until a node that says nothing is taken for lost. By default it is 60.
        "net_ticktime = 5\n",
    )
)


class RabbitMQCluster:
    """Three nodes with one port mapper (epmd) of their own."""

    name = "rabbitmq-cluster"
    ports = 2 * len(_NAMES) + 1
    """Of each node AMQP, then of each node Erlang distribution, then epmd."""
    stop_signal = signal.SIGTERM

    def url(self, _port: int, folder: Path) -> str:
        """Return a URL with all hosts."""
        ports = read_ports(folder)[: len(_NAMES)]
        return (
            RabbitMQ().url(0, folder).replace("127.0.0.1:0", ",".join(f"127.0.0.1:{port}" for port in ports))
        )

    def find(self) -> Path:
        """Return the start script. Raises StackError if RabbitMQ is not installed."""
        return RabbitMQ().find()

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start epmd and the nodes, which find each other. Raises StackError if RabbitMQ is not installed."""
        note_ports(folder, ports)
        nodes = list_nodes(folder, ports)
        return [*(node.launch() for node in nodes), RabbitMQ().launch_mapper(folder, ports[-1])]

    async def probe(self, _port: int, folder: Path) -> str:
        """Ask each node for its version, and return that of the last one."""
        versions = [await node.probe() for node in list_nodes(folder, read_ports(folder))]
        return versions[-1]


class Node:
    """One of the nodes."""

    def __init__(self, name: str, folder: Path, ports: list[int]) -> None:
        self.name = f"{name}@localhost"
        self.port = ports[0]
        self._ports = ports
        """AMQP, Erlang distribution, epmd."""
        self._folder = folder

    @property
    def url(self) -> str:
        """The URL of this node alone."""
        return RabbitMQ().url(self.port, self._folder)

    def launch(self, settings: str = "", plugin: str = "") -> ProcessId:
        """Start it, or start it again, with more settings and with a plugin."""
        cookie, own = (place / ".erlang.cookie" for place in (self._folder.parent, self._folder / "home"))
        own.parent.mkdir(parents=True, exist_ok=True)
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20))
        own.touch(mode=0o600)
        own.write_text(cookie.read_text())
        return RabbitMQ().launch_node(self._folder, self._ports, self.name, f"{_SETTINGS}{settings}", plugin)

    async def probe(self) -> str:
        """Return its version. Raises OSError, EOFError if it does not answer."""
        return await RabbitMQ().probe(self.port, self._folder)

    async def control(self, tool: str, *arguments: str) -> None:
        """Run one of the broker's tools for it. Raises StackError with its output if that fails."""
        await RabbitMQ().control(self._folder, self._ports, arguments, self.name, tool)


def list_nodes(folder: Path, ports: list[int]) -> list[Node]:
    """Return the nodes that have these ports."""
    count = len(_NAMES)
    return [
        Node(name, folder / name, [ports[number], ports[count + number], ports[-1]])
        for number, name in enumerate(_NAMES)
    ]
