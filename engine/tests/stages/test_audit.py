"""What holds while the gate sells: it and the ledger say the same, whatever is under way and for how long."""

import asyncio
import logging

import asyncpg
import pytest
from redis.asyncio import Redis

from engine.gate.client import Shard
from engine.gate.gate import Gate
from engine.gate.keys import shard_of
from engine.ledger.ledger import Ledger, Offer
from engine.ledger.queries import QUERIES
from engine.model.lot import encode_lots
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from engine.settings import Settings
from engine.stages.audit import Audit
from engine.stages.fulfilment import run_fulfilment
from engine.tests.backend import running
from engine.tests.orders import SHARD, make_terms, mark_pending, read_stock, reserve
from engine.tests.services import execute
from engine.tests.stages.test_reconciliation import buy, gate, ledger, open_sale, until_remaining

__all__ = ["gate", "ledger"]

A_DAY_S = 86_400


@pytest.fixture
async def audit(redis: Redis, ledger: Ledger) -> Audit:
    return Audit(ledger, [Shard(redis)], A_DAY_S)


async def find(audit: Audit) -> list[int]:
    """The sales that two full audits find to differ."""
    for _ in range(2):
        audit._due_s = 0
        found = [comparison.offer.sale_id for comparison in await audit.run(1)]
    audit._suspects = {}
    return found


async def end_sale(redis: Redis, postgres_db: str, sale: Sale, days: float) -> None:
    await redis.hset(SHARD.sale(sale.terms.product_id), "ends_ms", 1)
    await execute(
        postgres_db,
        f"UPDATE sales SET ends_at = now() - interval '{days} days' WHERE sale_id = {sale.sale_id}",
    )


