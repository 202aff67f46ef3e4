"""A Redis Cluster as a private service: three machines, each with a primary and two others' replicas."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from redis.asyncio import Redis
from redis.exceptions import ConnectionError, ResponseError

from engine.local.process import ProcessId, note_ports, read_ports
from engine.local.redis import launch_server

MACHINES: Final = 3
_SLOTS: Final = 16_384
_WORDS: Final = 8
"""Of a node in CLUSTER NODES, before its slots."""


class RedisCluster:
    """Nine nodes. Each machine has three ports in a row: its primary's, then those of two replicas."""

    name = "redis-cluster"
    ports = MACHINES * MACHINES
    stop_signal = signal.SIGTERM

    def url(self, _port: int, folder: Path) -> str:
        """Return the URL of the cluster by the first node of each machine."""
        return "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in read_ports(folder)[::MACHINES])

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start all nodes. They find each other, and make their cluster, as they are probed."""
        note_ports(folder, ports)
        return [launch_node(folder, port) for port in ports]

    async def probe(self, _port: int, folder: Path) -> str:
        """Make the cluster if there is none; return the version once each primary has its replicas in sync.

        Raises RedisError until then.
        """
        ports = read_ports(folder)
        async with connect_nodes(ports) as nodes:
            if await _count_primaries(nodes[0]) < MACHINES:
                await _make_cluster(nodes, ports)
            primaries = 0
            for node in nodes:
                state = await node.execute_command("CLUSTER", "INFO")
                role = await node.info("replication")
                if "cluster_state:ok" not in state or role.get("master_link_status", "up") != "up":
                    raise ConnectionError("the nodes don't know each other yet")
                if role["role"] == "master":
                    primaries += 1
                    # A replica may call its link up before it takes anything.
                    if await node.execute_command("WAIT", MACHINES - 1, 1_000) < MACHINES - 1:
                        raise ConnectionError("a primary lacks replicas")
            if primaries != MACHINES:
                raise ConnectionError("replicas don't know their primaries yet")
            return str((await nodes[0].info("server"))["redis_version"])


def launch_node(folder: Path, port: int) -> ProcessId:
    """Start a node, also again with what it knows of the others."""
    place = folder / f"node-{port}"
    place.mkdir(exist_ok=True)
    options = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "1000",
        # A shard without a primary keeps the others from nothing.
        "cluster-require-full-coverage": "no",
        "repl-diskless-sync-delay": "0",
    }
    return launch_server(place, port, options)


@asynccontextmanager
async def connect_nodes(ports: Sequence[int]) -> AsyncIterator[list[Any]]:
    """Yield a client of each node by itself."""
    async with AsyncExitStack() as closing:
        yield [
            await closing.enter_async_context(Redis(port=port, socket_timeout=2, decode_responses=True))
            for port in ports
        ]


async def _count_primaries(node: Any) -> int:
    """Return how many nodes hold slots, as far as one node knows."""
    text = await node.execute_command("CLUSTER", "NODES")
    return sum(len(line.split()) > _WORDS for line in text.splitlines())


async def _make_cluster(nodes: Sequence[Any], ports: Sequence[int]) -> None:
    """Let nodes meet, give each its role and the primaries their slots; what is done already stays."""
    for number, node in enumerate(nodes, start=1):
        with suppress(ResponseError):
            await node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number)
    for port in ports[1:]:
        await nodes[0].execute_command("CLUSTER", "MEET", "127.0.0.1", port)
    for node in nodes:
        while f"cluster_known_nodes:{len(nodes)}" not in await node.execute_command("CLUSTER", "INFO"):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    primaries = nodes[::MACHINES]
    for number, node in enumerate(nodes):
        machine, replica = divmod(number, MACHINES)
        if replica:
            name = await primaries[(machine + replica) % MACHINES].execute_command("CLUSTER", "MYID")
            await node.execute_command("CLUSTER", "REPLICATE", name)
    for machine, node in enumerate(primaries):
        slots = range(machine * _SLOTS // MACHINES, (machine + 1) * _SLOTS // MACHINES)
        with suppress(ResponseError):
            await node.execute_command("CLUSTER", "ADDSLOTS", *slots)
