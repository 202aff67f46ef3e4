from collections.abc import Iterable
from typing import Any

import msgspec
from redis.asyncio import Redis

from engine.gate.clearing import Clearing, decode_confirmed, find_confirmed, read_pending
from engine.gate.client import Shard
from engine.gate.keys import shard_of
from engine.model.lot import Lot
from engine.model.order import Order, OrderStatus
from engine.model.order_id import PLACES, make_stem
from engine.model.sale import Sale
from engine.tests.orders import (
    SHARD,
    accept,
    ids,
    make_terms,
    mark_pending,
    open_at_gate,
    read_confirmed,
    reserve,
)


def fail(lots: Iterable[Lot]) -> list[Order]:
    """The orders of the lots as a ledger settled them whose payment was declined."""
    return [
        Order(
            order_id=order_id,
            user_id=user_id,
            product_id=lot.product_id,
            sale_id=lot.sale_id,
            quantity=lot.quantity,
            status=OrderStatus.FAILED,
        )
        for lot in lots
        for order_id, user_id in zip(lot.order_ids, lot.user_ids, strict=True)
    ]


async def units(redis: Redis, product_id: int = 1) -> tuple[int, int]:
    remaining, released = await redis.hmget(SHARD.sale(product_id), ["remaining", "released"])
    return int(remaining or -1), int(released or 0)


async def test_a_declined_order_gives_its_units_back_exactly_once(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100, quantity=2))
    await open_at_gate(redis, sale, remaining=90)
    batch = reserve(sale, 3)
    await accept(redis, batch)
    assert await Clearing([Shard(redis)]).clear(batch, fail(batch[:2])) == 4
    assert await Clearing([Shard(redis)]).clear(batch, fail(batch[:2])) == 0
    assert await units(redis) == (94, 4)
    assert not await redis.exists(SHARD.pending)


async def test_confirmed_and_rejected_orders_only_stop_being_pending(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100))
    await open_at_gate(redis, sale, remaining=90)
    batch = reserve(sale, 3)
    await accept(redis, batch)
    await Clearing([Shard(redis)]).clear(batch[:2])
    assert await units(redis) == (90, 0)
    assert await read_pending(Shard(redis)) == {*ids(batch[2:])}


async def test_confirmed_orders_are_kept_for_a_while(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100, product_id=3, quantity=2))
    batch, clearing = reserve(sale, 6, size=2), Clearing([Shard(redis)])
    await clearing.clear(batch[:1], are_confirmed=True)
    await clearing.clear(batch[1:], fail(batch[1:2]), are_confirmed=True)
    assert await read_confirmed(redis) == {*ids([batch[0], batch[2]])}, "of both parts, and no failed one"
    [key] = await redis.keys(SHARD.confirmed("*"))
    kept: Any = await redis.get(key)
    assert find_confirmed(decode_confirmed(kept), 5) == (3, 2)
    assert 0 < await redis.ttl(key) <= 15


async def test_what_is_not_said_to_be_confirmed_is_not_kept(redis: Redis) -> None:
    await Clearing([Shard(redis)]).clear(reserve(Sale(sale_id=7, terms=make_terms(stock=100)), 6))
    assert not await read_confirmed(redis)


async def test_few_lots_of_a_batch_are_kept(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=1_000))
    few, many = reserve(sale, 64), reserve(sale, 65)
    await Clearing([Shard(redis)]).clear([*few, *many], are_confirmed=True)
    assert await read_confirmed(redis) == {*ids(few)}


async def test_little_is_kept_of_a_batch_that_is_cleared_bit_by_bit(redis: Redis) -> None:
    """As after an outage of the payment gateway: each order may be settled by itself."""
    clearing, stem = Clearing([Shard(redis)]), make_stem()
    for place in range(300):
        await clearing.clear([Lot(stem, place, 3, 7, 1, 1, [101])], are_confirmed=True)
    kept: Any = await redis.get(SHARD.confirmed(stem))
    assert len(kept) < 2_000
    assert {stem + place for place in PLACES[:64]} <= await read_confirmed(redis)


