"""What the gate promises: each unit is sold once, what it accepts is in the outbox, nothing is guessed."""

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from engine.gate.clearing import read_pending
from engine.gate.client import Shard
from engine.gate.gate import Gate
from engine.gate.keys import ShardKeys, shard_of
from engine.local.stack import Stack
from engine.model.lot import Lot, decode_lots
from engine.model.order_id import PLACES, OrderId, make_stem, split_order_id
from engine.model.purchase import Outcome
from engine.model.sale import Sale, SaleTerms
from engine.settings import Settings
from engine.tests.gate.test_watch import gate_sells
from engine.tests.orders import ids, read_stock
from engine.tests.test_server import eventually

KEYS = ShardKeys(0)


@pytest.fixture
async def gate(settings_without_bus: Settings) -> AsyncIterator[Gate]:
    gate = Gate(settings_without_bus)
    yield gate
    await gate.close()


async def open_sale(gate: Gate, sale_id: int = 1, **terms: int) -> None:
    await gate.open_sale(Sale(sale_id=sale_id, terms=SaleTerms(**{"product_id": 1, "stock": 3} | terms)))


async def buy(
    gate: Gate, count: int, product_id: int = 1, user_id: int = 101
) -> list[tuple[Outcome, str | None]]:
    return await asyncio.gather(*(gate.reserve(user_id, product_id, None) for _ in range(count)))


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


async def read_outbox(redis: Redis, keys: ShardKeys = KEYS) -> list[Lot]:
    entries: Any = await redis.xrange(keys.outbox)
    return [lot for _, fields in entries for lot in decode_lots(fields[b"purchases"])[0]]


async def clock_ms(redis: Redis) -> int:
    seconds, microseconds = await redis.time()
    return seconds * 1000 + microseconds // 1000


async def test_a_crowd_gets_exactly_the_stock(gate: Gate, redis: Redis) -> None:
    await open_sale(gate, stock=700)
    answers = await buy(gate, 3000)
    assert Counter(outcome for outcome, _ in answers) == {Outcome.ACCEPTED: 700, Outcome.SOLD_OUT: 2300}
    orders = {order for outcome, order in answers if outcome is Outcome.ACCEPTED}
    assert len(orders) == 700
    assert {*ids(await read_outbox(redis))} == orders
    assert await read_pending(Shard(redis)) == orders
    assert (await read_stock(gate, 1)) == (1, 700, 0)


@pytest.mark.parametrize("key", [None, 'k"\\/{}~!'])
async def test_an_accepted_purchase_stands_in_the_outbox_as_it_was_asked_for(
    gate: Gate, redis: Redis, key: str | None
) -> None:
    await open_sale(gate, sale_id=7, quantity=2)
    before_ms = await clock_ms(redis)
    _, order_id = await gate.reserve(2**63 - 1, 1, key)
    [lot] = await read_outbox(redis)
    assert order_id
    assert before_ms <= lot.accepted_ms <= await clock_ms(redis)
    assert lot == Lot(
        *split_order_id(order_id), 1, 7, 2, lot.accepted_ms, [2**63 - 1], [key] if key else None
    )


async def test_what_arrives_during_a_script_call_forms_one_batch(gate: Gate, redis: Redis) -> None:
    await open_sale(gate, stock=1000)
    await buy(gate, 300)
    # The first goes alone or with those of the same moment; nobody gets a round trip of their own.
    assert await redis.xlen(KEYS.outbox) <= 2


async def test_a_batch_larger_than_lua_takes_arguments_is_written_whole(
    settings_without_bus: Settings, redis: Redis
) -> None:
    gate = Gate(msgspec.structs.replace(settings_without_bus, gate_batch=4096))
    await open_sale(gate, stock=4096, limit=1)
    answers = await asyncio.gather(*(gate.reserve(user, 1, None) for user in range(1, 4097)))
    assert {outcome for outcome, _ in answers} == {Outcome.ACCEPTED}
    assert len(await read_pending(Shard(redis))) == 4096
    assert await redis.hlen(f"{KEYS.prefix}buyers:1") == 4096
    await gate.close()


