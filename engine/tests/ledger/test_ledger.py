import asyncio
import contextlib
import random
from collections.abc import AsyncIterator

import asyncpg
import msgspec
import pytest

from engine.errors import LedgerUnavailable
from engine.ledger.ledger import Ledger
from engine.model.delivery import encode_lines
from engine.model.order import Order, OrderStatus
from engine.model.order_id import PLACES, make_stem
from engine.tests.orders import make_terms, reserve

CONFIRMED, FAILED, REJECTED = OrderStatus.CONFIRMED, OrderStatus.FAILED, OrderStatus.REJECTED


@pytest.fixture
async def ledger(postgres_db: str) -> AsyncIterator[Ledger]:
    ledger = await Ledger.connect(postgres_db, connections=8)
    await ledger.create_schema()
    yield ledger
    await ledger.close()


@pytest.fixture
async def database(postgres_db: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(postgres_db)
    yield connection
    await connection.close()


def count(orders: list[Order], status: OrderStatus) -> int:
    return sum(order.status is status for order in orders)


async def test_schema_may_be_created_by_many_at_once_and_again(postgres_db: str) -> None:
    ledgers = await asyncio.gather(*(Ledger.connect(postgres_db, connections=1) for _ in range(8)))
    await asyncio.gather(*(ledger.create_schema() for ledger in ledgers))
    await ledgers[0].create_schema()
    await asyncio.gather(*(ledger.close() for ledger in ledgers))


async def test_each_opening_is_a_sale_of_its_own(ledger: Ledger) -> None:
    first = await ledger.open_sale(make_terms(stock=10))
    second = await ledger.open_sale(make_terms(stock=10))
    assert first.sale_id != second.sale_id


async def test_every_term_of_a_sale_is_kept(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    terms = msgspec.structs.replace(
        make_terms(stock=10, limit=4, quantity=2), starts_ms=1_700_000_000_123, ends_ms=1_700_000_001_456
    )
    sale = await ledger.open_sale(terms)
    row = await database.fetchrow("SELECT * FROM sales WHERE sale_id = $1", sale.sale_id)
    assert row is not None
    assert (row["product_id"], row["stock"], row["user_limit"], row["quantity"]) == (1, 10, 4, 2)
    assert round(row["starts_at"].timestamp() * 1000) == terms.starts_ms
    assert round(row["ends_at"].timestamp() * 1000) == terms.ends_ms


async def test_orders_are_kept_as_they_were_reserved(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sale = await ledger.open_sale(make_terms(stock=10, quantity=2))
    [reservation] = reserve(sale, key="abc")
    await ledger.settle([reservation], [None])
    row = await database.fetchrow("SELECT * FROM orders")
    assert row is not None
    assert str(row["order_id"]) == reservation.order_id
    assert (row["sale_id"], row["product_id"], row["user_id"], row["quantity"]) == (sale.sale_id, 1, 1, 2)
    assert (row["status"], row["reason"], row["idempotency_key"]) == ("CONFIRMED", None, "abc")
    assert round(row["accepted_at"].timestamp() * 1000) == reservation.accepted_ms
    assert await database.fetchval("SELECT sold FROM sales") == 2


async def test_find_order_knows_settled_orders_only(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=10))
    paid, declined, never = reserve(sale, 3)
    await ledger.settle([paid, declined], [None, "payment declined"])
    assert await ledger.find_order(paid.order_id) == Order(
        order_id=paid.order_id, user_id=1, product_id=1, sale_id=sale.sale_id, quantity=1, status=CONFIRMED
    )
    found = await ledger.find_order(declined.order_id)
    assert found is not None
    assert (found.status, found.reason) == (FAILED, "payment declined")
    assert await ledger.find_order(never.order_id) is None


async def test_units_beyond_the_stock_are_rejected_in_order_of_acceptance(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=9, quantity=2))
    batch = reserve(sale, 10)
    shuffled = random.Random(1).sample(batch, len(batch))
    settlement = await ledger.settle(shuffled, [None] * len(shuffled))
    status = {order.order_id: order.status for order in settlement.settled}
    assert [status[r.order_id] for r in batch] == [CONFIRMED] * 4 + [REJECTED] * 6


async def test_declined_orders_take_no_unit(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=2))
    batch = reserve(sale, 4)
    settlement = await ledger.settle(batch, ["no money", "no money", None, None])
    assert count(settlement.settled, FAILED) == 2
    assert count(settlement.settled, CONFIRMED) == 2


