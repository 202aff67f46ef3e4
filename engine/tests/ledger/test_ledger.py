import asyncio
import contextlib
import random
import socket
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest

from engine.errors import LedgerLocked, LedgerUnavailable, OutcomeUnknown
from engine.ledger.ledger import Ledger
from engine.ledger.queries import QUERIES
from engine.ledger.settling import Settlement
from engine.model.lot import Lot, encode_lots
from engine.model.order import Order, OrderStatus
from engine.model.order_id import PLACES, make_stem
from engine.settings import Settings
from engine.tests.orders import ids, make_terms, reserve
from engine.tests.proxy import Proxy
from engine.tests.test_server import eventually

CONFIRMED, FAILED, REJECTED = OrderStatus.CONFIRMED, OrderStatus.FAILED, OrderStatus.REJECTED
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
async def ledger(postgres_db: str) -> AsyncIterator[Ledger]:
    ledger = await Ledger.connect(postgres_db, connections=8)
    await ledger.migrate()
    yield ledger
    await ledger.close()


@pytest.fixture
async def database(postgres_db: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    connection = await asyncpg.connect(postgres_db)
    yield connection
    await connection.close()


async def read_statuses(ledger: Ledger, lots: list[Lot]) -> list[OrderStatus]:
    """The status of each order, in the order of the lots."""
    orders = {order.order_id: order.status for order in await ledger.find_orders(ids(lots))}
    return [orders[order_id] for order_id in ids(lots)]


async def test_schema_may_be_created_by_many_at_once_and_again(postgres_db: str) -> None:
    ledgers = await asyncio.gather(*(Ledger.connect(postgres_db, connections=1) for _ in range(8)))
    await asyncio.gather(*(ledger.migrate() for ledger in ledgers))
    await ledgers[0].migrate()
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
    [lot] = reserve(sale, key="abc")
    await ledger.settle([lot], {})
    row = await database.fetchrow("SELECT * FROM orders")
    assert row is not None
    assert [str(row["order_id"])] == lot.order_ids
    assert (row["sale_id"], row["product_id"], row["user_id"], row["quantity"]) == (sale.sale_id, 1, 1, 2)
    assert (row["status"], row["reason"], row["idempotency_key"]) == ("CONFIRMED", None, "abc")
    assert row["accepted_at"] == EPOCH + timedelta(milliseconds=lot.accepted_ms)
    assert await database.fetchval("SELECT sold FROM sales") == 2


async def test_find_orders_knows_settled_orders_only(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=10))
    [lot] = reserve(sale, 3, size=3)
    paid, declined, never = lot.order_ids
    await ledger.settle([lot.cut(0, 2)], {declined: "payment declined"})
    assert await ledger.find_orders([paid]) == [
        Order(order_id=paid, user_id=1, product_id=1, sale_id=sale.sale_id, quantity=1, status=CONFIRMED)
    ]
    [found] = await ledger.find_orders([declined])
    assert (found.status, found.reason) == (FAILED, "payment declined")
    assert not await ledger.find_orders([never])


async def test_units_beyond_the_stock_are_rejected_in_order_of_acceptance(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=9, quantity=2))
    batch = reserve(sale, 10)
    shuffled = random.Random(1).sample(batch, len(batch))
    settlement = await ledger.settle(shuffled, {})
    assert settlement.settled == {CONFIRMED: 4, REJECTED: 6}
    assert await read_statuses(ledger, batch) == [CONFIRMED] * 4 + [REJECTED] * 6


async def test_a_lot_beyond_the_stock_is_confirmed_as_far_as_the_units_reach(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=9, quantity=2))
    batch = reserve(sale, 10, size=6)
    settlement = await ledger.settle(batch, {})
    assert settlement.settled == {CONFIRMED: 4, REJECTED: 6}
    assert (settlement.failed, settlement.dead_letters) == ([], {})
    assert sorted(await read_statuses(ledger, batch)) == [CONFIRMED] * 4 + [REJECTED] * 6


async def test_declined_orders_take_no_unit(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=2))
    batch = reserve(sale, 4, size=3)
    declined = ids(batch)[:2]
    settlement = await ledger.settle(batch, dict.fromkeys(declined, "no money"))
    assert settlement.settled == {FAILED: 2, CONFIRMED: 2}
    assert {(order.order_id, order.user_id, order.reason) for order in settlement.failed} == {
        (declined[0], 1, "no money"), (declined[1], 2, "no money"),
    }  # fmt: skip
    assert await read_statuses(ledger, batch) == [FAILED] * 2 + [CONFIRMED] * 2