async def test_a_difference_is_found_beside_a_dead_letter(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    sale = await open_sale(ledger, gate, stock=100)
    await open_sale(ledger, gate, stock=50, product_id=2)
    [lost] = reserve(sale)
    await redis.hincrby(SHARD.sale(1), "remaining", -1)
    await mark_pending(redis, [lost])
    await redis.xadd(SHARD.dead, {"body": encode_lots([lost]), "reason": "unknown"})
    await redis.hset(SHARD.sale(2), "remaining", 55)
    async with running(settings_without_bus, run_fulfilment):
        await until_remaining(gate, 50, product_id=2)
    assert (await read_stock(gate, 1)) == (sale.sale_id, 100, 100), "its payment never comes"


async def test_what_is_under_way_is_no_difference_and_everything_else_is(
    redis: Redis, gate: Gate, ledger: Ledger, audit: Audit
) -> None:
    sale = await ledger.open_sale(make_terms(100, quantity=2))
    await gate.open_sale(sale)
    await buy(gate, 3)
    assert await find(audit) == [], "in the outbox"
    lots = reserve(sale, 4)
    await ledger.settle(lots, {})
    assert await find(audit) == [sale.sale_id], "the ledger has sold what the gate has not taken"
    await redis.hincrby(SHARD.sale(1), "remaining", -8)
    await mark_pending(redis, lots)
    assert await find(audit) == [], "settled, not cleared"
    await redis.hincrby(SHARD.sale(1), "remaining", -1)
    assert await find(audit) == [sale.sale_id], "half a purchase"
    await redis.hincrby(SHARD.sale(1), "remaining", -7)
    assert await find(audit) == [], "as many as are pending"
    await redis.hincrby(SHARD.sale(1), "remaining", -2)
    assert await find(audit) == [sale.sale_id], "one more"
    await redis.hset(SHARD.sale(1), "remaining", "much")
    assert await find(audit) == [sale.sale_id]
    await redis.delete(SHARD.sale(1))
    assert await find(audit) == [sale.sale_id]


async def test_a_gate_that_is_written_to_meanwhile_is_not_judged(
    redis: Redis, gate: Gate, ledger: Ledger, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    sale = await open_sale(ledger, gate, stock=100)
    find_offers = Ledger.find_offers

    async def buy_and_find(self: Ledger, keep_s: float) -> object:
        await buy(gate, 1)
        await ledger.settle(reserve(sale, 2), {})
        return await find_offers(self, keep_s)

    monkeypatch.setattr(Ledger, "find_offers", buy_and_find)
    assert await find(audit) == []
    monkeypatch.undo()
    assert await find(audit) == [sale.sale_id]


async def test_a_sale_that_only_the_gate_knows_is_withdrawn_and_the_others_sell_on(
    settings_without_bus: Settings,
    redis: Redis,
    gate: Gate,
    ledger: Ledger,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await open_sale(ledger, gate, stock=5)
    await gate.open_sale(Sale(sale_id=99, terms=make_terms(3, product_id=3, limit=2)))
    assert (await gate.reserve(7, 3, None))[0] is Outcome.ACCEPTED
    await redis.set(f"{SHARD.prefix}sale:strange", "and no hash")
    await redis.set(f"{SHARD.prefix}subject:5", "another program's")
    with caplog.at_level(logging.WARNING):
        async with running(settings_without_bus, run_fulfilment):
            while await read_stock(gate, 3):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            assert (await buy(gate, 1))[0][0] is Outcome.ACCEPTED, "it was never closed"
            await until_remaining(gate, 4)
    assert (
        "withdrew 1 sales that the ledger does not offer, the first one: sale 99 of product 3" in caplog.text
    )
    assert not await redis.exists(f"{SHARD.prefix}buyers:99")
    assert await redis.hget(SHARD.fence, "open") == b"1"
    assert await redis.xlen(SHARD.dead) == 1, "what it sold is kept for a person"


async def test_a_newer_sale_that_only_the_gate_knows_gives_way_to_the_ledgers(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=5)
    await gate.open_sale(Sale(sale_id=99, terms=make_terms(3)))
    await redis.set(f"{SHARD.prefix}sale:strange", "no hindrance to a rebuild")
    async with running(settings_without_bus, run_fulfilment):
        await until_remaining(gate, 5)


async def test_buyers_without_a_sale_go(redis: Redis, gate: Gate, ledger: Ledger, audit: Audit) -> None:
    sale = await open_sale(ledger, gate, stock=5, limit=1)
    await buy(gate, 1)
    await redis.hset(f"{SHARD.prefix}buyers:77", "1", 1)
    assert await find(audit) == []
    assert await redis.keys(f"{SHARD.prefix}buyers:*") == [f"{SHARD.prefix}buyers:{sale.sale_id}".encode()]


async def test_a_sale_leaves_the_gate_some_time_after_its_end_once_nothing_of_it_is_under_way(
    redis: Redis, gate: Gate, ledger: Ledger, audit: Audit, postgres_db: str
) -> None:
    sale = await open_sale(ledger, gate, stock=5, limit=1)
    other = await open_sale(ledger, gate, stock=5, limit=1, product_id=2)
    [first] = (await buy(gate, 1))[:1]
    await end_sale(redis, postgres_db, other, 0.9)
    await end_sale(redis, postgres_db, sale, 1.1)
    assert await find(audit) == []
    assert await read_stock(gate, 1), "an order is pending, and its unit may come back"
    lots = [lot for lot in reserve(sale) if first]
    await ledger.settle(lots, {})
    await redis.delete(SHARD.pending)
    assert await find(audit) == []
    assert await read_stock(gate, 1) is None
    assert await read_stock(gate, 2), "it may still say that it is over"
    assert not await redis.exists(f"{SHARD.prefix}buyers:{sale.sale_id}")
    assert [offer.sale_id for offer in await ledger.find_offers(A_DAY_S)] == [other.sale_id]
    assert await find(audit) == [], "and nobody misses it"
    new = await open_sale(ledger, gate, stock=3)
    assert await read_stock(gate, 1) == (new.sale_id, 3, 3)
    assert await find(audit) == []


async def test_a_sale_that_is_long_over_and_not_at_the_gate_is_no_difference(
    redis: Redis, gate: Gate, ledger: Ledger, audit: Audit, postgres_db: str
) -> None:
    sale = await open_sale(ledger, gate, stock=5)
    await end_sale(redis, postgres_db, sale, 2)
    await redis.delete(SHARD.sale(1))
    assert await find(audit) == []
    assert await ledger.find_offers(A_DAY_S) == []


async def test_a_replaced_sale_is_looked_at_no_more_once_the_gate_has_the_newer_one(
    redis: Redis, gate: Gate, ledger: Ledger, audit: Audit
) -> None:
    old = await open_sale(ledger, gate, stock=5)
    new = await ledger.open_sale(make_terms(7))
    await ledger.note_offered(new.sale_id)
    while not (found := await find(audit)):  # a door that asks the gate disturbs an audit
        pass
    assert found == [new.sale_id]
    assert {offer.sale_id for offer in await ledger.find_offers(A_DAY_S)} == {old.sale_id, new.sale_id}
    await gate.open_sale(new)
    assert await find(audit) == []
    assert [offer.sale_id for offer in await ledger.find_offers(A_DAY_S)] == [new.sale_id]
    assert (await ledger.settle(reserve(old, 2), {})).settled.total() == 2, "late orders of it settle"


async def test_a_difference_must_be_seen_twice_though_the_gate_is_busy_in_between(
    redis: Redis, gate: Gate, ledger: Ledger, audit: Audit
) -> None:
    sale = await open_sale(ledger, gate, stock=5)
    await redis.hset(SHARD.sale(1), "remaining", 9)
    assert await audit.run(1) == []
    for _ in range(2):
        await buy(gate, 1)
        assert await audit.run(1) == [], "it is busy, and compares nothing"
    audit._due_s = 0
    assert [comparison.offer.sale_id for comparison in await audit.run(1)] == [sale.sale_id]
    assert await audit.run(1) == [], "and from the beginning"


async def test_a_difference_in_one_shard_is_found_while_another_one_is_always_written(
    redis: Redis, ledger: Ledger, postgres_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [Shard(redis, number, 2) for number in range(2)]
    sales = []
    for shard in shards:
        product_id = next(product for product in range(1, 9) if shard_of(product, shards) is shard)
        sales.append((await ledger.open_sale(make_terms(5, product_id))).sale_id)
        await redis.hset(shard.sale(product_id), mapping={"sale_id": sales[-1], "remaining": 9})
    find_offers, written = Ledger.find_offers, [shards[1]]

    async def write_and_find(self: Ledger, keep_s: float) -> list[Offer]:
        for shard in written:
            await redis.hincrby(shard.fence, "a writer", 1)
        return await find_offers(self, keep_s)

    monkeypatch.setattr(Ledger, "find_offers", write_and_find)
    audit = Audit(ledger, shards, A_DAY_S)
    assert await find(audit) == sales[:1]
    written.clear()
    assert await find(audit) == sales

    calm, busy = sales
    await execute(postgres_db, f"UPDATE sales SET stock = 9 WHERE sale_id = {calm}")
    for written[:], found in ([], []), ([shards[1]], []), ([], [busy]):
        audit._due_s = 0
        assert [comparison.offer.sale_id for comparison in await audit.run(1)] == found, "seen twice"


async def test_a_quiet_gate_is_audited_once_and_then_only_once_in_a_while(
    redis: Redis, gate: Gate, ledger: Ledger, audit: Audit, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_sale(ledger, gate, stock=5)
    compared = []
    find_offers = Ledger.find_offers

    async def count(self: Ledger, keep_s: float) -> object:
        compared.append(keep_s)
        return await find_offers(self, keep_s)

    monkeypatch.setattr(Ledger, "find_offers", count)
    monkeypatch.setattr("engine.stages.audit._INTERVAL_S", 3_600.0)

    async def run_until_audited() -> None:
        # A front door that has just started may still write.
        audit._audited = None
        async with asyncio.timeout(10):
            while not audit._audited:
                await audit.run(1)
        compared.clear()

    await run_until_audited()
    for _ in range(5):
        await audit.run(1)
    assert not compared
    for _ in range(5):
        await buy(gate, 1)
        await audit.run(1)
    assert not compared, "it is busy"
    for _ in range(5):
        await audit.run(1)
    assert len(compared) == 1


@pytest.mark.parametrize(
    ("query", "arguments", "index"),
    [
        ("find_offers", [60.0], "sales_on_offer"),
        ("find_current_sales", [], "sales_on_offer"),
        ("count_bought", [[1, 2]], "orders_of_sales"),
        ("find_keys", ["01a204e2-0000-7000-8000-000000000000", 60.0], "orders_with_keys"),
        ("find_newest", [], "orders_pkey"),
    ],
)
async def test_no_query_of_the_keeper_looks_at_all_orders_or_all_sales(
    ledger: Ledger, postgres_db: str, query: str, arguments: list[object], index: str
) -> None:
    connection = await asyncpg.connect(postgres_db)
    await connection.execute("SET enable_seqscan = off")  # which is cheaper for tables as small as these
    plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {QUERIES[query]}", *arguments))
    await connection.close()
    assert index in plan, plan