async def test_settling_again_changes_nothing(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sale = await ledger.open_sale(make_terms(stock=3))
    batch = reserve(sale, 5)
    declines = ["no money", None, None, None, None]
    first = await ledger.settle(batch, declines)
    # The other way round, twice each, and with the payments' answers swapped.
    again = await ledger.settle([*reversed(batch), *batch], [None] * 10)
    assert again.settled == []
    assert sorted(again.repeated, key=lambda o: o.order_id) == sorted(first.settled, key=lambda o: o.order_id)
    assert await database.fetchval("SELECT sold FROM sales") == 3
    assert await database.fetchval("SELECT count(*) FROM orders") == 5


async def test_duplicates_within_a_batch_count_once(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sale = await ledger.open_sale(make_terms(stock=2))
    batch = reserve(sale, 2)
    settlement = await ledger.settle(batch * 3, [None] * 6)
    assert count(settlement.settled, CONFIRMED) == 2
    assert await database.fetchval("SELECT sold FROM sales") == 2


async def test_repeated_orders_take_no_unit_from_new_ones(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=3))
    batch = reserve(sale, 3)
    await ledger.settle(batch[:2], [None] * 2)
    settlement = await ledger.settle(batch, [None] * 3)
    assert [order.status for order in settlement.settled] == [CONFIRMED]


async def test_a_batch_waits_for_the_one_that_holds_its_sale(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sale = await ledger.open_sale(make_terms(stock=1))
    async with database.transaction():
        await database.execute("SELECT FROM sales WHERE sale_id = $1 FOR UPDATE", sale.sale_id)
        await database.execute("UPDATE sales SET sold = 1")
        settling = asyncio.create_task(ledger.settle(reserve(sale), [None]))
        while not await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            pass
    assert [order.status for order in (await settling).settled] == [REJECTED]


async def test_a_batch_of_several_sales_is_judged_sale_by_sale(ledger: Ledger) -> None:
    sales = [await ledger.open_sale(make_terms(stock=3, product_id=product)) for product in (1, 2, 3)]
    batch = [r for sale in sales for r in reserve(sale, 5)]
    settlement = await ledger.settle(batch, [None] * 15)
    for sale in sales:
        mine = [order for order in settlement.settled if order.sale_id == sale.sale_id]
        assert (count(mine, CONFIRMED), count(mine, REJECTED)) == (3, 2)


async def test_an_order_of_an_unknown_sale_is_poison_and_its_neighbours_settle(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=10))
    good = reserve(sale, 4)
    [lost] = reserve(msgspec.structs.replace(sale, sale_id=sale.sale_id + 1))
    settlement = await ledger.settle([*good[:2], lost, *good[2:]], [None] * 5)
    assert count(settlement.settled, CONFIRMED) == 4
    [poison] = settlement.poison
    assert poison.body == encode_lines([lost])
    assert "unknown sale" in poison.reason


async def test_a_record_that_postgresql_refuses_is_poison_and_its_neighbours_settle(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=100))
    batch = reserve(sale, 9)
    batch[3] = msgspec.structs.replace(batch[3], quantity=0)
    batch[4] = msgspec.structs.replace(batch[4], key="a\0b")
    batch[8] = msgspec.structs.replace(batch[8], user_id=2**63)
    settlement = await ledger.settle(batch, [None] * 9)
    assert count(settlement.settled, CONFIRMED) == 6
    assert len(settlement.poison) == 3


async def test_concurrent_settles_never_exceed_stock_and_never_deadlock(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sales = [await ledger.open_sale(make_terms(stock=100, product_id=product)) for product in range(1, 6)]
    orders = [r for sale in sales for r in reserve(sale, 150)]
    rng = random.Random(7)
    # Every order twice, in batches that name the sales in any order.
    work = rng.sample(orders * 2, len(orders) * 2)
    batches = [work[start : start + 50] for start in range(0, len(work), 50)]
    settlements = await asyncio.gather(*(ledger.settle(batch, [None] * len(batch)) for batch in batches))
    settled = [order for settlement in settlements for order in settlement.settled]
    assert sorted(order.order_id for order in settled) == sorted(r.order_id for r in orders)
    for row in await database.fetch("SELECT * FROM sales"):
        mine = [order for order in settled if order.sale_id == row["sale_id"]]
        assert (row["sold"], count(mine, CONFIRMED), count(mine, REJECTED)) == (100, 100, 50)
    assert (
        await database.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        == 0
    )


async def test_the_database_itself_refuses_to_oversell(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await ledger.open_sale(make_terms(stock=10))
    with pytest.raises(asyncpg.CheckViolationError, match="never_oversold"):
        await database.execute("UPDATE sales SET sold = 11")


async def test_lost_connections_are_replaced(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    await ledger.ping()
    await database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with contextlib.suppress(LedgerUnavailable):
        await ledger.ping()
    await ledger.ping()


async def test_an_absent_server_is_named_unavailable() -> None:
    ledger = await Ledger.connect("postgresql://postgres@127.0.0.1:1/none")
    with pytest.raises(LedgerUnavailable):
        await ledger.find_order(make_stem() + PLACES[0])
    await ledger.close()