async def test_settling_again_changes_nothing(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sale = await ledger.open_sale(make_terms(stock=3))
    batch = reserve(sale, 5, size=2)
    first = await ledger.settle(batch, {ids(batch)[0]: "no money"})
    statuses = await read_statuses(ledger, batch)
    # The other way round, twice each, and with the payments' answers swapped.
    again = await ledger.settle([*reversed(batch), *batch], {ids(batch)[1]: "no money"})
    assert again.settled.total() == 0
    assert again.failed == first.failed
    assert await read_statuses(ledger, batch) == statuses
    assert await database.fetchval("SELECT sold FROM sales") == 3
    assert await database.fetchval("SELECT count(*) FROM orders") == 5


async def test_duplicates_within_a_batch_count_once(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sale = await ledger.open_sale(make_terms(stock=2))
    [lot] = reserve(sale, 2, size=2)
    settlement = await ledger.settle([lot.cut(0, 1), lot, lot.cut(1, 2), lot], {})
    assert settlement.settled == {CONFIRMED: 2}
    assert await database.fetchval("SELECT sold FROM sales") == 2


async def test_repeated_orders_take_no_unit_from_new_ones(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=3))
    batch = reserve(sale, 3)
    await ledger.settle(batch[:2], {})
    assert (await ledger.settle(batch, {})).settled == {CONFIRMED: 1}


async def test_a_batch_waits_for_the_one_that_holds_its_sale(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sale = await ledger.open_sale(make_terms(stock=1))
    async with database.transaction():
        await database.execute("SELECT FROM sales WHERE sale_id = $1 FOR UPDATE", sale.sale_id)
        await database.execute("UPDATE sales SET sold = 1")
        settling = asyncio.create_task(ledger.settle(reserve(sale), {}))
        while not await database.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
            pass
    assert (await settling).settled == {REJECTED: 1}


async def test_of_a_sale_that_another_process_opens_under_the_same_key_nobody_knows(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    terms = make_terms(stock=10)
    async with database.transaction():
        [row] = await database.fetch(QUERIES["open_sale"], terms.product_id, 10, None, 1, None, None, "key")
        with pytest.raises(OutcomeUnknown):
            await ledger.open_sale(terms, "key")
    assert (await ledger.open_sale(terms, "key")).sale_id == row["sale_id"]


async def test_the_connection_that_locked_the_gate_waits_for_no_row_for_long(settings: Settings) -> None:
    async with await Ledger.connect(settings.postgres_url, connections=1) as ledger:
        await ledger.migrate()
        async with ledger.try_lock() as mine:
            assert mine
        assert await ledger._connections.pool.fetchval("SHOW lock_timeout") == "1s"
        async with ledger.try_lock() as mine:
            assert mine, "the lock is free again"


async def test_what_is_set_for_a_database_changes_nothing_that_the_ledger_relies_on(
    postgres_db: str, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    needed = {
        "lock_timeout": "1s", "statement_timeout": "0", "transaction_timeout": "0",
        "idle_session_timeout": "0", "idle_in_transaction_session_timeout": "0",
        "default_transaction_isolation": "read committed",
    }  # fmt: skip
    known = [row["name"] for row in await database.fetch("SELECT name FROM pg_settings")]
    needed = {name: value for name, value in needed.items() if name in known}
    for name in needed:
        value = "9min" if name.endswith("timeout") else "serializable"
        await database.execute(f"ALTER DATABASE {urlsplit(postgres_db).path[1:]} SET {name} = '{value}'")
    async with await Ledger.connect(postgres_db, connections=1) as ledger:
        pool = ledger._connections.pool
        assert {name: await pool.fetchval(f"SHOW {name}") for name in needed} == needed


async def test_a_batch_of_several_sales_is_judged_sale_by_sale(ledger: Ledger) -> None:
    sales = [await ledger.open_sale(make_terms(stock=3, product_id=product)) for product in (1, 2, 3)]
    batches = [reserve(sale, 5, size=4) for sale in sales]
    settlement = await ledger.settle([lot for batch in batches for lot in batch], {})
    assert settlement.settled == {CONFIRMED: 9, REJECTED: 6}
    for batch in batches:
        assert Counter(await read_statuses(ledger, batch)) == {CONFIRMED: 3, REJECTED: 2}


async def test_a_batch_of_many_sales_is_written_as_it_was_accepted(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sales = [await ledger.open_sale(make_terms(9, product_id=product, quantity=3)) for product in (5, 6)]
    lots = [*reserve(sales[0], 1, key="k"), *reserve(sales[1], 3, size=2)]
    # The nearest floating-point numbers to these times are on both sides of the millisecond.
    times_ms = (1_795_996_800_001, 1_899_999_999_999, 4_102_444_799_997)
    lots = [
        msgspec.structs.replace(lot, accepted_ms=time_ms) for lot, time_ms in zip(lots, times_ms, strict=True)
    ]
    assert (await ledger.settle(lots, {})).settled == {CONFIRMED: 4}
    rows = await database.fetch("SELECT * FROM orders")
    assert {
        (str(row["order_id"]), row["user_id"], row["product_id"], row["sale_id"], row["idempotency_key"])
        for row in rows
    } == {
        (order_id, user_id, lot.product_id, lot.sale_id, lot.keys[0] if lot.keys else None)
        for lot in lots
        for order_id, user_id in zip(lot.order_ids, lot.user_ids, strict=True)
    }
    for row, lot in ((row, lot) for row in rows for lot in lots if str(row["order_id"]) in lot.order_ids):
        assert (row["quantity"], row["status"], row["reason"]) == (3, "CONFIRMED", None)
        assert row["accepted_at"] == EPOCH + timedelta(milliseconds=lot.accepted_ms)
    assert {row["sale_id"]: row["sold"] for row in await database.fetch("SELECT * FROM sales")} == {
        sales[0].sale_id: 3,
        sales[1].sale_id: 9,
    }
    # Once more: one sale is full by now, and every order is known.
    assert (await ledger.settle(lots, {})).settled == {}
    assert {row["sale_id"]: row["sold"] for row in await database.fetch("SELECT * FROM sales")} == {
        sales[0].sale_id: 3,
        sales[1].sale_id: 9,
    }


async def test_an_order_of_an_unknown_sale_is_a_dead_letter_and_its_neighbours_settle(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=10))
    good = reserve(sale, 4)
    [lost] = reserve(msgspec.structs.replace(sale, sale_id=sale.sale_id + 1))
    settlement = await ledger.settle([*good[:2], lost, *good[2:]], {})
    assert settlement.settled == {CONFIRMED: 4}
    [(order_id, dead_letter)] = settlement.dead_letters.items()
    assert [order_id] == lost.order_ids
    assert dead_letter.body == encode_lots([lost])
    assert "unknown sale" in dead_letter.reason


async def test_an_order_that_postgresql_refuses_is_a_dead_letter(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=100))
    batch = reserve(sale, 9)
    batch[3] = msgspec.structs.replace(batch[3], quantity=0)
    batch[4] = msgspec.structs.replace(batch[4], keys=["a\0b"])
    batch[8] = msgspec.structs.replace(batch[8], user_ids=[2**63])
    settlement = await ledger.settle(batch, {})
    assert settlement.settled == {CONFIRMED: 6}
    assert {*settlement.dead_letters} == {*ids([batch[3], batch[4], batch[8]])}


async def test_one_order_of_a_lot_that_postgresql_refuses_stands_alone(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=100))
    [lot] = reserve(sale, 9, size=9)
    lot.user_ids[4] = 2**63
    settlement = await ledger.settle([lot], {})
    assert settlement.settled == {CONFIRMED: 8}
    [(order_id, dead_letter)] = settlement.dead_letters.items()
    assert order_id == lot.order_ids[4]
    assert dead_letter.body == encode_lots([lot.cut(4, 5)])


async def test_concurrent_settles_never_exceed_stock_and_never_deadlock(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]", postgres_db: str
) -> None:
    sales = [await ledger.open_sale(make_terms(stock=100, product_id=product)) for product in range(1, 6)]
    lots = {sale.sale_id: reserve(sale, 150, size=2) for sale in sales}
    rng = random.Random(7)
    # Every order twice, in batches that name the sales in any order.
    twice = [lot for its_lots in lots.values() for lot in its_lots * 2]
    work = rng.sample(twice, len(twice))
    batches = [work[start : start + 25] for start in range(0, len(work), 25)]

    async def settle(batch: list[Lot]) -> Settlement:
        # A machine that is busy may keep a sale locked for longer than a session waits.
        while True:
            with contextlib.suppress(LedgerLocked):
                return await eager.settle(batch, {})

    # PostgreSQL looks for deadlocks long before a session gives up to wait.
    async with await Ledger.connect(f"{postgres_db}?deadlock_timeout=50ms", connections=8) as eager:
        settlements = await asyncio.gather(*map(settle, batches))
    settled = sum((settlement.settled for settlement in settlements), Counter[OrderStatus]())
    assert settled == {CONFIRMED: 500, REJECTED: 250}
    for row in await database.fetch("SELECT * FROM sales"):
        statuses = Counter(await read_statuses(ledger, lots[row["sale_id"]]))
        assert (row["sold"], statuses) == (100, {CONFIRMED: 100, REJECTED: 50})
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
    await ledger.read_generation()
    await database.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    with contextlib.suppress(LedgerUnavailable):
        await ledger.read_generation()
    await ledger.read_generation()


async def test_an_absent_server_is_named_unavailable() -> None:
    ledger = await Ledger.connect("postgresql://postgres@127.0.0.1:1/none")
    with pytest.raises(LedgerUnavailable):
        await ledger.find_orders([make_stem() + PLACES[0]])
    await ledger.close()


async def test_a_server_that_refuses_is_asked_by_one_at_a_time_and_not_by_everyone(postgres_db: str) -> None:
    """https://github.com/porsager/postgres/issues/1179: a crowd that connects keeps a server down."""
    async with Proxy(postgres_db).listen() as proxy, await Ledger.connect(proxy.url) as ledger:
        assert await ledger.migrate()
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        proxy.point_to(port)
        proxy.cut()
        before = proxy.connects
        for _ in range(100):
            with pytest.raises(LedgerUnavailable):
                await ledger.find_newest()
        assert proxy.connects - before < 20
        proxy.point_to(urlsplit(postgres_db).port or 0)

        async def works() -> bool:
            with contextlib.suppress(LedgerUnavailable):
                return await ledger.find_newest() == {}
            return False

        await eventually(works)


def ask_again(lot: Lot, later_ms: int = 1000) -> Lot:
    """The same purchases under the same keys, accepted anew by a gate that has forgotten the first time."""
    return msgspec.structs.replace(lot, stem=make_stem(), accepted_ms=lot.accepted_ms + later_ms)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2)], ids=["apart", "in one batch"])
