"""What is answered is held by so many machines, and what is not is never taken for granted."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import RedisError

from engine.errors import GateUnavailable
from engine.gate.clearing import Clearing, read_pending
from engine.gate.client import Shard, Shards, TooFewCopies, connect_shards
from engine.gate.fence import Fence, read_generations
from engine.gate.gate import Gate, offer_sale
from engine.gate.outbox import Outbox
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from engine.settings import Settings
from engine.tests.clusters import Cluster, Node, run_cluster
from engine.tests.gate.test_watch import gate_sells
from engine.tests.orders import make_terms, reserve, unpack
from engine.tests.test_server import eventually

pytestmark = pytest.mark.slow

NEVER_MS = 3_600_000
SALE = Sale(sale_id=1, terms=make_terms(stock=1_000_000))


@pytest.fixture(scope="module")
async def cluster(stack_dir: Path) -> AsyncIterator[Cluster]:
    async with run_cluster(stack_dir) as cluster:
        yield cluster


@pytest.fixture
async def shards(cluster: Cluster) -> AsyncIterator[Shards]:
    """One open shard with two copies, and nothing in it."""
    settings = Settings(redis_url=cluster.url, gate_copies=2, gate_copies_ms=200, sold_out_ms=0)
    async with connect_shards(settings) as shards:
        [shard] = shards
        await shard.redis.flushdb()
        await shard.redis.hset(shard.fence, "open", 1)
        yield shards


@pytest.fixture
async def gate(cluster: Cluster, shards: Shards) -> AsyncIterator[Gate]:
    gate = Gate(Settings(redis_url=cluster.url, gate_copies=2, gate_copies_ms=200, sold_out_ms=0))
    await gate.open_sale(SALE)
    assert (await gate.reserve(1, 1, None))[0] is Outcome.ACCEPTED
    yield gate
    await gate.close()


async def freeze_replicas(cluster: Cluster, shards: Shards, stack: ExitStack) -> Node:
    """Freeze all replicas of the shard's primary for as long as the block lasts; return the primary."""
    primary = await cluster.find_primary(shards[0])
    for replica in await cluster.find_replicas(primary):
        stack.enter_context(replica.frozen())
    return primary


