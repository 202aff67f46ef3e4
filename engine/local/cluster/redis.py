"""A Redis Cluster as a private service: three machines, each with a primary and two others' replicas."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError, RedisError, ResponseError, TimeoutError

from engine.local.machines import Network
from engine.local.ports import note_ports, read_ports
from engine.local.process import HERE, Machine, ProcessId
from engine.local.redis import launch_server

MACHINES: Final = 3
_SLOTS: Final = 16_384
_FAILOVER_S: Final = 6.0
"""After 5 s Redis gives a failover up that was asked for."""
_WORDS: Final = 8
"""Of a node in CLUSTER NODES, before its slots."""


class RedisCluster:
    """Nine nodes. Each machine has three ports in a row: its primary's, then those of two replicas."""

    name = "redis-cluster"
    ports = MACHINES * MACHINES
    stop_signal = signal.SIGTERM
    machines = tuple(machine for machine in range(1, MACHINES + 1) for _ in range(MACHINES))
    """The machine of each node."""

    def url(self, _port: int, folder: Path) -> str:
        """Return the URL of the cluster by the first node of each machine."""
        places = list_places(folder)[::MACHINES]
        return "redis+cluster://" + ",".join(f"{address}:{port}" for address, port in places)

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start all nodes. They find each other, and make their cluster, as they are probed."""
        note_ports(folder, ports)
        return [self.launch_node(folder, number) for number in range(len(ports))]

    def launch_node(self, folder: Path, number: int) -> ProcessId:
        """Start a node, also again with what it knows of the others."""
        machine = Network(folder.parent).machines[number // MACHINES]
        return launch_node(folder, read_ports(folder)[number], machine)

    async def probe(self, _port: int, folder: Path) -> str:
        """Make the cluster if there is none; return the version once each primary has its replicas in sync.

        Raises RedisError until then.
        """
        places = list_places(folder)
        async with connect_nodes(places) as nodes:
            if await _count_primaries(nodes[0]) < MACHINES:
                await _make_cluster(nodes, places)
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


def list_places(folder: Path) -> list[tuple[str, int]]:
    """Return address and port of each node."""
    machines = Network(folder.parent).machines
    ports = read_ports(folder)
    return [(machines[number // MACHINES].address, port) for number, port in enumerate(ports)]


def launch_node(folder: Path, port: int, machine: Machine = HERE) -> ProcessId:
    """Start a node that has this port."""
    place = folder / f"node-{port}"
    place.mkdir(exist_ok=True)
    options = {
        "cluster-enabled": "yes",
        "cluster-node-timeout": "1000",
        # A shard without a primary keeps the others from nothing.
        "cluster-require-full-coverage": "no",
        "repl-diskless-sync-delay": "0",
        # Replicas stay with their shard, so that each machine has a copy of every shard.
        "cluster-migration-barrier": "9",
    }
    return launch_server(place, port, options, machine)


@asynccontextmanager
async def connect_nodes(places: Sequence[tuple[str, int]]) -> AsyncIterator[list[Any]]:
    """Yield a client of each node by itself."""
    async with AsyncExitStack() as closing:
        yield [
            await closing.enter_async_context(
                Redis(
                    host=address,
                    port=port,
                    socket_timeout=2,
                    decode_responses=True,
                    retry=Retry(NoBackoff(), 0),
                )
            )
            for address, port in places
        ]


class Role(NamedTuple):
    """What a node is to its shard."""

    primary: int | None
    """The place of its primary among the nodes; None of a primary."""
    commands_per_s: int
    """How many commands it takes."""


async def read_roles(folder: Path) -> dict[int, Role]:
    """Return the role of each node that answers, by its place among the nodes."""
    places, found = list_places(folder), dict[int, Role]()
    async with connect_nodes(places) as nodes:
        for number, node in enumerate(nodes):
            with suppress(RedisError, OSError):
                info = await node.info()
                followed = (info.get("master_host"), info.get("master_port"))
                primary = places.index(followed) if followed in places else None
                found[number] = Role(primary, info["instantaneous_ops_per_sec"])
    return found


async def take_over(folder: Path, number: int) -> None:
    """Make a node the primary of its shard, without a loss, unless it is."""
    asked_s, places = -_FAILOVER_S, list_places(folder)
    async with connect_nodes(places) as nodes:
        node = nodes[number]
        while (info := await node.info("replication"))["role"] != "master":
            # It may be refused. It is no more than begun, and begins anew if it is asked for again.
            if time.monotonic() - asked_s >= _FAILOVER_S and info["master_link_status"] == "up":
                primary = places.index((info["master_host"], info["master_port"]))
                with suppress(RedisError):
                    if await is_replica(node, nodes[primary], nodes):
                        await node.execute_command("CLUSTER", "FAILOVER")
                        asked_s = time.monotonic()
            await asyncio.sleep(0.05)


async def is_replica(node: Any, primary: Any, nodes: Sequence[Any]) -> bool:
    """Return whether all nodes that answer are connected to a replica of the primary, and know it as that.

    The primary ignores what any other node asks for. And the votes of nodes that can't send it any are lost:
    a node that was started again is connected to a tenth of a second later. It asks for votes again after
    four seconds, in which its primary takes no writes. Raises RedisError.
    """
    name, own = [await each.execute_command("CLUSTER", "MYID") for each in (node, primary)]
    for each in nodes:
        try:
            lines = await each.execute_command("CLUSTER", "REPLICAS", own)
        except ResponseError:
            return False  # it takes the primary for a replica
        except (ConnectionError, TimeoutError, OSError):
            continue
        if not any(line.startswith(name) and line.endswith(" connected") for line in lines):
            return False
    return True


async def _count_primaries(node: Any) -> int:
    """Return how many nodes hold slots, as far as one node knows."""
    text = await node.execute_command("CLUSTER", "NODES")
    return sum(len(line.split()) > _WORDS for line in text.splitlines())


async def introduce(node: Any, others: Sequence[tuple[str, int]]) -> None:
    """Let a node meet others until it knows them all. Raises RedisError.

    A node that does not answer within the node timeout is forgotten, and has to be met again.
    """
    while True:
        lines = (await node.execute_command("CLUSTER", "NODES")).splitlines()
        # id, address:port@bus port, flags, …
        flags = {line.split()[1].split("@")[0]: line.split()[2] for line in lines}
        found = [flags.get(f"{address}:{port}") for address, port in others]
        if not any(flag is None or "handshake" in flag for flag in found):
            return
        for place, flag in zip(others, found, strict=True):
            if flag is None:
                await node.execute_command("CLUSTER", "MEET", *place)
        await asyncio.sleep(0.02)


async def _make_cluster(nodes: Sequence[Any], places: Sequence[tuple[str, int]]) -> None:
    """Let nodes meet, give each its role and the primaries their slots; what is done already stays."""
    for number, node in enumerate(nodes, start=1):
        with suppress(ResponseError):
            await node.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number)
    await introduce(nodes[0], places[1:])
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
