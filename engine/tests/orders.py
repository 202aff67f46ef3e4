"""What tests of the back half are made of: order ids, reservations, and the gate's side of them."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio import Redis

from engine.gate.keys import ShardKeys
from engine.model.delivery import Delivery, decode_lines, encode_lines
from engine.model.lot import Reservation
from engine.model.order import Order
from engine.model.order_id import PLACES, make_stem, split_order_id
from engine.model.sale import Sale, SaleTerms

SHARD = ShardKeys(0)


def reserve(sale: Sale, count: int = 1, key: str | None = None) -> list[Reservation]:
    """Reservations of different users for one sale, accepted one after the other in batches of 100."""
    stems = [make_stem() for _ in range(0, count, 100)]
    now_ms = time.time_ns() // 1_000_000
    return [
        Reservation(
            order_id=stems[(user - 1) // 100] + PLACES[(user - 1) % 100],
            user_id=user,
            product_id=sale.terms.product_id,
            sale_id=sale.sale_id,
            quantity=sale.terms.quantity,
            accepted_ms=now_ms + user,
            key=key,
        )
        for user in range(1, count + 1)
    ]


def make_terms(stock: int, product_id: int = 1, limit: int | None = None, quantity: int = 1) -> SaleTerms:
    return SaleTerms(product_id=product_id, stock=stock, limit=limit, quantity=quantity)


async def open_at_gate(redis: Redis, sale: Sale, remaining: int | None = None) -> None:
    """Write the sale into the gate as it looks when `remaining` units are left."""
    terms = sale.terms
    fields: dict[Any, Any] = {
        "sale_id": sale.sale_id,
        "stock": terms.stock,
        "remaining": terms.stock if remaining is None else remaining,
        "released": 0,
        "limit": terms.limit or 0,
        "quantity": terms.quantity,
        "starts_ms": 0,
        "ends_ms": 0,
    }
    await redis.hset(SHARD.sale(terms.product_id), mapping=fields)


async def accept(redis: Redis, batch: Sequence[Reservation], entry_size: int = 256) -> None:
    """Do what the gate does with accepted purchases: outbox entries of `entry_size`, and the pending set.

    Who is fulfilled meanwhile must have been pending before.
    """
    await mark_pending(redis, batch)
    for start in range(0, len(batch), entry_size):
        part = batch[start : start + entry_size]
        await redis.xadd(SHARD.outbox, {"orders": len(part), "purchases": encode_lines(part)})


async def mark_pending(redis: Redis, batch: Iterable[Reservation | Order], shard: ShardKeys = SHARD) -> None:
    """Put the orders into the gate's pending set."""
    places: dict[str, set[int]] = {}
    for r in batch:
        stem, place = split_order_id(r.order_id)
        places.setdefault(stem, set()).add(place)
    for stem, its_places in places.items():
        digits: Any = await redis.hget(shard.pending, stem) or b""
        its_places |= {place for place, digit in enumerate(digits) if digit == ord("1")}
        text = "".join(str(int(place in its_places)) for place in range(max(its_places) + 1))
        await redis.hset(shard.pending, stem, text)


def unpack(deliveries: Iterable[Delivery]) -> list[Reservation]:
    """The reservations of all deliveries, which must hold nothing else."""
    read = [decode_lines(delivery.lines) for delivery in deliveries]
    assert not any(poison for _, poison in read)
    return [reservation for reservations, _ in read for reservation in reservations]
