from collections.abc import Iterable

import msgspec
from redis.asyncio import Redis

from engine.gate.clearing import Compensation
from engine.gate.keys import ShardKeys, shard_of
from engine.gate.pending import read_pending
from engine.model.lot import Reservation
from engine.model.order import Order, OrderStatus
from engine.model.sale import Sale
from engine.tests.orders import SHARD, accept, make_terms, mark_pending, open_at_gate, reserve


def settle(batch: Iterable[Reservation], status: OrderStatus) -> list[Order]:
    return [
        Order(
            order_id=r.order_id,
            user_id=r.user_id,
            product_id=r.product_id,
            sale_id=r.sale_id,
            quantity=r.quantity,
            status=status,
        )
        for r in batch
    ]


async def units(redis: Redis, product_id: int = 1) -> tuple[int, int]:
    remaining, released = await redis.hmget(SHARD.sale(product_id), ["remaining", "released"])
    return int(remaining or -1), int(released or 0)


async def test_a_declined_order_gives_its_units_back_exactly_once(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100, quantity=2))
    await open_at_gate(redis, sale, remaining=90)
    batch = reserve(sale, 3)
    await accept(redis, batch)
    orders = settle(batch[:2], OrderStatus.FAILED) + settle(batch[2:], OrderStatus.CONFIRMED)
    assert await Compensation(redis, [SHARD]).settle(orders) == 4
    assert await Compensation(redis, [SHARD]).settle(orders) == 0
    assert await units(redis) == (94, 4)
    assert not await redis.exists(SHARD.pending)


async def test_confirmed_and_rejected_orders_only_stop_being_pending(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100))
    await open_at_gate(redis, sale, remaining=90)
    batch = reserve(sale, 3)
    await accept(redis, batch)
    orders = settle(batch[:1], OrderStatus.CONFIRMED) + settle(batch[1:2], OrderStatus.REJECTED)
    await Compensation(redis, [SHARD]).settle(orders)
    assert await units(redis) == (90, 0)
    assert await read_pending(redis, SHARD) == {batch[2].order_id}


async def test_a_declined_order_of_an_old_sale_leaves_the_new_sale_alone(redis: Redis) -> None:
    old = Sale(sale_id=7, terms=make_terms(stock=100, limit=1))
    new = msgspec.structs.replace(old, sale_id=8)
    await open_at_gate(redis, new, remaining=50)
    [order] = reserve(old)
    await accept(redis, [order])
    await redis.hset(SHARD.buyers(8), str(order.user_id), "1")
    assert await Compensation(redis, [SHARD]).settle(settle([order], OrderStatus.FAILED)) == 0
    assert await units(redis) == (50, 0)
    assert await redis.hget(SHARD.buyers(8), str(order.user_id)) == b"1"
    assert not await redis.exists(SHARD.pending)


async def test_who_was_declined_may_buy_again_under_a_limit(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100, limit=4, quantity=2))
    await open_at_gate(redis, sale, remaining=90)
    [order] = reserve(sale)
    await accept(redis, [order])
    await redis.hset(SHARD.buyers(7), str(order.user_id), "4")
    await Compensation(redis, [SHARD]).settle(settle([order], OrderStatus.FAILED))
    assert await redis.hget(SHARD.buyers(7), str(order.user_id)) == b"2"


async def test_a_sale_without_a_limit_counts_no_buyers(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100))
    await open_at_gate(redis, sale, remaining=90)
    [order] = reserve(sale)
    await accept(redis, [order])
    await Compensation(redis, [SHARD]).settle(settle([order], OrderStatus.FAILED))
    assert await redis.exists(SHARD.buyers(7)) == 0


async def test_orders_of_a_gate_that_forgot_them_release_nothing(redis: Redis) -> None:
    sale = Sale(sale_id=7, terms=make_terms(stock=100))
    await open_at_gate(redis, sale)
    assert await Compensation(redis, [SHARD]).settle(settle(reserve(sale, 2), OrderStatus.FAILED)) == 0
    assert await units(redis) == (100, 0)


async def test_a_large_batch_of_many_products_settles_in_one_call(redis: Redis) -> None:
    sales = [
        Sale(sale_id=product, terms=make_terms(stock=5_000, product_id=product)) for product in (1, 2, 3)
    ]
    batches = [reserve(sale, 4_500) for sale in sales]
    for sale, batch in zip(sales, batches, strict=True):
        await open_at_gate(redis, sale, remaining=500)
        await accept(redis, batch, entry_size=4_000)
    orders = settle(batches[0], OrderStatus.CONFIRMED) + settle(batches[1], OrderStatus.REJECTED)
    orders += settle(batches[2], OrderStatus.FAILED)
    assert await Compensation(redis, [SHARD]).settle(orders) == 4_500
    assert [await units(redis, product) for product in (1, 2, 3)] == [(500, 0), (500, 0), (5_000, 4_500)]


async def test_every_order_settles_in_the_shard_of_its_product(redis: Redis) -> None:
    shards = [ShardKeys(number) for number in range(3)]
    orders: list[Order] = []
    for product in range(1, 30):
        sale = Sale(sale_id=product, terms=make_terms(stock=10, product_id=product))
        orders += settle(reserve(sale), OrderStatus.FAILED)
        home = shards[shard_of(product, 3)]
        await redis.hset(home.sale(product), mapping={"sale_id": product, "remaining": 9, "released": 0})
        await mark_pending(redis, orders[-1:], home)
    assert await Compensation(redis, shards).settle(orders) == 29
