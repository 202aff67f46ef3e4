"""What the private services of three machines promise."""

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engine.bus.checks import check_bus
from engine.errors import LedgerUnavailable
from engine.ledger.ledger import Ledger
from engine.local.cluster.postgres import LOST, PostgresCluster, Server, list_servers
from engine.local.cluster.rabbitmq import RabbitMQCluster
from engine.local.cluster.redis import connect_nodes, introduce, launch_node
from engine.local.ports import free_port
from engine.local.process import HERE, survivors
from engine.local.stack import Stack, start_stack, stop_stack
from engine.model.lot import Lot
from engine.tests.clusters import Node
from engine.tests.orders import ids, make_terms, reserve
from engine.tests.test_server import eventually

pytestmark = pytest.mark.slow


@pytest.fixture
async def stack() -> AsyncIterator[Stack]:
    folder = Path(tempfile.mkdtemp(prefix="flashgrid-"))
    yield await start_stack(folder, [PostgresCluster.name, RabbitMQCluster.name])
    await stop_stack(folder)
    shutil.rmtree(folder)


async def test_a_lost_primary_is_replaced_and_comes_back_as_a_standby(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    await check_bus(stack.urls[RabbitMQCluster.name])
    assert [line for line in caplog.messages if "does not answer (" in line] == []
    folder = stack.data_dir / PostgresCluster.name
    servers = list_servers(folder)
    [lost] = [server for server in servers if await leads(server)]
    async with await Ledger.connect(stack.urls[PostgresCluster.name]) as ledger:
        await ledger.migrate()
        sale = await ledger.open_sale(make_terms(stock=10))
        first, second = reserve(sale, 2)
        await ledger.settle([first], {})
        await lost.kill()
        await eventually(partial(is_settled, ledger, second))
        assert len(await ledger.find_orders(ids([first, second]))) == 2
    await eventually(partial(follows, lost, servers))
    processes = [process for server in servers for process in server.list_processes()]
    assert processes
    await stop_stack(stack.data_dir)
    assert survivors(processes) == []


async def test_a_redis_node_that_is_frozen_while_it_is_met_is_met_again(tmp_path: Path) -> None:
    ports = [free_port(), free_port()]
    places = [(HERE.address, port) for port in ports]
    nodes = [Node(port, launch_node(tmp_path, port)) for port in ports]
    try:
        for node in nodes:
            await eventually(node.answers)
        async with connect_nodes(places) as clients:
            with nodes[1].frozen():
                meeting = asyncio.create_task(introduce(clients[0], places[1:]))
                names = set[str]()
                await eventually(partial(is_met_again, clients[0], places[1], names))
                assert not meeting.done()
            await asyncio.wait_for(meeting, 30)
    finally:
        for node in nodes:
            await node.kill()


async def is_met_again(node: Any, place: tuple[str, int], names: set[str]) -> bool:
    """Note the names that a node gave another one; it gives a new one whenever it meets it anew."""
    address, port = place
    lines = (await node.execute_command("CLUSTER", "NODES")).splitlines()
    names.update(line.split()[0] for line in lines if f"{address}:{port}@" in line)
    return len(names) > 1


async def leads(server: Server) -> bool:
    """Whether a server is the primary, and both others follow it."""
    with suppress(*LOST):
        return await server.count_followers() == 2
    return False


async def follows(server: Server, servers: list[Server]) -> bool:
    """Whether a server is a standby, and another one the primary of both others."""
    return any([await leads(other) for other in servers if other is not server])


async def is_settled(ledger: Ledger, lot: Lot) -> bool:
    """Try to settle a lot; return whether that worked."""
    with suppress(LedgerUnavailable):
        await ledger.settle([lot], {})
        return True
    return False
