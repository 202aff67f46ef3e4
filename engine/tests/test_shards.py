"""The gate's shards on several machines: who decides their number, and what a failover leaves and takes."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from redis.asyncio import Redis

from engine.errors import SettingsError
from engine.gate.keys import ShardKeys, shard_of
from engine.ledger.ledger import Ledger
from engine.settings import Settings
from engine.stages.reconciliation import reconciling
from engine.tests.clusters import Cluster, Node, run_cluster, run_sentinels
from engine.tests.slots import SlotMove
from engine.tests.stages.test_reconciliation import run_command
from engine.tests.test_server import (
    Server,
    buy,
    eventually,
    get,
    http,
    is_confirmed,
    open_sale,
    post,
    serving,
    statuses,
)
from engine.tests.test_set_ups import refused

__all__ = ["http"]
pytestmark = pytest.mark.slow

Fetch = aiohttp.ClientSession


@pytest.fixture(scope="module")
async def cluster(stack_dir: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(stack_dir) as cluster:
        yield cluster


@pytest.fixture
async def spread(settings: Settings, cluster: Cluster) -> Settings:
    """An engine with three shards on an empty cluster, two copies, and a bus."""
    for node in cluster.nodes.values():
        with suppress(Exception):  # a replica is emptied by its primary
            await node.execute("FLUSHALL")
    return change(settings, redis_url=cluster.url, gate_shards=3, gate_copies=2)


def change(settings: Settings, **changes: Any) -> Settings:
    return msgspec.structs.replace(settings, **changes)


async def generations(settings: Settings) -> int:
    assert settings.postgres_url
    async with await Ledger.connect(settings.postgres_url) as ledger:
        return await ledger.read_generation()


async def test_the_first_process_decides_the_number_of_shards_and_others_are_refused(
    settings_without_bus: Settings, redis: Redis, http: Fetch
) -> None:
    await redis.flushall()
    async with serving(change(settings_without_bus, gate_shards=2)) as server:
        await open_sale(http, server, 5)
        assert (await buy(http, server))[0] == 200
        await refused(settings_without_bus, "FLASHGRID_GATE_SHARDS: is 1, but the gate has 2 shards")
        async with reconciling(settings_without_bus) as other:
            with pytest.raises(SettingsError, match="another number of shards"):
                await other.rebuild()
        assert (await buy(http, server))[0] == 200, "the gate of the others is as it was"


async def test_the_number_of_shards_changes_while_nothing_is_under_way(
    settings_without_bus: Settings, redis: Redis, http: Fetch
) -> None:
    await redis.flushall()
    products = range(1, 9)
    keyed = {"Idempotency-Key": "one"}
    async with serving(settings_without_bus) as server:
        for product in products:
            await post(http, f"{server.url}/purchase/init?productId={product}&stock=3&limit=2")
            assert (await buy_product(http, server, product, 1, **keyed))[0] == 200
        first = await buy_product(http, server, 1, 1, **keyed)
        # The engine runs meanwhile, and its keepers open the gate again as often as they can.
        code, said = await run_command(settings_without_bus, "reconcile", "--shards", "3")
        assert (code, "FLASHGRID_GATE_SHARDS=3" in said) == (0, True), said
        assert (await buy_product(http, server, 1, 2))[0] == 503, "it was told another number"
        await refused(settings_without_bus, "but the gate has 3 shards")
    found: list[Any] = await redis.keys("fg:*")
    names = {name.decode() for name in found}
    assert {name.partition("}")[0] for name in names if name.endswith(":mark")} >= {
        ShardKeys(shard, 3).prefix[:-2] for shard in range(3)
    }
    assert not [name for name in names if name.startswith(ShardKeys().prefix + "sale:")]
    async with serving(change(settings_without_bus, gate_shards=3)) as server:
        assert await buy_product(http, server, 1, 1, **keyed) == first, "keys are remembered"
        for product in products:
            status, stock = await get(http, f"{server.url}/purchase/stock?productId={product}")
            assert (status, stock["remaining"]) == (200, 2)
            found = [(await buy_product(http, server, product, user))[0] for user in (1, 1, 2, 3)]
            assert found == [200, 409, 200, 429], "limits count what was bought before"
        for shard in range(3):
            assert await redis.exists(ShardKeys(shard, 3).outbox)


async def buy_product(
    http: Fetch, server: Server, product: int, user: int, **headers: str
) -> tuple[int, dict[str, Any]]:
    wish = {"userId": user, "productId": product}
    return await post(http, f"{server.url}/purchase/buy", json=wish, headers=headers)


async def test_a_url_that_leads_elsewhere_is_said_by_name(
    settings_without_bus: Settings, cluster: Cluster, redis_url: str
) -> None:
    place = redis_url.removeprefix("redis://").partition("/")[0]
    for node in cluster.url.removeprefix("redis+cluster://").split(","):
        await refused(change(settings_without_bus, redis_url=f"redis://{node}"), "redis+cluster://")
    url = cluster.url.replace("://", "://:secret@")
    await refused(change(settings_without_bus, redis_url=url), "without any password")
    url = f"redis+cluster://{place}"
    await refused(change(settings_without_bus, redis_url=url), place, "cluster support disabled")
    url = f"redis+sentinel://{place}/gate"
    await refused(change(settings_without_bus, redis_url=url), place, "unknown command", "SENTINEL")


async def test_an_engine_under_sentinels_sells_on_after_its_primary_died(
    settings: Settings, stack_dir: Path, http: Fetch
) -> None:
    async with run_sentinels(stack_dir) as (url, servers):
        settings = change(settings, redis_url=url, gate_shards=2, gate_copies=2)
        await refused(change(settings, redis_url=url.replace("/gate", "/other")), "No such master")
        async with serving(settings) as server:
            await sells_on(settings, http, server, servers[0].kill)


async def test_a_primary_that_is_killed_in_a_sale_loses_nothing(
    spread: Settings, cluster: Cluster, http: Fetch
) -> None:
    async with serving(spread) as server:
        primary = await cluster.find_primary(shard_of(1, keys_of(3)))
        await sells_on(spread, http, server, primary.kill)
    await cluster.start(primary)


async def test_a_planned_failover_in_a_sale_loses_nothing(
    spread: Settings, cluster: Cluster, http: Fetch
) -> None:
    async with serving(spread) as server:
        primary = await cluster.find_primary(shard_of(1, keys_of(3)))
        await sells_on(spread, http, server, partial(cluster.fail_over, primary))


async def test_a_slot_that_moves_in_a_sale_loses_nothing(
    spread: Settings, cluster: Cluster, http: Fetch
) -> None:
    keys = shard_of(1, keys_of(3))
    source = await cluster.find_primary(keys)
    target = await cluster.find_primary(next(other for other in keys_of(3) if other.slot != keys.slot))

    async def move_there_and_back() -> None:
        for sides in ((source, target), (target, source)):
            move = SlotMove(keys, *sides)
            await move.begin()
            await move.carry(5)
            await asyncio.sleep(0.5)
            await move.end()
            await asyncio.sleep(0.5)

    # Some units go back into sale meanwhile, too.
    settings = change(spread, payment_decline_rate=0.2)
    async with serving(settings) as server:
        await sells_on(settings, http, server, move_there_and_back)


async def test_a_shard_without_a_server_keeps_the_others_from_nothing(
    spread: Settings, cluster: Cluster, http: Fetch
) -> None:
    keys = keys_of(3)
    product = next(number for number in range(2, 99) if shard_of(number, keys) is not shard_of(1, keys))
    async with serving(spread) as server:
        await open_sale(http, server, 100)
        await post(http, f"{server.url}/purchase/init?productId={product}&stock=100")
        primary = await cluster.find_primary(shard_of(product, keys))
        with ExitStack() as frozen:
            for node in (primary, *await cluster.find_replicas(primary)):
                frozen.enter_context(node.frozen())
            assert (await buy_product(http, server, product, 1))[0] == 503
            for user in range(1, 21):
                status, body = await buy(http, server, user)
                assert status == 200
                assert (await get(http, f"{server.url}/readyz"))[0] == 200
            await eventually(partial(is_confirmed, http, server, body["orderId"]))
            status, stock = await get(http, f"{server.url}/purchase/stock?productId=1")
            assert (status, stock.get("sold")) == (200, 20)

        async def sells_again() -> bool:
            return (await buy_product(http, server, product, 2))[0] == 200

        await eventually(sells_again)


def keys_of(shards: int) -> list[ShardKeys]:
    return [ShardKeys(shard, shards) for shard in range(shards)]


async def is_settled(http: Fetch, server: Server, order_id: str) -> bool:
    status = (await get(http, f"{server.url}/purchase/orders/{order_id}"))[1].get("status")
    return status in ("CONFIRMED", "FAILED")


async def sells_on(settings: Settings, http: Fetch, server: Server, disturb: Callable[[], Any]) -> None:
    """Sell, disturb, sell on; everything accepted is settled, and the gate was never closed."""
    await open_sale(http, server, 1_000)
    before, accepted, stop = await generations(settings), list[str](), asyncio.Event()

    async def shop(user: int) -> None:
        while not stop.is_set():
            status, body = await buy(http, server, user)
            if status == 200:
                accepted.append(body["orderId"])
            await asyncio.sleep(0.005)

    crowd = [asyncio.create_task(shop(user)) for user in range(1, 9)]
    await eventually(lambda: len(accepted) > 50)
    await disturb()
    seen = len(accepted)
    await eventually(lambda: len(accepted) > seen + 50)
    stop.set()
    await asyncio.gather(*crowd)
    for order_id in accepted:
        await eventually(partial(is_settled, http, server, order_id))
    assert await generations(settings) == before, "nothing was lost, and so nothing rebuilt"
    counts = await statuses(settings)
    assert counts.keys() <= {"CONFIRMED", *(["FAILED"] if settings.payment_decline_rate else [])}
    assert counts.total() >= len(accepted)

    async def is_balanced() -> bool:
        stock = (await get(http, f"{server.url}/purchase/stock?productId=1"))[1]
        return bool(stock.get("sold") == counts["CONFIRMED"])

    await eventually(is_balanced)


async def test_a_failover_that_lost_something_closes_the_gate_and_rebuilds_it(
    spread: Settings, cluster: Cluster, http: Fetch
) -> None:
    settings = change(spread, gate_copies=1)
    async with serving(settings) as server:
        await open_sale(http, server, 100)
        before = await generations(settings)
        primary: Node = await cluster.find_primary(shard_of(1, keys_of(3)))
        answers = [(await buy(http, server))[0] for _ in range(10)]
        with ExitStack() as frozen:
            for replica in await cluster.find_replicas(primary):
                frozen.enter_context(replica.frozen())
            # Nothing of what follows is on its way to them.
            await primary.execute("CLIENT", "KILL", "TYPE", "replica")
            answers += [(await buy(http, server))[0] for _ in range(10)]
            await primary.kill()

        async def is_rebuilt() -> bool:
            return await generations(settings) > before and (await buy(http, server, 2))[0] == 200

        await eventually(is_rebuilt, within_s=60)
        answers += [200]
        while (status := (await buy(http, server))[0]) != 429:
            answers.append(status)
    assert Counter(answers)[200] >= 100
    counts = await statuses(settings)
    assert counts["CONFIRMED"] == 100, "the stock is sold, and not one unit more"
    await cluster.start(primary)