async def test_a_key_buys_once_whatever_the_gate_forgot(ledger: Ledger, sizes: tuple[int, int]) -> None:
    sale = await ledger.open_sale(make_terms(stock=9))
    [first] = reserve(sale, 3, key="abc", size=3)
    batches = [[first, ask_again(first)]] if sizes[0] > 1 else [[first], [ask_again(first)]]
    settled = [(await ledger.settle(batch, {})).settled for batch in batches]
    assert sum(settled, Counter()) == {CONFIRMED: 3, REJECTED: 3}
    [balance] = await ledger.find_current_sales()
    assert balance.sold == 3
    again = next(lot for batch in batches for lot in batch if lot is not first)
    orders = {order.order_id: order for order in await ledger.find_orders(ids([first, again]))}
    assert [orders[order_id].reason for order_id in again.order_ids] == [
        f"its Idempotency-Key has bought order {order_id}" for order_id in first.order_ids
    ]
    # What a rebuild restores is what was bought.
    keys = [order async for page in ledger.find_keys(3600) for order in page]
    assert {order.order_id for order in keys} == {*first.order_ids}


@pytest.mark.parametrize("many", [False, True], ids=["one sale", "many sales"])
async def test_a_key_buys_once_in_all_sales_of_its_product(ledger: Ledger, many: bool) -> None:
    older, newer = [await ledger.open_sale(make_terms(stock=9)) for _ in range(2)]
    [lot], [other] = reserve(older, key="abc"), reserve(newer, key="another")
    await ledger.settle([lot], {})
    again = msgspec.structs.replace(ask_again(lot), sale_id=newer.sale_id)
    batch = [other, msgspec.structs.replace(other, stem=make_stem(), sale_id=older.sale_id, user_ids=[2])]
    settlement = await ledger.settle([again, *batch] if many else [again], {})
    assert settlement.settled == {REJECTED: 1, **({CONFIRMED: 2} if many else {})}
    assert await read_statuses(ledger, [again]) == [REJECTED]