async def test_few_batches_are_kept_at_a_time(redis: Redis) -> None:
    """Redis serves nobody else meanwhile."""
    lots = [Lot(make_stem(), 0, 3, 7, 1, 1, [101]) for _ in range(2_000)]
    await Clearing([Shard(redis)]).clear(lots, are_confirmed=True)
    assert await read_confirmed(redis) == {*ids(lots[:256])}


async def test_a_declined_order_of_an_old_sale_leaves_the_new_sale_alone(redis: Redis) -> None:
    old = Sale(sale_id=7, terms=make_terms(stock=100, limit=1))
    new = msgspec.structs.replace(old, sale_id=8)
    await open_at_gate(redis, new, remaining=50)
    batch = reserve(old)
    await accept(redis, batch)
    await redis.hset(f"{SHARD.prefix}buyers:8", "1", "1")
    assert await Clearing([Shard(redis)]).clear(batch, fail(batch)) == 0
    assert await units(redis) == (50, 0)
    assert await redis.hget(f"{SHARD.prefix}buyers:8", "1") == b"1"
    assert not await redis.exists(SHARD.pending)


async def test_a_declined_user_may_buy_again_under_a_limit(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100, limit=4, quantity=2))
    await open_at_gate(redis, sale, remaining=90)
    batch = reserve(sale)
    await accept(redis, batch)
    await redis.hset(f"{SHARD.prefix}buyers:7", "1", "4")
    await Clearing([Shard(redis)]).clear(batch, fail(batch))
    assert await redis.hget(f"{SHARD.prefix}buyers:7", "1") == b"2"


async def test_a_sale_without_a_limit_counts_no_buyers(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100))
    await open_at_gate(redis, sale, remaining=90)
    batch = reserve(sale)
    await accept(redis, batch)
    await Clearing([Shard(redis)]).clear(batch, fail(batch))
    assert await redis.exists(f"{SHARD.prefix}buyers:7") == 0


async def test_orders_of_a_gate_that_forgot_them_release_nothing(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100))
    await open_at_gate(redis, sale)
    batch = reserve(sale, 2)
    assert await Clearing([Shard(redis)]).clear(batch, fail(batch)) == 0
    assert await units(redis) == (100, 0)


async def test_a_large_batch_of_many_products_is_cleared_in_one_call(redis: Redis) -> None:
    sales = [
        Sale(sale_id=product, terms=make_terms(stock=5_000, product_id=product)) for product in (1, 2, 3)
    ]
    batches = [reserve(sale, 4_500) for sale in sales]
    for sale, batch in zip(sales, batches, strict=True):
        await open_at_gate(redis, sale, remaining=500)
        await accept(redis, batch, entry_size=4_000)
    lots = [lot for batch in batches for lot in batch]
    assert await Clearing([Shard(redis)]).clear(lots, fail(batches[2])) == 4_500
    assert [await units(redis, product) for product in (1, 2, 3)] == [(500, 0), (500, 0), (5_000, 4_500)]


async def test_every_order_is_cleared_in_the_shard_of_its_product(redis: Redis) -> None:
    shards = [Shard(redis, number, 3) for number in range(3)]
    lots: list[Lot] = []
    for product in range(1, 30):
        sale = Sale(sale_id=product, terms=make_terms(stock=10, product_id=product))
        lots += reserve(sale)
        home = shard_of(product, shards)
        await redis.hset(home.sale(product), mapping={"sale_id": product, "remaining": 9, "released": 0})
        await mark_pending(redis, lots[-1:], home)
    assert await Clearing(shards).clear(lots, fail(lots)) == 29


async def test_orders_between_failed_ones_are_cleared_and_release_nothing(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100))
    await open_at_gate(redis, sale, remaining=80)
    batch = reserve(sale, 20, size=8)
    await accept(redis, batch)
    failed = fail(batch)[::3]
    assert await Clearing([Shard(redis)]).clear(batch, failed) == len(failed)
    assert await units(redis) == (80 + len(failed), len(failed))
    assert not await redis.exists(SHARD.pending)
