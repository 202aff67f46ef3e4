"""The schema's migrations: each is applied once, whoever comes first, and none harms what is there."""

import asyncio
from collections.abc import AsyncIterator
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from engine.errors import LedgerUnavailable
from engine.ledger import migrating
from engine.ledger.ledger import Ledger
from engine.ledger.migrating import MIGRATIONS, Migration
from engine.model.lot import Lot
from engine.model.order import OrderStatus
from engine.model.sale import Sale
from engine.tests.orders import ids, make_terms, reserve
from engine.tests.services import execute

NAMES: Final = [migration.name for migration in MIGRATIONS]
BEFORE: Final = Path(__file__).with_name("schema_before_migrations.sql").read_text()
CATALOG: Final = """
SELECT table_name || ' ' || column_name, concat_ws(' ', data_type, is_nullable, column_default, is_identity)
FROM information_schema.columns WHERE table_schema = 'public'
UNION ALL SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid)
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL SELECT oid::regprocedure::text, pg_get_functiondef(oid) FROM pg_proc
WHERE pronamespace = 'public'::regnamespace
UNION ALL SELECT 'migration ' || number, name FROM flashgrid_migrations
ORDER BY 1, 2
"""
"""All that a migration may change."""


@pytest.fixture
async def bare_ledger(postgres_db: str) -> AsyncIterator[Ledger]:
    async with await Ledger.connect(postgres_db) as ledger:
        yield ledger


def add(monkeypatch: pytest.MonkeyPatch, *migrations: Migration) -> None:
    monkeypatch.setattr(migrating, "MIGRATIONS", sorted([*MIGRATIONS, *migrations]))