async def test_a_call_decides_so_many_products_and_the_next_one_the_others(gate: Gate, redis: Redis) -> None:
    """Redis serves nobody else meanwhile."""
    products = range(1, 301)
    for product in products:
        await open_sale(gate, sale_id=product, product_id=product, stock=2)
    wishes = [(user, product) for user in (1, 2, 3) for product in products[: 300 if user == 1 else 100]]
    answers = await asyncio.gather(*(gate.reserve(user, product, None) for user, product in wishes))
    accepted = {
        wish for wish, (outcome, _) in zip(wishes, answers, strict=True) if outcome is Outcome.ACCEPTED
    }
    assert accepted == {wish for wish in wishes if wish[0] < 3}, "first come, first served"
    entries: Any = await redis.xrange(KEYS.outbox)
    assert [len(decode_lots(fields[b"purchases"])[0]) for _, fields in entries] == [256, 44]
    assert {*ids(await read_outbox(redis))} == {order for _, order in answers if order}


async def test_products_in_one_batch_do_not_mix(gate: Gate) -> None:
    await open_sale(gate, sale_id=1, product_id=1, stock=5)
    await open_sale(gate, sale_id=2, product_id=2, stock=0)
    answers = await asyncio.gather(
        *(gate.reserve(1, product, None) for product in (1, 2, 3) for _ in range(5)),
    )
    assert [outcome for outcome, _ in answers] == (
        [Outcome.ACCEPTED] * 5 + [Outcome.SOLD_OUT] * 5 + [Outcome.UNKNOWN_PRODUCT] * 5
    )


async def test_shards_keep_their_keys_apart_and_answer_together(
    settings_without_bus: Settings, redis: Redis
) -> None:
    gate = Gate(msgspec.structs.replace(settings_without_bus, gate_shards=4))
    products = range(1, 41)
    for product in products:
        await open_sale(gate, sale_id=product, product_id=product, stock=1)
    answers = await asyncio.gather(*(gate.reserve(1, product, None) for product in products))
    for shard in range(4):
        lots = await read_outbox(redis, ShardKeys(shard, 4))
        assert {lot.product_id for lot in lots} == {p for p in products if shard_of(p, range(4)) == shard}
        assert lots, "each of four shards holds some of forty products"
    orders = [str(order) for _, order in answers]
    assert await gate.reads.read_orders(orders) == dict.fromkeys(orders, True)
    await gate.close()


async def test_each_answer_names_the_order_that_stands_in_the_outbox_for_this_buyer(
    gate: Gate, redis: Redis
) -> None:
    """Whatever shares a batch: products, limits, keys, some of which have bought before, and refusals."""
    await open_sale(gate, sale_id=1, product_id=1, stock=40)
    await open_sale(gate, sale_id=2, product_id=2, stock=1000, limit=2)
    await open_sale(gate, sale_id=3, product_id=3, stock=25)
    bought: dict[str, tuple[int, int, str | None]] = {}
    for _ in range(2):
        wishes = [
            (user, product, f"k{user}" if product == 3 and user % 3 == 0 else None)
            for user in range(1, 31)
            for product in (1, 2, 3, 4)
        ]
        for wish, (outcome, order_id) in zip(
            wishes, await asyncio.gather(*(gate.reserve(*wish) for wish in wishes)), strict=True
        ):
            if outcome is Outcome.ACCEPTED and order_id:
                assert bought.setdefault(order_id, wish) == wish
    in_outbox = {
        order_id: (user_id, lot.product_id, key)
        for lot in await read_outbox(redis)
        for order_id, user_id, key in zip(
            lot.order_ids, lot.user_ids, lot.keys or [None] * len(lot), strict=True
        )
    }
    assert in_outbox == bought
    assert await read_pending(Shard(redis)) == set(bought)
    assert Counter(product for _, product, _ in bought.values()) == {1: 40, 2: 60, 3: 25}


async def test_a_purchase_takes_the_quantity_of_its_sale(gate: Gate) -> None:
    await open_sale(gate, stock=8, quantity=3)
    outcomes = [outcome for outcome, _ in await buy(gate, 4)]
    assert outcomes == [Outcome.ACCEPTED] * 2 + [Outcome.SOLD_OUT] * 2
    assert (await read_stock(gate, 1)) == (1, 8, 2)