async def test_what_lacks_copies_is_unknown_and_what_is_refused_stays_refused(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    [lane] = gate._lanes
    with ExitStack() as frozen:
        await freeze_replicas(cluster, shards, frozen)
        seen = lane.fence.seen
        answers = await asyncio.gather(*(gate.reserve(2, product, None) for product in (1, 2, 1)))
        assert [outcome for outcome, _ in answers] == [
            Outcome.OUTCOME_UNKNOWN,
            Outcome.UNKNOWN_PRODUCT,
            Outcome.OUTCOME_UNKNOWN,
        ]
        assert lane.fence.seen == seen, "a copy that lacks it has lost nothing that was answered"
        before = await shards[0].redis.hgetall(shards[0].pending)
        for _ in range(3):
            assert (await gate.reserve(3, 1, None))[0] is Outcome.GATE_UNAVAILABLE
        assert await shards[0].redis.hgetall(shards[0].pending) == before, "nothing more is taken"
    await eventually(partial(gate_sells, gate))


async def test_what_is_refused_stays_refused_though_the_wait_for_copies_is_cut_off(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    [shard] = shards
    patient = Gate(Settings(redis_url=cluster.url, gate_copies=2, gate_copies_ms=1_400))
    assert (await patient.reserve(1, 1, None))[0] is Outcome.ACCEPTED
    with ExitStack() as frozen:
        await freeze_replicas(cluster, shards, frozen)
        asked = asyncio.gather(*(patient.reserve(2, product, None) for product in (1, 2)))
        await eventually(partial(_is_blocked, shard, "wait"))
        await shard.redis.client_kill_filter(_type="normal", skipme=True)
        assert [outcome for outcome, _ in await asked] == [Outcome.OUTCOME_UNKNOWN, Outcome.UNKNOWN_PRODUCT]
    await patient.close()


async def _is_blocked(shard: Shard, command: str) -> bool:
    clients: Any = await shard.redis.client_list()
    return any(client["cmd"] == command and "b" in client["flags"] for client in clients)


async def _has_acknowledged(shard: Shard) -> bool:
    """Whether each replica has said that it has all there is."""
    told: Any = await shard.redis.info("replication")
    return {told[f"slave{replica}"]["offset"] for replica in range(2)} == {told["master_repl_offset"]}


async def test_a_repeated_key_is_accepted_only_once_the_first_try_has_its_copies(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    other = Gate(Settings(redis_url=cluster.url, gate_copies=2, gate_copies_ms=200))
    assert (await other.reserve(8, 1, None))[0] is Outcome.ACCEPTED
    with ExitStack() as frozen:
        await freeze_replicas(cluster, shards, frozen)
        assert (await gate.reserve(7, 1, "key"))[0] is Outcome.OUTCOME_UNKNOWN
        # The other front door has written nothing, and so has nothing of its own to wait for.
        assert (await other.reserve(7, 1, "key"))[0] is Outcome.OUTCOME_UNKNOWN

    async def is_accepted() -> bool:
        return (await other.reserve(7, 1, "key"))[0] is Outcome.ACCEPTED

    await eventually(is_accepted)
    await other.close()


async def test_the_outbox_gives_nothing_that_lacks_copies(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    [shard] = shards
    outbox = Outbox(shard, "reader", NEVER_MS)
    [first] = unpack(await outbox.read(1))
    waiting = asyncio.create_task(outbox.read(4))
    await eventually(partial(_is_blocked, shard, "xreadgroup"))
    # Else its connection would wait for what was written before, too.
    await eventually(partial(_has_acknowledged, shard))
    with ExitStack() as frozen:
        await freeze_replicas(cluster, shards, frozen)
        assert (await gate.reserve(2, 1, None))[0] is Outcome.OUTCOME_UNKNOWN
        # It was asked before the entry came, again afterwards, and for what is pending under its name.
        for reading in (waiting, outbox.read(0.1), outbox.read(0.1)):
            with pytest.raises(TooFewCopies):
                await reading
        idle = Outbox(shard, "other", 0)
        with pytest.raises(TooFewCopies):
            await idle.read(0.1)

    async def is_given() -> bool:
        try:
            return [lot.user_ids for lot in unpack(await outbox.read(0.1))] == [[2]]
        except RedisError:
            return False

    assert first.user_ids == [1]
    await eventually(is_given)


async def test_the_outbox_gives_nothing_whose_copies_can_not_be_counted(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    [shard] = shards
    [first] = unpack(await Outbox(shard, "reader", NEVER_MS).read(4))
    assert first.user_ids == [1]
    waiting = asyncio.create_task(Outbox(shard, "other", NEVER_MS).read(4))
    await eventually(partial(_is_blocked, shard, "xreadgroup"))
    await eventually(partial(_has_acknowledged, shard))
    with ExitStack() as frozen:
        primary = await freeze_replicas(cluster, shards, frozen)
        other = next(node for node in cluster.nodes.values() if node is not primary)
        # A slot that moves takes no key that it does not hold, as that of a write whose copies are counted.
        name = await other.execute("CLUSTER", "MYID")
        await primary.execute("CLUSTER", "SETSLOT", shard.slot, "MIGRATING", name)
        try:
            assert (await gate.reserve(2, 1, None))[0] is Outcome.OUTCOME_UNKNOWN
            with pytest.raises(TooFewCopies):
                await waiting
        finally:
            await primary.execute("CLUSTER", "SETSLOT", shard.slot, "STABLE")
    await eventually(partial(gate_sells, gate))


async def test_what_is_settled_or_opened_without_its_copies_is_tried_again(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    [shard] = shards
    lots, clearing, fence = reserve(SALE, 3), Clearing(shards), Fence()
    with ExitStack() as frozen:
        await freeze_replicas(cluster, shards, frozen)
        with pytest.raises(TooFewCopies):
            await clearing.clear(lots)
        with pytest.raises(TooFewCopies):
            await offer_sale(shard, fence, Sale(sale_id=2, terms=make_terms(5, product_id=2)))
        with pytest.raises(GateUnavailable, match="lacks copies"):
            await gate.open_sale(Sale(sale_id=2, terms=make_terms(5, product_id=2)))
        assert fence.seen[1:] == (0, 0), "no note is taken of what may be lost"

    async def is_cleared() -> bool:
        try:
            return await clearing.clear(lots) == 0
        except TooFewCopies:
            return False

    await eventually(is_cleared)


async def test_a_failover_without_a_loss_leaves_the_gate_open_and_what_was_sold_sold(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    [shard] = shards
    orders = {order for _, order in [await gate.reserve(user, 1, None) for user in range(2, 30)]}
    await cluster.fail_over(await cluster.find_primary(shard))
    await eventually(partial(gate_sells, gate))
    assert await eventually_read(shards) == [1]
    assert orders < await read_pending(shard)


async def eventually_read(shards: Shards) -> list[int]:
    found = list[int]()

    async def read() -> bool:
        try:
            found[:] = await read_generations(shards)
        except RedisError:
            return False
        return True

    await eventually(read)
    return found


async def test_a_primary_that_was_frozen_accepts_nothing_and_others_take_over(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    [shard] = shards
    old = await cluster.find_primary(shard)
    outcomes, accepted = Counter[Outcome](), set[str | None]()

    async def buy(user: int) -> bool:
        outcome, order_id = await gate.reserve(user, 1, None)
        outcomes[outcome] += 1
        if outcome is Outcome.ACCEPTED:
            accepted.add(order_id)
        return outcome is Outcome.ACCEPTED

    with old.frozen():
        crowd = [asyncio.create_task(buy(user)) for user in range(100, 200)]
        await asyncio.gather(*crowd)
        assert not accepted
        assert outcomes[Outcome.OUTCOME_UNKNOWN]
        await eventually(partial(buy, 500))
    # What waited in its sockets runs now, and nobody is told that it was accepted.
    await eventually(partial(old.has_role, "slave"))
    await eventually(partial(buy, 501))
    assert await eventually_read(shards) == [1]
    assert accepted <= await read_pending(shard)


async def test_a_primary_that_dies_takes_nothing_with_it_that_was_accepted(
    cluster: Cluster, shards: Shards, gate: Gate
) -> None:
    [shard] = shards
    accepted, stop = set[str | None](), asyncio.Event()

    async def buy(user: int) -> None:
        while not stop.is_set():
            outcome, order_id = await gate.reserve(user, 1, None)
            assert outcome in (
                Outcome.ACCEPTED,
                Outcome.OUTCOME_UNKNOWN,
                Outcome.GATE_UNAVAILABLE,
                Outcome.SOLD_OUT,
            )
            if outcome is Outcome.ACCEPTED:
                accepted.add(order_id)
            await asyncio.sleep(0.001)

    crowd = [asyncio.create_task(buy(user)) for user in range(20)]
    await eventually(lambda: len(accepted) > 200)
    primary = await cluster.find_primary(shard)
    # Redis may elect the replica that lags behind, and a machine that is busy lets one lag for long.
    async with primary.connect() as redis:
        await redis.set(shard.probe, "")
        assert await redis.wait(2, 30_000) == 2
    await primary.kill()
    before = len(accepted)
    await eventually(lambda: len(accepted) > before + 20)
    stop.set()
    await asyncio.gather(*crowd)
    assert await eventually_read(shards) == [1]
    assert accepted <= await read_pending(shard)
    await cluster.start(primary)
