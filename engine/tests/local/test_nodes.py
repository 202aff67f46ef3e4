"""Nodes of a cluster are killed and frozen one by one, and take their places again."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from engine.local.cluster.nodes import Node, list_cluster, make_whole
from engine.local.cluster.postgres import LOST, PostgresCluster, Server, list_servers
from engine.local.cluster.promoter import _ask_for, promote
from engine.local.cluster.redis import (
    RedisCluster,
    connect_nodes,
    is_replica,
    launch_node,
    list_places,
    read_roles,
)
from engine.local.ports import free_port
from engine.local.process import identify, kill_processes, send_signal
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


def postgres_servers(stack: Stack) -> list[Server]:
    return list_servers(stack.data_dir / PostgresCluster.name)


async def find_leader(stack: Stack, followers: int = 2, after: str = "") -> tuple[int, str]:
    """Await the server of PostgreSQL that is the primary of so many others, on a later timeline than `after`;
    also the timeline. A server that was killed writes all its files to disk as it starts.
    """
    async with asyncio.timeout(120):
        while True:
            for number, server in enumerate(postgres_servers(stack)):
                with suppress(*LOST):
                    timeline = await server.find_timeline() or ""
                    if timeline > after and await server.count_followers() == followers:
                        return number, timeline
            await asyncio.sleep(0.02)


async def answers(server: Server) -> bool:
    with suppress(*LOST):
        return bool(await server.fetch("SELECT true"))
    return False


async def has_new_primary(stack: Stack, lost: Node) -> bool:
    """Whether a replica of a node of Redis has taken its place."""
    roles = await read_roles(stack.data_dir / RedisCluster.name)
    return lost.number not in roles and sum(role.primary is None for role in roles.values()) == 3


async def test_a_primary_knows_its_own_replicas_alone(stack: Stack) -> None:
    folder = stack.data_dir / RedisCluster.name
    roles, places = await read_roles(folder), list_places(folder)
    async with connect_nodes(places) as servers:
        for number, role in roles.items():
            known = {
                primary
                for primary in roles
                if roles[primary].primary is None
                and await is_replica(servers[number], servers[primary], servers)
            }
            assert known == ({role.primary} if role.primary is not None else set())


async def test_a_replica_that_a_node_does_not_know_yet_is_none(stack: Stack, tmp_path: Path) -> None:
    roles, port = await read_roles(stack.data_dir / RedisCluster.name), free_port()
    replica, primary = next(
        (number, role.primary) for number, role in roles.items() if role.primary is not None
    )
    stranger = launch_node(tmp_path, port)
    places = [*list_places(stack.data_dir / RedisCluster.name), ("127.0.0.1", port)]
    try:
        async with connect_nodes(places) as [*servers, alone]:
            await eventually(partial(pings, alone))
            assert await is_replica(servers[replica], servers[primary], servers)
            assert not await is_replica(servers[replica], servers[primary], [*servers, alone])
    finally:
        await kill_processes([stranger])
    async with connect_nodes(places) as [*servers, dead]:
        assert await is_replica(servers[replica], servers[primary], [dead, *servers])


async def pings(server: Any) -> bool:
    with suppress(RedisError, OSError):
        return bool(await server.ping())
    return False


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
    servers = postgres_servers(stack)
    leader, _ = await find_leader(stack)
    confirms, lacks = (number for number in range(3) if number != leader)
    of_postgres = [nodes[f"postgres {number + 1}"] for number in range(3)]
    await of_postgres[lacks].kill()
    await servers[leader].fetch("CREATE TABLE confirmed ()")
    for number in (confirms, leader):
        await of_postgres[number].kill()
    # One that is alone can't be chosen: it may lack what another one has confirmed, as here.
    await of_postgres[lacks].start()
    await eventually(partial(answers, servers[lacks]), within_s=120)
    for number in (confirms, leader):
        await of_postgres[number].start()
    leader, _ = await find_leader(stack)
    assert await servers[leader].fetch("SELECT to_regclass('confirmed')")


async def test_a_primary_of_postgres_hands_over_and_one_whose_data_are_gone_is_made_anew(
    stack: Stack, nodes: dict[str, Node]
) -> None:
    _, first = await find_leader(stack)
    send_signal([identify(stack.pid(PostgresCluster.name))], signal.SIGUSR1)
    leader, second = await find_leader(stack, after=first)
    lost = nodes[f"postgres {leader + 1}"]
    await lost.kill()
    await find_leader(stack, followers=1, after=second)
    (postgres_servers(stack)[leader].data / "global" / "pg_control").unlink()
    await lost.start()
    await find_leader(stack)


async def test_a_promotion_that_stands_still_ends(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.local.cluster.promoter._PROMOTION_S", 1)
    leader, _ = await find_leader(stack)
    standby = postgres_servers(stack)[leader - 1]
    receiver = [identify(await standby.fetch("SELECT pid FROM pg_stat_wal_receiver"))]
    send_signal(receiver, signal.SIGSTOP)
    try:
        promoting = asyncio.create_task(promote([standby]))
        await asyncio.wait({promoting}, timeout=10)
        assert isinstance(promoting.exception(), TimeoutError)
        assert await standby.fetch("SELECT pg_is_in_recovery()")
    finally:
        send_signal(receiver, signal.SIGCONT)
    await find_leader(stack)


async def test_a_hand_over_that_can_not_be_done_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.local.cluster.promoter._ASKED_S", 0.05)
    exchange = asyncio.Event()
    _ask_for(exchange)
    assert exchange.is_set()
    await eventually(lambda: not exchange.is_set(), within_s=5)
