"""The schema: numbered migrations, each applied once and never undone.

migrations/NNNN_name.sql is one transaction. Numbers may have gaps, and a migration may come after one with a
higher number. Engines of two versions run beside each other while machines are replaced one by one, so a
migration only adds: a table, a column that has a default or may be NULL, an index, a function. What exists
keeps its name and its meaning for the engines that use it, and one that was ever applied is never edited.
"""

import re
from importlib.resources import files
from typing import Final, NamedTuple

import asyncpg

from engine.ledger.queries import Connection, Connections


class Migration(NamedTuple):
    """A step of the schema."""

    number: int
    name: str
    """Its number and what it adds."""
    statements: str


class Schema(NamedTuple):
    """Where the schema of a database stands: names of migrations."""

    missing: list[str]
    """Those that the database lacks."""
    newer: list[str]
    """Those that this engine does not know."""


MIGRATIONS: Final = sorted(
    Migration(int(match[1]), match[0].removesuffix(".sql"), file.read_text())
    for file in files("engine.ledger").joinpath("migrations").iterdir()
    if (match := re.fullmatch(r"(\d{4})_\w+\.sql", file.name))
)

_BEGIN: Final = files("engine.ledger").joinpath("begin_migration.sql").read_text()


async def read_schema(connections: Connections) -> Schema:
    """Compare the database with this engine. See Connections.borrow for the errors."""
    async with connections.borrow() as connection:
        found = await _read_applied(connections, connection)
    known = {migration.number for migration in MIGRATIONS}
    return Schema(
        [migration.name for migration in MIGRATIONS if migration.number not in found],
        [name for number, name in found.items() if number not in known],
    )


async def apply_migrations(connections: Connections) -> list[str]:
    """Apply the migrations that are missing, and return their names; many processes may do so at once.

    See Connections.borrow for the errors.
    """
    applied = []
    async with connections.borrow() as connection:
        for migration in MIGRATIONS:
            # What another process committed while this one waited for the lock must be seen.
            async with connection.transaction(isolation="read_committed"):
                await connection.execute(_BEGIN)
                if migration.number not in await _read_applied(connections, connection):
                    await connection.execute(migration.statements)
                    await connections.fetch_on(connection, "note_migration", migration.number, migration.name)
                    applied.append(migration.name)
    return applied


async def _read_applied(connections: Connections, connection: Connection) -> dict[int, str]:
    """Return the migrations that were applied, by number."""
    try:
        rows = await connections.fetch_on(connection, "read_migrations")
    except asyncpg.UndefinedTableError:
        return {}
    return {row["number"]: row["name"] for row in rows}
