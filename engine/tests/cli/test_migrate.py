"""`flashgrid migrate`: the schema is brought up to date by the role that owns it, whoever serves."""

import asyncio

import aiohttp
import msgspec
import pytest

from engine.ledger.migrating import MIGRATIONS
from engine.settings import Settings
from engine.tests.services import execute
from engine.tests.stages.test_reconciliation import run_command
from engine.tests.test_server import http, serving
from engine.tests.test_set_ups import change, pgbouncer, refused, role_of, sells

__all__ = ["http"]
pytestmark = pytest.mark.slow

APPLIED = "".join(f"applied {migration.name}\n" for migration in MIGRATIONS)


@pytest.fixture
def ledger_alone(postgres_db: str) -> Settings:
    """All that the command is told."""
    return Settings(postgres_url=postgres_db)


async def test_it_prints_what_it_applied(ledger_alone: Settings) -> None:
    assert await run_command(ledger_alone, "migrate") == (0, APPLIED)
    assert await run_command(ledger_alone, "migrate") == (0, "the schema is up to date\n")
    code, text = await run_command(ledger_alone, "migrate", "--help")
    assert code == 0
    assert "Apply the migrations" in text


async def test_many_at_once_behind_a_pooler_apply_each_once(ledger_alone: Settings) -> None:
    async with pgbouncer(ledger_alone.postgres_url or "", "session") as url:
        behind = msgspec.structs.replace(ledger_alone, postgres_url=url)
        ran = await asyncio.gather(*(run_command(behind, "migrate") for _ in range(4)))
    assert [code for code, _ in ran] == [0] * 4
    lines = [line for _, text in ran for line in text.splitlines(keepends=True) if "applied" in line]
    assert "".join(sorted(lines)) == APPLIED


async def test_it_fails_in_one_line(ledger_alone: Settings, postgres_db: str) -> None:
    async with role_of(postgres_db) as stranger:
        code, text = await run_command(change(ledger_alone, postgres_url=stranger), "migrate")
        assert code == 1
        assert text.startswith(
            "flashgrid: FLASHGRID_POSTGRES_URL: the schema lacks 0001_ledger, and role role_"
        )
        assert text.count("\n") == 1
    code, text = await run_command(Settings(data_dir="/nowhere"), "migrate")
    assert (code, text.count("\n")) == (1, 1)
    assert "FLASHGRID_POSTGRES_URL" in text


async def test_tables_of_another_program_are_said_at_once(
    settings_without_bus: Settings, postgres_db: str
) -> None:
    await execute(postgres_db, "CREATE TABLE orders (id integer)")
    await refused(settings_without_bus, "POSTGRES_URL", 'column "order_id" does not exist')


async def test_an_engine_goes_on_beside_a_newer_one(
    settings_without_bus: Settings, postgres_db: str, http: aiohttp.ClientSession
) -> None:
    async with serving(settings_without_bus):
        pass
    await execute(postgres_db, "INSERT INTO flashgrid_migrations VALUES (9999, '9999_later')")
    log = await sells(settings_without_bus, http)
    assert any("a newer engine has applied 9999_later" in line for line in log)