async def test_a_user_buys_again_unless_the_sale_sets_a_limit(gate: Gate) -> None:
    await open_sale(gate, sale_id=1, product_id=1, stock=100)
    await open_sale(gate, sale_id=2, product_id=2, stock=100, limit=5, quantity=2)
    assert {outcome for outcome, _ in await buy(gate, 20, product_id=1)} == {Outcome.ACCEPTED}
    limited = [outcome for outcome, _ in await buy(gate, 3, product_id=2)]
    assert limited == [Outcome.ACCEPTED] * 2 + [Outcome.LIMIT_REACHED]
    again = await gate.reserve(101, 2, None)
    assert again == (Outcome.LIMIT_REACHED, None)
    assert (await gate.reserve(102, 2, None))[0] is Outcome.ACCEPTED


async def test_a_key_gets_its_first_answer_again(gate: Gate, redis: Redis) -> None:
    await open_sale(gate, stock=10)
    first, within_the_batch = await asyncio.gather(gate.reserve(1, 1, "k"), gate.reserve(1, 1, "k"))
    later = await gate.reserve(1, 1, "k")
    assert first[0] is Outcome.ACCEPTED
    assert first == within_the_batch == later
    assert (await read_stock(gate, 1)) == (1, 10, 9)
    assert ids(await read_outbox(redis)) == [first[1]]


async def test_a_key_is_its_users_and_its_products_own(gate: Gate) -> None:
    await open_sale(gate, sale_id=1, product_id=1, stock=10)
    await open_sale(gate, sale_id=2, product_id=2, stock=10)
    answers = [await gate.reserve(1, 1, "k"), await gate.reserve(2, 1, "k"), await gate.reserve(1, 2, "k")]
    assert len({order for _, order in answers}) == 3


async def test_a_key_finds_its_order_after_the_stock_is_gone_and_the_sale_replaced(gate: Gate) -> None:
    await open_sale(gate, stock=1)
    first = await gate.reserve(1, 1, "k")
    assert (await gate.reserve(2, 1, "other"))[0] is Outcome.SOLD_OUT
    assert await gate.reserve(1, 1, "k") == first
    await open_sale(gate, sale_id=2, stock=5)
    assert await gate.reserve(1, 1, "k") == first


async def test_keyed_and_plain_purchases_share_a_batch(gate: Gate) -> None:
    await open_sale(gate, stock=2)
    kept = await gate.reserve(1, 1, ".")
    answers = await asyncio.gather(
        gate.reserve(2, 1, None), gate.reserve(1, 1, "."), gate.reserve(3, 1, None), gate.reserve(4, 1, "=x")
    )
    assert [outcome for outcome, _ in answers] == [
        Outcome.ACCEPTED, Outcome.ACCEPTED, Outcome.SOLD_OUT, Outcome.SOLD_OUT,
    ]  # fmt: skip
    assert answers[1] == kept


async def test_redis_clock_opens_and_closes_the_window(gate: Gate, redis: Redis) -> None:
    now = await clock_ms(redis)
    hour = 3_600_000
    await open_sale(gate, sale_id=1, product_id=1, starts_ms=now + hour)
    await open_sale(gate, sale_id=2, product_id=2, ends_ms=now - hour)
    await open_sale(gate, sale_id=3, product_id=3, starts_ms=now - hour, ends_ms=now + hour)
    outcomes = [(await gate.reserve(1, product, None))[0] for product in (1, 2, 3)]
    assert outcomes == [Outcome.NOT_STARTED, Outcome.SALE_ENDED, Outcome.ACCEPTED]


async def test_a_newer_sale_replaces_an_older_one_and_never_the_other_way_round(gate: Gate) -> None:
    await open_sale(gate, sale_id=2, stock=5, limit=5)
    await buy(gate, 5)
    await open_sale(gate, sale_id=1, stock=100)
    assert (await read_stock(gate, 1)) == (2, 5, 0)
    await open_sale(gate, sale_id=2, stock=5)
    assert (await read_stock(gate, 1)) == (2, 5, 0), "opening it again gives nothing back"
    await open_sale(gate, sale_id=3, stock=7, limit=5)
    assert (await gate.reserve(101, 1, None))[0] is Outcome.ACCEPTED, "a new sale counts its buyers anew"


