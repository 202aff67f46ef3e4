"""The final state is what the stores hold, and says what it could not read."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import aio_pika
import pandas as pd
import pytest
from redis.asyncio import Redis

from engine.bus.topology import DEAD, PURCHASES, declare_topology
from engine.gate.gate import Gate
from engine.gate.keys import ShardKeys
from engine.ledger.ledger import Ledger
from engine.model.lot import Lot
from engine.model.order_id import split_order_id
from engine.model.purchase import Outcome
from engine.model.sale import Sale, SaleTerms
from engine.settings import Settings
from simulation.judge.asked import Asked
from simulation.judge.verdict import judge
from simulation.model.state import FinalState
from simulation.record.state import read_state, write_state
from simulation.target.final_state import await_drain, read_final_state
from simulation.target.services import Services
from simulation.target.stores import GateStore
from simulation.tests.histories import history_of

KEYS = ShardKeys(0)


async def sell(settings: Settings) -> tuple[Sale, list[str]]:
    """A sale of five units with three purchases: one confirmed, one declined, one still pending."""
    assert settings.postgres_url is not None
    ledger, gate = await Ledger.connect(settings.postgres_url), Gate(settings)
    try:
        await ledger.migrate()
        await ledger.open_sale(SaleTerms(product_id=9, stock=1))
        sale = await ledger.open_sale(SaleTerms(product_id=7, stock=5, limit=2, starts_ms=1_000))
        await gate.open_sale(sale)
        bought = [await gate.reserve(user_id, 7, "key" if user_id == 1 else None) for user_id in (1, 2, 3)]
        assert {outcome for outcome, _ in bought} == {Outcome.ACCEPTED}
        ids = [order_id for _, order_id in bought if order_id]
        batch = [
            Lot(
                *split_order_id(order_id), 7, sale.sale_id, 1, 1_700_000_000_123, [user_id],
                ["key"] if user_id == 1 else None,
            )
            for user_id, order_id in ((1, ids[0]), (2, ids[1]))
        ]  # fmt: skip
        await ledger.settle(batch, {ids[1]: 'declined, "for" a reason\nof two lines'})
        return sale, ids
    finally:
        await gate.close()
        await ledger.close()


def services_of(settings: Settings, **elsewhere: str) -> Services:
    assert settings.redis_url is not None
    assert settings.postgres_url is not None
    services = Services(
        redis_url=settings.redis_url, postgres_url=settings.postgres_url, amqp_url=settings.amqp_url
    )
    return replace(services, **elsewhere)  # type: ignore[arg-type]


async def read(services: Services, **more: object) -> FinalState:
    return await read_final_state(services, drain_timeout_s=0.2, **more)  # type: ignore[arg-type]


async def test_it_reads_gate_and_ledger(settings_without_bus: Settings, redis: Redis) -> None:
    sale, ids = await sell(settings_without_bus)
    await redis.hdel(KEYS.pending, *(split_order_id(order_id)[0] for order_id in ids[:2]))
    state = await read(services_of(settings_without_bus), sale_ids=[sale.sale_id])
    assert state.unread == {}
    assert state.gate is not None
    assert state.gate.to_dict("records") == [
        {
            **{"product_id": 7, "sale_id": sale.sale_id, "stock": 5, "remaining": 2, "released": 0},
            **{"user_limit": 2, "quantity": 1, "starts_ms": 1_000, "ends_ms": None},
        }
    ]
    assert state.pending == frozenset([ids[2]])
    assert state.outbox == 3
    assert (state.queue, state.dead, state.bus, state.drained_s) == (0, 0, False, None)
    assert state.sales is not None
    row = state.sales.to_dict("records")
    assert [(r["sale_id"], r["stock"], r["sold"], r["user_limit"], r["starts_us"]) for r in row] == [
        (sale.sale_id, 5, 1, 2, 1_000_000)
    ]
    assert pd.isna(row[0]["ends_us"])
    assert state.orders is not None
    orders = state.orders.sort_values("user_id").to_dict("records")
    assert [(o["order_id"], o["user_id"], o["status"]) for o in orders] == [
        (ids[0], 1, "CONFIRMED"),
        (ids[1], 2, "FAILED"),
    ]
    assert orders[0]["accepted_us"] == 1_700_000_000_123_000
    assert orders[0]["idempotency_key"] == "key"
    assert pd.isna(orders[1]["idempotency_key"])
    assert orders[1]["reason"] == 'declined, "for" a reason\nof two lines'


async def test_no_wrong_decoder_of_the_engine_can_fool_it(
    settings_without_bus: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the engine keeps is read by its bytes alone, though every reader of the engine is broken."""

    def lie(*_: object) -> object:
        raise AssertionError("the witness asks the engine")

    for name in (
        "engine.gate.keys.ShardKeys.sale",
        "engine.gate.keys.shard_of",
        "engine.gate.clearing.count_pending",
        "engine.gate.clearing.read_pending",
        "engine.gate.fence.read_generations",
        "engine.model.order_id.split_order_id",
    ):
        monkeypatch.setattr(name, lie)
    monkeypatch.setattr("engine.model.order_id.PLACES", ())
    monkeypatch.setattr("engine.bus.topology.PURCHASES", "elsewhere")
    stem = "01a21c1d-2be8-760e-97e3-0773b4d24"
    terms: dict[Any, Any] = {
        "sale_id": 9,
        "stock": 5,
        "remaining": 3,
        "released": 1,
        "limit": 2,
        "quantity": 1,
    }
    await redis.hset("fg:{1.1}:sale:7", mapping={**terms, "starts_ms": 0, "ends_ms": 1_000})
    await redis.hset("fg:{1.1}:pending", stem, "0" * 11 + "1")
    await redis.xadd("fg:{0.12}:outbox", {"purchases": "x"})
    await redis.hdel("fg:{1.1}:mark", "open")
    state = await read(services_of(settings_without_bus), shards=2)
    assert state.gate is not None
    (row,) = state.gate.to_dict("records")
    assert pd.isna(row.pop("starts_ms"))
    held = {"sale_id": 9, "product_id": 7, "stock": 5, "remaining": 3, "released": 1}
    assert row == held | {"user_limit": 2, "quantity": 1, "ends_ms": 1_000}
    assert (state.pending, state.outbox) == (frozenset([f"{stem}00b"]), 1)
    store = GateStore(settings_without_bus.redis_url or "", [], 2)
    counts = await store.read()
    await store.close()
    assert counts.items() >= {"pending_orders": 1, "outbox_entries": 1, "closed_shards": 1}.items()


