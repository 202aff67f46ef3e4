"""Which node of a cluster is the target of a fault now."""

from collections.abc import Sequence
from typing import Final

from engine.local.cluster.nodes import Node, list_cluster
from engine.local.cluster.redis import RedisCluster, read_roles
from engine.local.stack import Stack
from simulation.errors import FaultError
from simulation.scenario.fault import MACHINES
from simulation.target.cluster.roles import LEDGER, QUEUE, Roles
from simulation.target.engine_process import EngineProcess
from simulation.target.services import Services

_ROLES: Final = {
    "queue-leader": (QUEUE, 0),
    "queue-follower": (QUEUE, 1),
    "postgres-primary": (LEDGER, 0),
    "postgres-standby": (LEDGER, 1),
}
"""What they concern, and how many places after the node in charge they are among the nodes."""


async def find_nodes(
    on: str, services: Services, stack: Stack, engines: Sequence[EngineProcess]
) -> Sequence[Node | EngineProcess]:
    """Return the nodes, and the engines, that the target of a fault names now.

    Raises FaultError if there is none.
    """
    nodes = list_cluster(stack.data_dir)
    everything: list[Node | EngineProcess] = [*engines, *nodes]
    found: Sequence[Node | EngineProcess]
    if on in MACHINES:
        return [each for each in everything if MACHINES[each.machine - 1] == on]
    if on in ("redis-primary", "redis-replica"):
        primary = await _find_busiest(stack)
        numbers = [primary] if on == "redis-primary" else (await find_replicas(primary, stack))[:1]
        found = [node for node in nodes if node.service == RedisCluster.name and node.number in numbers]
    elif on in _ROLES:
        role, after = _ROLES[on]
        name = await find_in_charge(role, services)
        service = [node for node in nodes if node.name.split()[:1] == name.split()[:1]]
        found = [service[(node.number + after) % len(service)] for node in service if node.name == name]
    else:
        found = [each for each in everything if each.name == on.replace("-", " ")]
    if not found:
        raise FaultError(f"there is no {on} now, as far as anybody knows")
    return found


async def find_in_charge(role: str, services: Services) -> str:
    """Return the name of the node in charge of the queue or the ledger; nothing if nobody knows it."""
    roles = Roles(services, 1)
    try:
        return (await roles.read()).get(role, "")
    finally:
        await roles.close()


async def find_replicas(primary: int, stack: Stack) -> list[int]:
    """Return the places of a primary's replicas among the nodes of Redis."""
    roles = await read_roles(stack.data_dir / RedisCluster.name)
    return [number for number, role in roles.items() if role.primary == primary]


async def _find_busiest(stack: Stack) -> int:
    """Return the place of the busiest shard's primary among the nodes of Redis. Raises FaultError."""
    roles = await read_roles(stack.data_dir / RedisCluster.name)
    primaries = [number for number, role in roles.items() if role.primary is None]
    if not primaries:
        raise FaultError("no primary of redis answers")
    return max(primaries, key=lambda number: roles[number].commands_per_s)
