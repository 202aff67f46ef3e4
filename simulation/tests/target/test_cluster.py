"""Services of several nodes are read where the node in charge is, and it is told which one that is."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from msgspec.structs import replace
from redis.exceptions import RedisError

from engine.gate.gate import Gate
from engine.gate.keys import ShardKeys
from engine.ledger.ledger import Ledger
from engine.local.ports import free_port
from engine.local.redis import launch_server
from engine.model.purchase import Outcome
from engine.model.sale import Sale, SaleTerms
from engine.settings import Settings
from engine.stages.process import Role
from engine.startup import prepare_stores
from engine.tests.clusters import Cluster, Node, run_cluster, run_sentinels
from engine.tests.machines import PostgresCluster, freeze, run_postgres_cluster, thaw
from simulation.errors import EngineError
from simulation.target.cluster.postgres import connect_postgres
from simulation.target.cluster.roles import InCharge, LedgerRole, QueueRole, Roles, ShardRoles
from simulation.target.final_state import read_final_state
from simulation.target.opening import check_ownership
from simulation.target.services import Services
from simulation.target.stores import GateStore, LedgerStore, close_stores, read_within

pytestmark = pytest.mark.slow

SHARDS = 3
PRODUCTS = range(1, 7)


@pytest.fixture(scope="module")
async def cluster(stack_dir: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(stack_dir) as cluster:
        yield cluster


@pytest.fixture(scope="module")
async def servers(stack_dir: Path) -> AsyncIterator[PostgresCluster]:
    async with run_postgres_cluster(stack_dir) as servers:
        yield servers


async def sell(settings: Settings) -> list[Sale]:
    """A sale of ten units of each product; of product N, N are sold."""
    await prepare_stores(settings, [Role.FRONT_DOOR])
    ledger, gate = await Ledger.connect(settings.postgres_url), Gate(settings)
    try:
        sales = [await ledger.open_sale(SaleTerms(product_id=product, stock=10)) for product in PRODUCTS]
        for sale in sales:
            await gate.open_sale(sale)
            for user in range(1, sale.terms.product_id + 1):
                outcome, _ = await gate.reserve(user, sale.terms.product_id, None)
                assert outcome is Outcome.ACCEPTED
        return sales
    finally:
        await gate.close()
        await ledger.close()


async def told(read: Callable[[], Any], wanted: InCharge) -> None:
    """Wait until it is told who is in charge."""
    async with asyncio.timeout(30):
        while await read() != wanted:  # noqa: ASYNC110 (no event tells)
            await asyncio.sleep(0.05)


async def test_every_shard_of_a_cluster_is_read(cluster: Cluster, settings_without_bus: Settings) -> None:
    settings = replace(settings_without_bus, redis_url=cluster.url, gate_shards=SHARDS)
    sales = await sell(settings)
    services = Services(redis_url=cluster.url, postgres_url=settings.postgres_url or "")
    await check_ownership(services, sales, SHARDS)
    with pytest.raises(EngineError, match="Redis given is not this engine's"):
        await check_ownership(services, [*sales, replace(sales[0], sale_id=10**9)], SHARDS)
    store = GateStore(cluster.url, sales, SHARDS)
    counts = await store.read()
    await close_stores([store])
    sold = sum(PRODUCTS)
    assert (counts["stock_remaining"], counts["pending_orders"]) == (10 * len(PRODUCTS) - sold, sold)
    state = await read_final_state(services, SHARDS, drain_timeout_s=0.2)
    assert state.unread == {}
    assert state.gate is not None
    left = {row["product_id"]: row["remaining"] for row in state.gate.to_dict("records")}
    assert left == {product: 10 - product for product in PRODUCTS}
    assert len(state.pending or ()) == sold


async def test_a_primary_that_is_replaced_is_told_and_read_no_more(cluster: Cluster) -> None:
    roles = ShardRoles(cluster.url, SHARDS)
    try:
        primaries = [await cluster.find_primary(ShardKeys(shard, SHARDS)) for shard in range(SHARDS)]
        first = {f"shard {shard}": f"127.0.0.1:{node.port}" for shard, node in enumerate(primaries)}
        await told(roles.read, first)
        await primaries[1].kill()
        after = await _find_other(cluster, primaries[1])
        await told(roles.read, first | {"shard 1": f"127.0.0.1:{after.port}"})
        store = GateStore(cluster.url, [], SHARDS)
        assert "outbox_entries" in await read_within(store.read(), 10)
        await close_stores([store])
        await cluster.start(primaries[1])
    finally:
        await roles.close()


async def test_a_node_that_knows_nothing_of_the_others_is_not_believed(
    cluster: Cluster, stack_dir: Path
) -> None:
    port = free_port()
    folder = stack_dir / f"alone-{port}"
    folder.mkdir()
    alone = Node(port, launch_server(folder, port, {"cluster-enabled": "yes"}))
    roles = ShardRoles(cluster.url.replace("://", f"://127.0.0.1:{port},", 1), 1)
    try:
        async with asyncio.timeout(30):
            while True:
                with suppress(RedisError):
                    await alone.execute("CLUSTER", "ADDSLOTS", *range(16_384))
                    break
                await asyncio.sleep(0.05)
        primary = await cluster.find_primary(ShardKeys())
        await told(roles.read, {"shard 0": f"127.0.0.1:{primary.port}"})
    finally:
        await roles.close()
        await alone.kill()


async def _find_other(cluster: Cluster, dead: Node) -> Node:
    async with asyncio.timeout(30):
        while (node := await cluster.find_primary(ShardKeys(1, SHARDS))) is dead:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    return node


async def test_sentinels_tell_the_primary_of_all_shards(stack_dir: Path) -> None:
    async with run_sentinels(stack_dir) as (url, servers):
        roles, store = ShardRoles(url, 2), GateStore(url, [], 2)
        try:
            place = f"127.0.0.1:{servers[0].port}"
            await told(roles.read, {"shard 0": place, "shard 1": place})
            assert (await store.read())["outbox_entries"] == 0
        finally:
            await close_stores([store])
            await roles.close()


async def test_a_primary_that_thaws_after_a_promotion_is_not_believed(servers: PostgresCluster) -> None:
    url, lost = servers.list_hosts(), servers.primary
    roles, store = LedgerRole(url), LedgerStore(url, [])
    try:
        await told(roles.read, {"ledger": f"127.0.0.1:{lost.port}"})
        freeze(lost)
        await servers.promote()
        in_charge = {"ledger": f"127.0.0.1:{servers.primary.port}"}
        assert await _find_port(url) == servers.primary.port, "while the old one is silent"
        await told(roles.read, in_charge)
        thaw(lost)
        for _ in range(10):
            assert await _find_port(url) == servers.primary.port
        await told(roles.read, in_charge)
        await servers.take_back(lost)
    finally:
        await roles.close()
        await close_stores([store])


async def _find_port(url: str) -> int:
    connection = await connect_postgres(url, 5)
    port: int = await connection.fetchval("SELECT inet_server_port()")
    await connection.close()
    return port


async def test_where_no_host_is_the_primary_all_are_named(servers: PostgresCluster) -> None:
    url = servers.list_hosts(*servers.standbys)
    with pytest.raises(ConnectionError, match="no host of PostgreSQL is the primary"):
        await connect_postgres(url, 5)
    nowhere = "postgresql://postgres@127.0.0.1:1,127.0.0.1:2/flashgrid"
    with pytest.raises(ConnectionError, match=r"127\.0\.0\.1:1: .*127\.0\.0\.1:2: "):
        await connect_postgres(nowhere, 5)
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await connect_postgres("postgresql://postgres@127.0.0.1:1/flashgrid", 5)


async def test_the_newest_election_of_the_queues_leader_counts(tmp_path: Path) -> None:
    line = "2026-11-29 12:40:{at:02}.353706+00:00 [notice] <0.743.0> queue '{queue}' in vhost '/': {what}\n"
    elected, logs = "candidate -> leader in term: 1 machine version: 2", dict[str, Path]()
    for number in (1, 2):
        logs[f"rabbitmq {number}"] = tmp_path / f"{number}.log"
        logs[f"rabbitmq {number}"].write_text("")
    role = QueueRole(logs)
    assert await role.read() == {}

    def write(node: int, at: int, what: str = elected, queue: str = "flashgrid.purchases") -> None:
        with logs[f"rabbitmq {node}"].open("a") as log:
            log.write(line.format(at=at, queue=queue, what=what))

    write(2, 10)
    write(1, 11, "follower -> candidate in term: 2 machine version: 2")
    write(1, 12, queue="flashgrid.dead")
    assert await role.read() == {"queue": "rabbitmq 2"}
    write(1, 14)
    write(2, 13)
    assert await role.read() == {"queue": "rabbitmq 1"}
    with logs["rabbitmq 2"].open("a") as log:
        log.write(line.format(at=15, queue="flashgrid.purchases", what=elected)[:-20])
    assert await role.read() == {"queue": "rabbitmq 1"}, "half a line tells nothing"


async def test_a_single_server_has_no_node_in_charge(settings: Settings) -> None:
    services = Services(redis_url=settings.redis_url or "", postgres_url=settings.postgres_url or "")
    roles = Roles(services, 3)
    assert await roles.read() == {}
    await roles.close()
