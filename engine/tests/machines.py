"""Clusters of three servers: PostgreSQL with two synchronous standbys, and RabbitMQ."""

import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from engine.local.cluster.postgres import Server, list_servers, name_hosts
from engine.local.cluster.promoter import promote, start_servers
from engine.local.cluster.rabbitmq import Node, RabbitMQCluster, list_nodes
from engine.local.ports import free_port, note_ports
from engine.local.process import ProcessId, family, kill_processes, send_signal
from engine.local.rabbitmq import RabbitMQ
from engine.tests.certificates import Authority, Certificate
from engine.tests.test_server import eventually


class PostgresCluster:
    """A primary with two standbys, one of which confirms each commit, and no promoter."""

    def __init__(self, servers: list[Server]) -> None:
        self.primary, *self.standbys = servers

    def list_hosts(self, *servers: Server) -> str:
        """Return a URL with these servers, or with all of them."""
        return name_hosts(servers or (self.primary, *self.standbys))

    async def promote(self) -> None:
        """Promote a standby, as a promoter does that has lost the primary."""
        self.primary = await promote(self.standbys)
        self.standbys.remove(self.primary)

    async def take_back(self, lost: Server) -> None:
        """Let a primary that was replaced follow the one that took over."""
        await lost.rewind(self.primary)
        await lost.start()
        self.standbys.append(lost)
        await eventually(self.is_whole)

    async def is_whole(self) -> bool:
        return await self.primary.count_followers() == len(self.standbys)


def freeze(server: "Server | RabbitNode") -> None:
    """Stop all of its processes: the kernel still takes connections for it."""
    send_signal(server.list_processes(), signal.SIGSTOP)


def thaw(server: "Server | RabbitNode") -> None:
    send_signal(server.list_processes(), signal.SIGCONT)


@asynccontextmanager
async def run_postgres_cluster(folder: Path) -> AsyncIterator[PostgresCluster]:
    """Run a primary with two standbys that follow it."""
    place = folder / "postgres-cluster"
    place.mkdir()
    note_ports(place, [free_port() for _ in range(3)])
    servers = list_servers(place)
    try:
        await start_servers(servers)
        cluster = PostgresCluster(servers)
        await eventually(cluster.is_whole)
        yield cluster
    finally:
        for server in servers:
            await server.kill()
        shutil.rmtree(place)


_TLS = """
listeners.ssl.local = 127.0.0.1:{port}
ssl_options.cacertfile = {certificate.authority}
ssl_options.certfile = {certificate.file}
ssl_options.keyfile = {certificate.key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = true
"""
_TLS_MANAGEMENT = """
management.ssl.ip = 127.0.0.1
management.ssl.port = {port}
management.ssl.cacertfile = {certificate.authority}
management.ssl.certfile = {certificate.file}
management.ssl.keyfile = {certificate.key}
management.ssl.verify = verify_peer
management.ssl.fail_if_no_peer_cert = true
"""


class RabbitNode:
    """One node of a cluster of RabbitMQ, whose management may answer on a port of its own.

    It speaks TLS as well, on a port of its own, and asks clients for certificates.
    """

    def __init__(self, node: Node, management: int | None, certificate: Certificate) -> None:
        self.name, self.port, self.url = node.name, node.port, node.url
        self.tls_port, self.tls_management = free_port(), free_port()
        self._node = node
        self._management = management
        self._certificate = certificate
        self._process: ProcessId | None = None

    def launch(self) -> None:
        """Start it; it joins the others."""
        settings = _TLS.format(port=self.tls_port, certificate=self._certificate)
        plugin = "rabbitmq_management_agent"
        if self._management:
            plugin = "rabbitmq_management"
            settings += _TLS_MANAGEMENT.format(port=self.tls_management, certificate=self._certificate)
            settings += f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._management}\n"
        self._process = self._node.launch(settings, plugin)

    async def answers(self) -> bool:
        with suppress(OSError, EOFError):
            return bool(await self._node.probe())
        return False

    async def leave_queue(self, queue: str) -> None:
        """Let the node hold nothing of a queue any longer."""
        await self._node.control("rabbitmq-queues", "delete_member", queue, self.name)

    async def set_policy(self, pattern: str, policy: str) -> None:
        """Give the queues with such names a policy; without any text, take it back."""
        change = ("set_policy", "--apply-to", "queues", "all", pattern, policy)
        await self._node.control("rabbitmqctl", *(change if policy else ("clear_policy", "all")))

    async def set_operator_policy(self, policy: str) -> None:
        """Give all queues an operator's policy; without any text, take it back."""
        change = ("set_operator_policy", "--apply-to", "queues", "limits", ".*", policy)
        await self._node.control("rabbitmqctl", *(change if policy else ("clear_operator_policy", "limits")))

    async def restart(self) -> None:
        await self.kill()
        self.launch()
        await eventually(self.answers, within_s=90)

    async def kill(self) -> None:
        await kill_processes(self.list_processes())

    def list_processes(self) -> list[ProcessId]:
        return family(self._process) if self._process else []


class RabbitCluster:
    """Three nodes of RabbitMQ."""

    def __init__(self, nodes: list[RabbitNode], management: int, client: Certificate) -> None:
        self.nodes = nodes
        self.management = management
        self._client = client

    def list_hosts(self, *first: RabbitNode) -> str:
        """Return a URL with all nodes, these ones first."""
        chosen = [*first, *(node for node in self.nodes if node not in first)]
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in chosen)
        return chosen[0].url.replace(f"127.0.0.1:{chosen[0].port}", hosts)

    def list_tls_hosts(self, first: RabbitNode) -> str:
        """Return a URL with all nodes, this one first, which are spoken to by TLS."""
        hosts = self.list_hosts(first)
        for node in self.nodes:
            hosts = hosts.replace(f":{node.port}", f":{node.tls_port}")
        return f"{hosts.replace('amqp:', 'amqps:')}?{self._client.for_rabbitmq}"


@asynccontextmanager
async def run_rabbit_cluster(folder: Path) -> AsyncIterator[RabbitCluster]:
    """Run three nodes of RabbitMQ that know each other."""
    place = folder / "rabbitmq-cluster"
    place.mkdir()
    *ports, management = [free_port() for _ in range(RabbitMQCluster.ports + 1)]
    note_ports(place, ports)
    first, *others = list_nodes(place)
    authority = Authority(place)
    certificate = authority.issue("server", "IP:127.0.0.1")
    nodes = [
        RabbitNode(first, management, certificate),
        *(RabbitNode(node, None, certificate) for node in others),
    ]
    mapper = RabbitMQ().launch_mapper(place, ports[-1])
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            await eventually(node.answers, within_s=120)
        yield RabbitCluster(nodes, management, authority.issue("client", "DNS:client"))
    finally:
        for node in nodes:
            await node.kill()
        await kill_processes([mapper])
        shutil.rmtree(place)