async def test_a_key_is_of_one_user_and_one_product(ledger: Ledger) -> None:
    sales = [await ledger.open_sale(make_terms(stock=9, product_id=product)) for product in (1, 2)]
    lots = [lot for sale in sales for lot in reserve(sale, 2, key="abc", size=2)]
    unkeyed = [lot for sale in sales for lot in reserve(sale, 2, size=2)]
    assert (await ledger.settle([*lots, *unkeyed], {})).settled == {CONFIRMED: 8}
    assert (await ledger.settle([ask_again(lot) for lot in unkeyed], {})).settled == {CONFIRMED: 4}


async def test_what_a_key_has_not_bought_it_may_still_buy(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=1))
    [lot] = reserve(sale, key="abc")
    again = ask_again(lot)
    assert (await ledger.settle([lot], {lot.order_ids[0]: "no money"})).settled == {FAILED: 1}
    assert (await ledger.settle([again], {})).settled == {CONFIRMED: 1}
    # The first one of the two is older, and yet not what the key stands for.
    assert [order.order_id async for page in ledger.find_keys(3600) for order in page] == again.order_ids
    assert (await ledger.settle([lot, again], {})).settled.total() == 0
    assert await read_statuses(ledger, [lot, again]) == [FAILED, CONFIRMED]