@pytest.fixture
async def repeating_gate(settings_without_bus: Settings) -> AsyncIterator[Gate]:
    """A gate that repeats a sold-out answer for so long that only a test's end ends it."""
    gate = Gate(msgspec.structs.replace(settings_without_bus, sold_out_ms=60_000))
    yield gate
    await gate.close()


async def test_sold_out_is_repeated_without_asking_the_gate(repeating_gate: Gate, redis: Redis) -> None:
    await open_sale(repeating_gate)
    await open_sale(repeating_gate, 2, product_id=2)
    counted = sold_out_count()
    await buy(repeating_gate, 4)
    await redis.flushdb()
    assert await buy(repeating_gate, 5) == [(Outcome.SOLD_OUT, None)] * 5
    assert await buy(repeating_gate, 1, product_id=2) == [(Outcome.GATE_UNAVAILABLE, None)]
    await asyncio.sleep(0)
    assert sold_out_count() - counted == 6, "counted at once, not when the gate is asked again"


def sold_out_count() -> float:
    value = REGISTRY.get_sample_value("flashgrid_purchases_total", {"outcome": "SOLD_OUT"})
    return value or 0.0


async def test_a_key_is_looked_up_in_a_sale_that_is_sold_out(repeating_gate: Gate) -> None:
    await open_sale(repeating_gate, stock=1)
    first = await repeating_gate.reserve(101, 1, "key")
    assert await buy(repeating_gate, 1, user_id=102) == [(Outcome.SOLD_OUT, None)]
    assert await repeating_gate.reserve(101, 1, "key") == first


async def test_a_lease_counts_from_the_asking_and_ends(settings_without_bus: Settings, redis: Redis) -> None:
    gate = Gate(msgspec.structs.replace(settings_without_bus, sold_out_ms=50))
    try:
        await open_sale(gate, stock=1)
        await buy(gate, 2)
        await redis.hset(KEYS.sale(1), "remaining", 1)
        async with asyncio.timeout(10):
            while (await buy(gate, 1))[0][0] is not Outcome.ACCEPTED:
                pass
    finally:
        await gate.close()


async def test_a_new_sale_is_open_for_all_front_doors_when_its_opening_is_answered(
    settings_without_bus: Settings,
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, sold_out_ms=300)
    here, there = Gate(settings), Gate(settings)
    try:
        await open_sale(here, stock=1)
        for gate in (here, there):
            await buy(gate, 2)
        await open_sale(here, 2, stock=10)
        for gate in (here, there):
            assert [outcome for outcome, _ in await buy(gate, 2)] == [Outcome.ACCEPTED] * 2
    finally:
        await asyncio.gather(here.close(), there.close())


async def test_refusals_write_nothing(gate: Gate, redis: Redis) -> None:
    await open_sale(gate, stock=0)
    await gate.reserve(1, 1, None)  # the first connection asks whether the gate remembers
    before = (await redis.info("persistence"))["aof_current_size"]
    await asyncio.gather(gate.reserve(1, 1, None), gate.reserve(1, 1, "k"), gate.reserve(1, 9, None))
    assert (await redis.info("persistence"))["aof_current_size"] == before
    assert not await redis.exists(KEYS.outbox, KEYS.pending)


async def test_a_redis_that_forgot_the_script_is_taught_again(gate: Gate, redis: Redis) -> None:
    await open_sale(gate, stock=10)
    await buy(gate, 1)
    await redis.script_flush()
    assert (await buy(gate, 1))[0][0] is Outcome.ACCEPTED


async def test_a_redis_that_was_restarted_sells_again(gate: Gate, stack: Stack, redis: Redis) -> None:
    await open_sale(gate, stock=10)
    ((_, order_id),) = await buy(gate, 1)
    await stack.kill("redis")
    await stack.start("redis")
    await eventually(partial(gate_sells, gate))
    assert {*ids(await read_outbox(redis))} > {order_id}, "what was accepted was on disk"
    assert (await read_stock(gate, 1)) == (1, 10, 8)


async def test_without_redis_nothing_is_accepted_and_nobody_hangs(gate: Gate, stack: Stack) -> None:
    await open_sale(gate, stock=10)
    await stack.kill("redis")
    try:
        answers = await buy(gate, 50)
        assert {outcome for outcome, _ in answers} == {Outcome.GATE_UNAVAILABLE}
    finally:
        await stack.start("redis")
    assert (await read_stock(gate, 1)) == (1, 10, 10)


