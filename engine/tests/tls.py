"""A Redis Cluster that speaks TLS alone, and asks its clients for certificates."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from engine.local.cluster.redis import introduce
from engine.local.ports import free_port
from engine.local.process import ProcessId, stop_process
from engine.local.redis import launch_server
from engine.tests.certificates import Authority, Certificate
from engine.tests.clusters import Cluster, Node
from engine.tests.distribution import find_redis
from engine.tests.test_server import eventually

_SLOTS = 16_384


class TlsCluster(Cluster):
    """Three primaries of Redis with a replica each, which ask clients for certificates."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder)
        self.client = self.authority.issue("client", "DNS:client")
        self._server = self.authority.issue("server", "IP:127.0.0.1")
        self._options: dict[str, Any] = {"ssl": True, "ssl_cert_reqs": "none"}
        self._options |= {"ssl_certfile": str(self.client.file), "ssl_keyfile": str(self.client.key)}
        super().__init__(folder, "", {})
        for port in [free_port() for _ in range(6)]:
            self.nodes[port] = Node(port, self._launch(port), **self._options)
        self.url = self.name_nodes(self.client.for_redis)

    def name_nodes(self, options: str = "", host: str = "127.0.0.1") -> str:
        """Return a URL of the first three nodes: two primaries, and a replica."""
        places = ",".join(f"{host}:{port}" for port in list(self.nodes)[:3])
        return f"rediss+cluster://{places}{'?' if options else ''}{options}"

    def _launch(self, port: int) -> ProcessId:
        place = self._folder / f"node-{port}"
        place.mkdir(exist_ok=True)
        options = {
            "port": "0",
            "tls-port": str(port),
            "tls-cluster": "yes",
            "tls-replication": "yes",
            "tls-auth-clients": "yes",
            "tls-cert-file": str(self._server.file),
            "tls-key-file": str(self._server.key),
            "tls-ca-cert-file": str(self._server.authority),
            "cluster-enabled": "yes",
            # Within it, nodes that meet must answer each other.
            "cluster-node-timeout": "15000",
            "cluster-require-full-coverage": "no",
            "repl-diskless-sync-delay": "0",
            "cluster-migration-barrier": "9",
        }
        return launch_server(place, port, options)

    async def present(self, certificate: Certificate | None = None, *nodes: Node) -> None:
        """Let nodes, or all, have another certificate; without one, their first one again."""
        certificate = certificate or self._server
        change = ("tls-cert-file", certificate.file, "tls-key-file", certificate.key)
        for node in nodes or self.nodes.values():
            await node.execute("CONFIG", "SET", *map(str, change))

    async def announce(self, name: str, preferred: str) -> None:
        """Let all nodes announce a host name, and say what clients should reach them by."""
        for node in self.nodes.values():
            change = ("cluster-announce-hostname", name, "cluster-preferred-endpoint-type", preferred)
            await node.execute("CONFIG", "SET", *change)
        for node in self.nodes.values():
            await eventually(partial(knows_name, node, name))

    async def form(self) -> None:
        """Make a cluster of the nodes: each second one is the replica of the one before."""
        nodes = list(self.nodes.values())
        for number, node in enumerate(nodes, 1):
            await eventually(node.answers)
            await node.execute("CLUSTER", "SET-CONFIG-EPOCH", number)
        async with Redis(port=nodes[0].port, decode_responses=True, **self._options) as first:
            await introduce(first, [("127.0.0.1", node.port) for node in nodes[1:]])
        for number, node in enumerate(nodes[::2]):
            span = range(number * _SLOTS // 3, (number + 1) * _SLOTS // 3)
            await node.execute("CLUSTER", "ADDSLOTS", *span)
        for primary, replica in zip(nodes[::2], nodes[1::2], strict=True):
            name = (await primary.execute("CLUSTER", "MYID")).decode()
            await eventually(partial(_follows, replica, name))
        await self.make_whole()

    async def make_whole(self) -> None:
        """Wait until each primary has its replica, and all nodes know each other; from then on, a primary
        that is silent for a second is replaced."""
        for node in self.nodes.values():
            await eventually(partial(_is_whole, node), within_s=60)
        for node in self.nodes.values():
            await node.execute("CONFIG", "SET", "cluster-node-timeout", 1_000)

    async def start(self, node: Node) -> None:
        """Start a node again that was killed."""
        node.process = self._launch(node.port)
        await eventually(node.answers)
        await self.make_whole()


async def _follows(replica: Node, primary: str) -> bool:
    try:
        await replica.execute("CLUSTER", "REPLICATE", primary)
    except ResponseError:
        return False  # it has not met it yet
    return True


async def _is_whole(node: Node) -> bool:
    state = (await node.execute("CLUSTER", "INFO")).decode().split()
    role: Any = await node.execute("INFO", "replication")
    linked = role.get("master_link_status") == "up" or role.get("connected_slaves") == 1
    return linked and {"cluster_state:ok", "cluster_known_nodes:6", "cluster_size:3"} <= set(state)


async def knows_name(node: Node, name: str) -> bool:
    lines = (await node.execute("CLUSTER", "NODES")).decode().splitlines()
    return {line.split()[1].partition(",")[2] for line in lines} == {name}


@asynccontextmanager
async def run_tls_cluster(folder: Path) -> AsyncIterator[TlsCluster]:
    find_redis()  # the package's knows no TLS
    cluster = TlsCluster(Path(mkdtemp(prefix="tls-cluster-", dir=folder)))
    try:
        await cluster.form()
        yield cluster
    finally:
        for node in cluster.nodes.values():
            await stop_process(node.process, signal.SIGKILL, 10)