async def test_a_sale_that_nobody_was_told_of_is_read_as_well(settings_without_bus: Settings) -> None:
    sale, _ = await sell(settings_without_bus)
    assert settings_without_bus.postgres_url is not None
    ledger = await Ledger.connect(settings_without_bus.postgres_url)
    again = await ledger.open_sale(SaleTerms(product_id=7, stock=5))
    other = await ledger.open_sale(SaleTerms(product_id=8, stock=5))
    await ledger.close()
    state = await read(services_of(settings_without_bus), sale_ids=[sale.sale_id])
    assert state.sales is not None
    assert state.sales["sale_id"].tolist() == [sale.sale_id, again.sale_id, other.sale_id]


async def test_it_can_be_saved_and_judged_again(
    settings_without_bus: Settings, redis: Redis, tmp_path: Path
) -> None:
    await sell(settings_without_bus)
    state = await read(services_of(settings_without_bus))
    write_state(state, tmp_path)
    loaded = read_state(tmp_path)
    for part in ("gate", "sales", "orders"):
        pd.testing.assert_frame_equal(getattr(loaded, part), getattr(state, part))
    frameless = {"gate": None, "sales": None, "orders": None}
    assert vars(replace(loaded, **frameless)) == vars(replace(state, **frameless))  # type: ignore[arg-type]
    history = history_of([])
    assert judge(history, loaded, Asked(sales=[])) == judge(history, state, Asked(sales=[]))


async def test_it_counts_messages_and_dead_letters(settings: Settings, redis: Redis) -> None:
    await sell(settings)
    assert settings.amqp_url is not None
    async with await aio_pika.connect(settings.amqp_url) as connection, connection.channel() as channel:
        await declare_topology(channel)
        for queue in (PURCHASES, PURCHASES, DEAD):
            await channel.default_exchange.publish(aio_pika.Message(b"[]"), queue)
    await redis.xadd(KEYS.dead, {"body": b"x"})
    state = await read(services_of(settings))
    assert (state.queue, state.dead, state.bus) == (2, 2, True)


async def test_a_store_that_is_down_is_said_to_be_unread(
    settings_without_bus: Settings, redis: Redis
) -> None:
    await sell(settings_without_bus)
    state = await read(services_of(settings_without_bus, redis_url="redis://127.0.0.1:1"))
    assert state.unread.keys() == {"gate"}
    assert (state.gate, state.pending, state.outbox, state.dead) == (None, None, None, None)
    assert state.orders is not None
    nowhere = {"amqp_url": "amqp://127.0.0.1:1", "postgres_url": "postgresql://127.0.0.1:1/none"}
    state = await read(services_of(settings_without_bus, **nowhere))
    assert state.unread.keys() == {"ledger", "bus"}
    assert (state.sales, state.orders, state.queue) == (None, None, None)


@pytest.mark.parametrize("left", ["outbox", "pending", "queue"])
async def test_the_drain_waits_for_every_stage(settings: Settings, redis: Redis, left: str) -> None:
    services = services_of(settings)
    assert settings.amqp_url is not None
    async with await aio_pika.connect(settings.amqp_url) as connection, connection.channel() as channel:
        await declare_topology(channel)
        queue = await channel.get_queue(PURCHASES)
        if left == "outbox":
            await redis.xadd(KEYS.outbox, {"purchases": "x"})
        elif left == "pending":
            await redis.hset(KEYS.pending, "x", "1")
        else:
            await channel.default_exchange.publish(aio_pika.Message(b"[]"), PURCHASES)
        assert await await_drain(services, 1, 0.3) is None
        waiting = asyncio.create_task(await_drain(services, 1, 30))
        await redis.delete(KEYS.outbox, KEYS.pending)
        await queue.purge()
        assert await waiting is not None
