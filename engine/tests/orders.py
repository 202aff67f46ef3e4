"""What tests of the back half are made of: lots, and the gate's side of them."""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio import Redis

from engine.errors import GateUnavailable
from engine.gate.clearing import decode_confirmed, find_confirmed
from engine.gate.gate import Gate
from engine.gate.keys import ShardKeys
from engine.gate.looks.reads import Stock
from engine.model.lot import Lot, count_orders, decode_lots, encode_lots, split_lots
from engine.model.message import Message
from engine.model.order_id import PLACES, make_stem
from engine.model.sale import Sale, SaleTerms

SHARD = ShardKeys(0)
_BATCH = 100


def reserve(sale: Sale, count: int = 1, key: str | None = None, size: int = 1) -> list[Lot]:
    """Lots of `size` users each, numbered from 1, for one sale, accepted one after the other in batches, the
    last one just now.
    """
    terms = sale.terms
    before_ms = time.time_ns() // 1_000_000 - count
    lots: list[Lot] = []
    for batch in range(0, count, _BATCH):
        stem, end = make_stem(), min(batch + _BATCH, count)
        for start in range(batch, end, size):
            users = list(range(start + 1, min(start + size, end) + 1))
            keys: list[str | None] | None = [key] * len(users) if key else None
            place, accepted_ms = start - batch, before_ms + start + 1
            lots.append(
                Lot(stem, place, terms.product_id, sale.sale_id, terms.quantity, accepted_ms, users, keys)
            )
    return lots


def ids(lots: Iterable[Lot]) -> list[str]:
    """The order ids of all lots."""
    return [order_id for lot in lots for order_id in lot.order_ids]


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


async def accept(redis: Redis, lots: Sequence[Lot], entry_size: int = 256) -> None:
    """Do what the gate does with accepted purchases: outbox entries of `entry_size`, and the pending set.

    A fulfilment that runs meanwhile must find every order pending.
    """
    await mark_pending(redis, lots)
    while lots:
        entry, lots = split_lots(lots, entry_size)
        await redis.xadd(SHARD.outbox, {"orders": count_orders(entry), "purchases": encode_lots(entry)})


async def read_confirmed(redis: Redis) -> set[str]:
    """The ids of the orders that the gate keeps as confirmed."""
    found = set[str]()
    async for name in redis.scan_iter(match=SHARD.confirmed("*")):
        stem = name.decode().rpartition(":")[2]
        kept: Any = await redis.get(name)
        lots = decode_confirmed(kept)
        found |= {stem + digits for place, digits in enumerate(PLACES) if find_confirmed(lots, place)}
    return found


async def mark_pending(redis: Redis, lots: Iterable[Lot], shard: ShardKeys = SHARD) -> None:
    """Put the orders into the gate's pending set."""
    places: dict[str, set[int]] = {}
    for lot in lots:
        places.setdefault(lot.stem, set()).update(range(lot.first_place, lot.first_place + len(lot)))
    for stem, its_places in places.items():
        digits: Any = await redis.hget(shard.pending, stem) or b""
        its_places |= {place for place, digit in enumerate(digits) if digit == ord("1")}
        text = "".join(str(int(place in its_places)) for place in range(max(its_places) + 1))
        await redis.hset(shard.pending, stem, text)


def unpack(messages: Iterable[Message]) -> list[Lot]:
    """The lots of all messages, which must hold nothing else."""
    read = [decode_lots(message.lines) for message in messages]
    assert not any(dead_letters for _, dead_letters in read)
    return [lot for lots, _ in read for lot in lots]


async def read_stock(gate: Gate, product_id: int) -> Stock | None:
    """Stock of a product's current sale. Raises GateUnavailable also if the gate is closed."""
    stocks = await gate.reads.read_stocks([product_id])
    if product_id not in stocks:
        raise GateUnavailable("the gate waits to be rebuilt")
    return stocks[product_id]