async def test_a_key_may_buy_again_once_it_is_forgotten(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=9))
    [lot] = reserve(sale, key="abc")
    orders = [ask_again(lot, later_ms) for later_ms in (0, 59_999, -59_999, 60_000, -60_000)]
    settled = [(await ledger.settle([order], {}, remember_s=60)).settled for order in orders]
    assert settled == [{CONFIRMED: 1}, {REJECTED: 1}, {REJECTED: 1}, {CONFIRMED: 1}, {CONFIRMED: 1}]


async def test_a_key_buys_once_where_its_orders_are_settled_at_the_same_time(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    # Of two sales, whose locks are different ones.
    sales = [await ledger.open_sale(make_terms(stock=100)) for _ in range(2)]
    first = reserve(sales[0], 20, key="abc")
    second = [msgspec.structs.replace(ask_again(lot), sale_id=sales[1].sale_id) for lot in first]
    settled = await asyncio.gather(
        *(ledger.settle([lot], {}) for pair in zip(first, second, strict=True) for lot in pair),
        *(ledger.settle([lot], {}) for lot in reserve(sales[0], 20)),
    )
    assert sum((each.settled for each in settled), Counter()) == {CONFIRMED: 40, REJECTED: 20}
    bought = await database.fetch(
        "SELECT count(*) FROM orders"
        " WHERE status = 'CONFIRMED' AND idempotency_key IS NOT NULL GROUP BY user_id"
    )
    assert [row["count"] for row in bought] == [1] * 20


async def test_an_order_without_a_unit_takes_no_key_and_one_without_a_key_no_unit(ledger: Ledger) -> None:
    sale = await ledger.open_sale(make_terms(stock=2))
    bought, late = [msgspec.structs.replace(lot, user_ids=[9]) for lot in reserve(sale, 2, key="abc")]
    await ledger.settle([bought], {})
    [new] = reserve(sale, key="abc")
    [beyond] = reserve(sale, key="other")
    beyond = msgspec.structs.replace(beyond, accepted_ms=new.accepted_ms + 1)
    settlement = await ledger.settle([late, new, beyond], {})
    assert settlement.settled == {REJECTED: 2, CONFIRMED: 1}
    orders = {order.order_id: order.reason for order in await ledger.find_orders(ids([late, beyond]))}
    assert orders == {
        late.order_ids[0]: f"its Idempotency-Key has bought order {bought.order_ids[0]}",
        beyond.order_ids[0]: "no unit left in the ledger",
    }


async def test_what_an_older_engine_settled_under_a_key_counts(
    ledger: Ledger, database: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    sale = await ledger.open_sale(make_terms(stock=9))
    [lot] = reserve(sale, key="abc")
    columns = lot.order_ids, lot.user_ids, [lot.accepted_ms], lot.keys
    # As engines settle that know nothing of the guard.
    assert await database.fetchval("SELECT settle_plain($1, 1, 1, $2, $3, $4, $5)", sale.sale_id, *columns)
    assert (await ledger.settle([ask_again(lot)], {})).settled == {REJECTED: 1}


@pytest.mark.parametrize("option", ["sslmode=always", "gsslib=x", "ssl_min_protocol_version=x"])
async def test_what_the_client_library_can_not_use_is_no_fault_of_a_record(option: str) -> None:
    async with await Ledger.connect(f"postgresql://u@127.0.0.1:1/d?{option}") as ledger:
        with pytest.raises(LedgerUnavailable):
            await ledger.read_generation()