async def test_a_frozen_redis_makes_the_outcome_unknown_and_no_wait_longer_than_the_timeout(
    settings_without_bus: Settings, stack: Stack
) -> None:
    gate = Gate(msgspec.structs.replace(settings_without_bus, gate_timeout_ms=200, gate_batch=10))
    await open_sale(gate, stock=100)
    await buy(gate, 1)
    with frozen(stack.pid("redis")):
        answers = await asyncio.wait_for(buy(gate, 50), 30)
    counts = Counter(outcome for outcome, _ in answers)
    assert counts[Outcome.OUTCOME_UNKNOWN] == 10, "the batch that was sent may have been reserved"
    assert counts[Outcome.GATE_UNAVAILABLE] == 40, "those behind it were not sent"
    assert (await buy(gate, 1))[0][0] is Outcome.ACCEPTED
    await gate.close()


async def test_a_retry_under_the_same_key_finds_the_truth_after_a_lost_answer(
    settings_without_bus: Settings, stack: Stack
) -> None:
    gate = Gate(msgspec.structs.replace(settings_without_bus, gate_timeout_ms=200))
    await open_sale(gate, stock=10)
    await buy(gate, 1)
    with frozen(stack.pid("redis")):
        assert (await gate.reserve(1, 1, "k"))[0] is Outcome.OUTCOME_UNKNOWN
    outcome, order_id = await gate.reserve(1, 1, "k")
    assert outcome is Outcome.ACCEPTED
    assert (await gate.reserve(1, 1, "k")) == (outcome, order_id)
    assert (await read_stock(gate, 1)) == (1, 10, 8), "the key was sold one unit"
    await gate.close()


async def test_a_redis_that_refuses_to_write_reserves_nothing(gate: Gate, redis: Redis) -> None:
    await open_sale(gate, stock=10)
    await redis.config_set("maxmemory", "1")
    try:
        answers = await asyncio.gather(gate.reserve(1, 1, None), gate.reserve(1, 1, "k"))
        assert {outcome for outcome, _ in answers} == {Outcome.GATE_UNAVAILABLE}
    finally:
        await redis.config_set("maxmemory", "0")
    assert (await read_stock(gate, 1)) == (1, 10, 10)
    assert not await redis.exists(KEYS.outbox, KEYS.pending)
    assert (await gate.reserve(1, 1, "k"))[0] is Outcome.ACCEPTED


async def test_a_full_waiting_room_answers_at_once(settings_without_bus: Settings) -> None:
    gate = Gate(msgspec.structs.replace(settings_without_bus, gate_waiting=10))
    await open_sale(gate, stock=100)
    counts = Counter(outcome for outcome, _ in await buy(gate, 25))
    assert counts == {Outcome.ACCEPTED: 10, Outcome.OVERLOADED: 15}
    await gate.close()


async def test_closing_answers_the_waiting_purchases_and_refuses_later_ones(gate: Gate) -> None:
    await open_sale(gate, stock=10)
    waiting = [asyncio.ensure_future(gate.reserve(1, 1, None)) for _ in range(5)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(gate.close())
    await asyncio.sleep(0)
    late = await gate.reserve(1, 1, None)
    await closing
    assert {outcome for outcome, _ in await asyncio.gather(*waiting)} == {Outcome.ACCEPTED}
    assert late == (Outcome.GATE_UNAVAILABLE, None)


def test_order_ids_are_uuids_of_version_7() -> None:
    pattern = re.compile(msgspec.json.schema(OrderId)["pattern"])
    stems = {make_stem() for _ in range(1000)}
    assert len(stems) == 1000
    for stem in stems:
        for place in (0, 4095):
            assert pattern.fullmatch(order_id := stem + PLACES[place])
            assert split_order_id(order_id) == (stem, place)


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 1024])
def test_products_spread_evenly_over_shards(shards: int) -> None:
    counts = Counter(shard_of(product, range(shards)) for product in range(1, 100_001))
    assert set(counts) <= set(range(shards))
    assert max(counts.values()) < 1.3 * 100_000 / shards
