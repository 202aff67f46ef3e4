"""The named queries of queries.sql, and what their errors mean."""

import contextlib
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from engine.errors import LedgerUnavailable

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

SCHEMA: Final = files("engine.ledger").joinpath("schema.sql").read_text()
_QUERIES: Final = dict(
    re.findall(
        r"^-- name: (\w+)\n(.+?);$", files("engine.ledger").joinpath("queries.sql").read_text(), re.M | re.S
    )
)

RECORD_ERRORS: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError)
"""The record is at fault, and would be again."""
# Everything else: the connection, the server, or a statement that it gave up. The client calls it an internal
# error if the server closes the connection at a bad moment.
_SERVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Raise LedgerUnavailable for any error but RECORD_ERRORS."""
    try:
        yield
    except RECORD_ERRORS:
        raise
    except _SERVER_ERRORS as error:
        raise LedgerUnavailable(describe(error)) from error


async def fetch(
    pool: "Pool | PoolConnectionProxy[asyncpg.Record]", query: str, *arguments: Any
) -> list[asyncpg.Record]:
    """Return the rows of a named query. Raises LedgerUnavailable, or one of RECORD_ERRORS."""
    with translate_errors():
        return await pool.fetch(_QUERIES[query], *arguments)


def describe(error: Exception) -> str:
    """Return kind and text of an error."""
    return f"{type(error).__name__}: {error}"
