"""Nodes of a cluster are killed and frozen one by one, and take their places again."""

import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from engine.local.cluster.nodes import Node, list_cluster, make_whole
from engine.local.cluster.postgres import LOST, PostgresCluster, list_servers
from engine.local.cluster.redis import RedisCluster, connect_nodes, is_replica, list_places, read_roles
from engine.local.process import identify, send_signal
from engine.local.stack import Stack, start_stack, stop_stack
from engine.tests.test_server import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="flashgrid-"))
    yield await start_stack(folder, [RedisCluster.name, PostgresCluster.name])
    await stop_stack(folder)
    shutil.rmtree(folder)


@pytest.fixture
def nodes(stack: Stack) -> dict[str, Node]:
    return {node.name: node for node in list_cluster(stack.data_dir)}


async def find_leader(stack: Stack) -> int | None:
    """The server of PostgreSQL that is the primary of both others."""
    for number, server in enumerate(list_servers(stack.data_dir / PostgresCluster.name)):
        with suppress(*LOST):
            if await server.count_followers() == 2:
                return number
    return None


async def leads(stack: Stack, numbers: Collection[int]) -> bool:
    return await find_leader(stack) in numbers


async def has_new_primary(stack: Stack, lost: Node) -> bool:
    """Whether a replica of a node of Redis has taken its place."""
    roles = await read_roles(stack.data_dir / RedisCluster.name)
    return lost.number not in roles and sum(role.primary is None for role in roles.values()) == 3


async def test_a_primary_knows_its_own_replicas_alone(stack: Stack) -> None:
    folder = stack.data_dir / RedisCluster.name
    roles, places = await read_roles(folder), list_places(folder)
    for number, role in roles.items():
        async with connect_nodes([places[number]]) as [node]:
            known = {
                primary
                for primary in roles
                if roles[primary].primary is None and await is_replica(node, places[primary])
            }
        assert known == ({role.primary} if role.primary is not None else set())


@pytest.mark.parametrize("frozen", [False, True], ids=["killed", "frozen"])
async def test_a_primary_of_redis_gets_its_place_back(
    stack: Stack, nodes: dict[str, Node], frozen: bool
) -> None:
    primary = nodes["redis 4"]
    assert primary.machine == 2
    if frozen:
        primary.freeze()
    else:
        await primary.kill()
    await eventually(partial(has_new_primary, stack, primary))
    if frozen:
        primary.thaw()
    else:
        await primary.start()
    await make_whole(stack.data_dir, [primary])
    roles = await read_roles(stack.data_dir / RedisCluster.name)
    assert [number for number, role in roles.items() if role.primary is None] == [0, 3, 6]


async def test_servers_of_postgres_come_back_as_what_they_can_be(
    stack: Stack, nodes: dict[str, Node]
) -> None:
    first, second = nodes["postgres 1"], nodes["postgres 2"]
    # One that is left can't be chosen: it may lack what the second one has confirmed.
    for node in (second, first):
        await node.kill()
    for node in (second, first):
        await node.start()
    await eventually(partial(leads, stack, {0}))
    send_signal([identify(stack.pid(PostgresCluster.name))], signal.SIGUSR1)
    await eventually(partial(leads, stack, {1, 2}))
