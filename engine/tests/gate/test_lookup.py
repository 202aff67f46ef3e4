"""Where the primary is: told by a cluster's nodes, or by Sentinels, whatever some of them say."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import MovedError, RedisError

from engine.gate.client import connect_redis, connect_shards, find_silent_nodes
from engine.gate.connection import lookup
from engine.gate.keys import ShardKeys
from engine.local.ports import free_port
from engine.settings import Settings
from engine.tests.clusters import Cluster, Node, run_cluster, run_sentinels
from engine.tests.test_server import eventually

pytestmark = pytest.mark.slow
_SLOTS = 16_384


@pytest.fixture(scope="module")
async def cluster(stack_dir: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(stack_dir) as cluster:
        yield cluster


@pytest.fixture
async def sentinels(stack_dir: Path) -> AsyncIterator[tuple[str, list[Node]]]:
    async with run_sentinels(stack_dir) as sentinels:
        yield sentinels


@pytest.mark.parametrize("shards", range(1, 41))
def test_shards_are_spread_evenly_over_primaries_that_share_the_slots(shards: int) -> None:
    slots = [ShardKeys(shard, shards).slot for shard in range(shards)]
    for primaries in range(1, 10):
        counts = Counter(slot * primaries // _SLOTS for slot in slots)
        held = [counts[primary] for primary in range(primaries)]
        # Only where both are many, a shard may lie across the border of its share.
        assert max(held) - min(held) <= (0 if shards % primaries == 0 else 2 if shards > 20 else 1)


async def test_the_slot_of_a_shard_is_the_one_that_redis_computes(cluster: Cluster) -> None:
    node = next(iter(cluster.nodes.values()))
    for shards in (1, 2, 3, 7):
        for shard in range(shards):
            keys = ShardKeys(shard, shards)
            names = (keys.fence, keys.sale(5), f"{keys.prefix}answer:1:2:}}{{x}}")
            slots = {await node.execute("CLUSTER", "KEYSLOT", name) for name in names}
            assert slots == {keys.slot}


async def test_each_shard_leads_to_its_primary(cluster: Cluster) -> None:
    settings = Settings(redis_url=cluster.url, gate_shards=6)
    async with connect_shards(settings) as shards:
        ports = [(await shard.redis.info("server"))["tcp_port"] for shard in shards]
        assert ports == [(await cluster.find_primary(shard)).port for shard in shards]
        assert Counter(Counter(ports).values()) == {2: 3}
        for shard in shards:
            await shard.redis.set(shard.probe, "")


async def test_a_client_follows_a_primary_that_hands_over(cluster: Cluster) -> None:
    keys = ShardKeys(0, 3)
    async with connect_redis(cluster.url, slot=keys.slot) as redis:
        await redis.set(keys.probe, "before")
        before = await cluster.find_primary(keys)
        after = await cluster.fail_over(before)

        async def writes_there() -> bool:
            # The old primary may take writes for a moment yet; then it tells once that the slot has moved.
            with suppress(MovedError):
                await redis.set(keys.probe, "")
            return await _leads_to(redis, after.port)

        await eventually(writes_there)
        await redis.set(keys.probe, "")


async def test_a_named_node_that_is_frozen_holds_up_nobody(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_ASK_S", 3_600)
    keys = ShardKeys(0, 3)
    named = [
        int(place.rpartition(":")[2]) for place in cluster.url.removeprefix("redis+cluster://").split(",")
    ]
    primary = await cluster.find_primary(keys)
    other = next(cluster.nodes[port] for port in named if port != primary.port)
    with other.frozen():
        async with asyncio.timeout(30), connect_redis(cluster.url, 3_600_000, keys.slot) as redis:
            assert (await redis.info("server"))["tcp_port"] == primary.port


async def test_other_primaries_are_asked_for_keys_only_once_the_primary_answers(cluster: Cluster) -> None:
    keys = ShardKeys(0, 3)
    primary = await cluster.find_primary(keys)
    others = [node for node in cluster.nodes.values() if node is not primary]

    async def count_questions() -> int:
        found = [await node.execute("INFO", "commandstats") for node in others]
        rows = [stats.get("cmdstat_cluster|countkeysinslot", {"calls": 0}) for stats in found]
        return sum(row["calls"] for row in rows)

    async with connect_redis(cluster.url, 300, keys.slot) as redis:
        before = await count_questions()
        with primary.frozen(), pytest.raises(RedisError, match="Timeout"):
            await redis.ping()
        assert await count_questions() == before
        await eventually(partial(_answers, redis))
        assert await count_questions() > before


async def test_nodes_that_are_not_named_are_asked_where_no_other_lives(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "_KEEP_S", 0)
    keys = ShardKeys(0, 3)
    primary = await cluster.find_primary(keys)
    replica = (await cluster.find_replicas(primary))[0]
    async with connect_redis(f"redis+cluster://127.0.0.1:{replica.port}", slot=keys.slot) as redis:
        await redis.ping()
        await replica.kill()
        await redis.connection_pool.disconnect()
        await eventually(partial(_leads_to, redis, primary.port))
    await cluster.start(replica)


async def test_a_user_who_may_not_ask_for_addresses_is_led_by_what_nodes_know(
    cluster: Cluster,
) -> None:
    keys = ShardKeys(0, 3)
    primary = await cluster.find_primary(keys)
    rules = ("on", ">secret", "~*", "+@all", "-cluster|slots", "-cluster|countkeysinslot")
    for node in cluster.nodes.values():
        await node.execute("ACL", "SETUSER", "app", *rules)
    url = cluster.url.replace("://", "://app:secret@")
    async with connect_redis(url, slot=keys.slot) as redis:
        assert await _leads_to(redis, primary.port)
    assert await find_silent_nodes(url) == []


async def _answers(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except RedisError:
        return False


async def _leads_to(redis: Redis, port: int) -> bool:
    try:
        return bool((await redis.info("server"))["tcp_port"] == port)
    except RedisError:
        return False


async def test_each_node_that_does_not_answer_is_named(cluster: Cluster) -> None:
    nobody, none = free_port(), free_port()
    [silent] = await find_silent_nodes(f"{cluster.url},127.0.0.1:{nobody}")
    assert silent.startswith(f"127.0.0.1:{nobody}: ")
    async with connect_redis(f"redis+cluster://127.0.0.1:{nobody},127.0.0.1:{none}") as redis:
        with pytest.raises(RedisError, match=rf":({nobody}|{none}): .*; 127.0.0.1:({nobody}|{none}): "):
            await redis.ping()


async def test_sentinels_lead_to_the_primary_and_after_its_death_to_the_next_one(
    sentinels: tuple[str, list[Node]],
) -> None:
    url, servers = sentinels
    # Sentinels have no password, and are asked without one.
    async with connect_redis(url.replace("://", "://:secret@")) as redis:
        with pytest.raises(RedisError, match="without any password") as refused:
            await redis.ping()
        assert "no node says" not in str(refused.value), "it is Redis that knows no password"
    async with connect_redis(f"{url}?db=2") as redis:
        assert (await redis.client_info())["db"] == 2
        assert (await redis.info("server"))["tcp_port"] == servers[0].port
        await servers[0].kill()

        async def writes_elsewhere() -> bool:
            try:
                await redis.set("key", "")
                return bool((await redis.info("server"))["tcp_port"] != servers[0].port)
            except (RedisError, OSError):
                return False

        await eventually(writes_elsewhere)
    async with connect_redis(url.replace("/gate", "/other")) as redis:
        with pytest.raises(RedisError, match="No such master"):
            await redis.ping()
