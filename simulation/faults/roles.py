"""Which node of a cluster has a role now."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from engine.local.cluster import rabbitmq
from engine.local.cluster.nodes import Node, list_cluster
from engine.local.cluster.postgres import PostgresCluster, find_primary, list_servers
from engine.local.cluster.rabbitmq import RabbitMQCluster
from engine.local.cluster.redis import RedisCluster, read_roles
from simulation.errors import FaultError
from simulation.model.formats import PURCHASES
from simulation.scenario.fault import MACHINES


async def find_nodes(on: str, data_dir: Path) -> list[Node]:
    """Return the nodes that the target of a fault names now. Raises FaultError or StackError if none does."""
    nodes = list_cluster(data_dir)
    if on in MACHINES:
        return [node for node in nodes if MACHINES[node.machine - 1] == on]
    if on not in _ROLES:
        return [node for node in nodes if node.name == on]
    service, find = _ROLES[on]
    number = await find(data_dir / service)
    if number is None:
        raise FaultError(f"there is no {on} now")
    return [node for node in nodes if (node.service, node.number) == (service, number)]


async def find_redis_primary(folder: Path) -> int | None:
    """Return the primary of the busiest shard."""
    roles = await read_roles(folder)
    primaries = [number for number, role in roles.items() if role.primary is None]
    return max(primaries, key=lambda number: roles[number].commands_per_s, default=None)


async def find_redis_replica(folder: Path) -> int | None:
    """Return a replica of the busiest shard's primary."""
    if (primary := await find_redis_primary(folder)) is None:
        return None
    roles = await read_roles(folder)
    return next((number for number, role in roles.items() if role.primary == primary), None)


async def find_postgres_primary(folder: Path) -> int | None:
    """Return the primary on the newest timeline."""
    servers = list_servers(folder)
    primary = await find_primary(servers)
    return servers.index(primary) if primary else None


async def _find_postgres_standby(folder: Path) -> int | None:
    return _another(await find_postgres_primary(folder), PostgresCluster.machines)


async def _find_queue_leader(folder: Path) -> int | None:
    nodes = rabbitmq.list_nodes(folder)
    leader = await nodes[0].find_leader(PURCHASES)
    return next((number for number, node in enumerate(nodes) if node.name == leader), None)


async def _find_queue_follower(folder: Path) -> int | None:
    return _another(await _find_queue_leader(folder), RabbitMQCluster.machines)


def _another(number: int | None, all_: tuple[int, ...]) -> int | None:
    return None if number is None else (number + 1) % len(all_)


_ROLES: Final[dict[str, tuple[str, Callable[[Path], Awaitable[int | None]]]]] = {
    "redis-primary": (RedisCluster.name, find_redis_primary),
    "redis-replica": (RedisCluster.name, find_redis_replica),
    "queue-leader": (RabbitMQCluster.name, _find_queue_leader),
    "queue-follower": (RabbitMQCluster.name, _find_queue_follower),
    "postgres-primary": (PostgresCluster.name, find_postgres_primary),
    "postgres-standby": (PostgresCluster.name, _find_postgres_standby),
}
"""Its service, and who has it, by the place among the service's nodes."""