async def read(url: str, query: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    rows = await connection.fetch(query)
    await connection.close()
    return [tuple(row) for row in rows]


def test_every_migration_has_a_number_of_its_own() -> None:
    assert len({migration.number for migration in MIGRATIONS}) == len(MIGRATIONS)
    stored = {file.name for file in files("engine.ledger").joinpath("migrations").iterdir()}
    assert stored == {f"{name}.sql" for name in NAMES}


async def test_migrations_are_applied_once_by_many_at_once_and_again(postgres_db: str) -> None:
    database = postgres_db.rpartition("/")[2]
    await execute(
        postgres_db, f"ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'"
    )
    ledgers = await asyncio.gather(*(Ledger.connect(postgres_db, connections=1) for _ in range(8)))
    applied = await asyncio.gather(*(ledger.migrate() for ledger in ledgers))
    assert sorted(chain.from_iterable(applied)) == NAMES
    assert await ledgers[0].migrate() == []
    assert await ledgers[0].read_schema() == ([], [])
    await asyncio.gather(*(ledger.close() for ledger in ledgers))


async def test_a_database_from_before_migrations_is_taken_over_as_it_is(
    bare_ledger: Ledger, postgres_db: str, postgres_url: str
) -> None:
    await execute(postgres_db, BEFORE)
    await execute(postgres_db, "INSERT INTO sales (product_id, stock, quantity) VALUES (1, 3, 1)")
    old = Sale(sale_id=1, terms=make_terms(stock=3))
    lots = reserve(old, 2)
    await bare_ledger.settle(lots, {})
    await execute(postgres_db, "INSERT INTO gate (generation) VALUES (7)")
    queries = (
        "SELECT sale_id, product_id, stock, sold, opened_at FROM sales",
        "TABLE orders",
        "SELECT generation FROM gate",
    )
    rows = [await read(postgres_db, query) for query in queries]
    assert (await bare_ledger.read_schema()).missing == NAMES
    assert await bare_ledger.migrate() == NAMES
    assert rows == [await read(postgres_db, query) for query in queries]
    assert {order.order_id for order in await bare_ledger.find_orders(ids(lots))} == {*ids(lots)}
    assert (await bare_ledger.settle(reserve(old, 2), {})).settled == {
        OrderStatus.CONFIRMED: 1,
        OrderStatus.REJECTED: 1,
    }
    assert await bare_ledger.read_generation() == 7
    fresh = f"{postgres_db}_fresh"
    await execute(postgres_url, f"CREATE DATABASE {fresh.rpartition('/')[2]}")
    async with await Ledger.connect(fresh) as other:
        await other.migrate()
    assert await read(postgres_db, CATALOG) == await read(fresh, CATALOG)
    await execute(postgres_url, f"DROP DATABASE {fresh.rpartition('/')[2]} WITH (FORCE)")


async def test_a_migration_that_comes_later_with_a_lower_number_is_applied(
    bare_ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, Migration(9000, "9000_high", "CREATE TABLE high ()"))
    assert (await bare_ledger.migrate())[-1] == "9000_high"
    add(monkeypatch, Migration(8000, "8000_low", "CREATE TABLE low ()"))
    assert await bare_ledger.read_schema() == (["8000_low"], ["9000_high"])
    assert await bare_ledger.migrate() == ["8000_low"]


async def test_a_migration_that_fails_leaves_nothing(
    bare_ledger: Ledger, postgres_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(monkeypatch, Migration(9000, "9000_half", "CREATE TABLE half (); SELECT 1 / 0"))
    with pytest.raises(asyncpg.DivisionByZeroError):
        await bare_ledger.migrate()
    assert await read(postgres_db, "SELECT to_regclass('half')") == [(None,)]
    assert (await bare_ledger.read_schema()).missing == ["9000_half"]


async def test_a_time_limit_of_the_role_does_not_end_a_migration(
    bare_ledger: Ledger, postgres_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = postgres_db.rpartition("/")[2]
    await execute(postgres_db, f"ALTER DATABASE {database} SET statement_timeout = '200ms'")
    add(monkeypatch, Migration(9000, "9000_long", "SELECT pg_sleep(0.5)"))
    assert await bare_ledger.migrate() == [*NAMES, "9000_long"]


async def test_a_migration_gives_up_a_lock_that_others_wait_behind(
    bare_ledger: Ledger, postgres_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bare_ledger.migrate()
    add(monkeypatch, Migration(9000, "9000_column", "ALTER TABLE sales ADD COLUMN more integer"))
    holder = await asyncpg.connect(postgres_db)
    async with holder.transaction():
        await holder.execute("LOCK TABLE sales IN ACCESS SHARE MODE")
        with pytest.raises(LedgerUnavailable, match="lock timeout"):
            await bare_ledger.migrate()
    await holder.close()
    assert await bare_ledger.migrate() == ["9000_column"]


async def test_tables_of_another_program_are_left_alone(bare_ledger: Ledger, postgres_db: str) -> None:
    await execute(postgres_db, "CREATE TABLE orders (id integer)")
    with pytest.raises(LedgerUnavailable, match='column "order_id" does not exist'):
        await bare_ledger.migrate()
    assert await read(postgres_db, "SELECT to_regclass('sales')") == [(None,)]


async def test_lots_of_many_sales_are_settled_without_the_function_for_them(
    bare_ledger: Ledger, postgres_db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older schema lacks it, and a role that read about the schema of before lacks the right to it."""
    monkeypatch.setattr(migrating, "MIGRATIONS", [each for each in MIGRATIONS if each.number < 30])
    await bare_ledger.migrate()
    sales = [await bare_ledger.open_sale(make_terms(4, product_id)) for product_id in (1, 2)]
    confirmed = {OrderStatus.CONFIRMED: 2}
    assert (await bare_ledger.settle([*map(reserve_one, sales)], {})).settled == confirmed
    monkeypatch.undo()
    assert await bare_ledger.migrate() == [name for name in NAMES if name >= "0030"]
    role = postgres_db.rpartition("/")[2] + "_role"
    await execute(
        postgres_db,
        f"CREATE ROLE {role}; GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {role};"
        "REVOKE EXECUTE ON FUNCTION settle_many FROM PUBLIC",
    )
    async with await Ledger.connect(f"{postgres_db}?role={role}") as ledger:
        assert (await ledger.settle([*map(reserve_one, sales)], {})).settled == confirmed
    await execute(postgres_db, f"DROP OWNED BY {role}; DROP ROLE {role}")
    assert await read(postgres_db, "SELECT sum(sold) FROM sales") == [(4,)]


def reserve_one(sale: Sale) -> Lot:
    return reserve(sale)[0]
