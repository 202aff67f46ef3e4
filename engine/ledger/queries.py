"""The named queries of queries.sql, the connections they run on, and what their errors mean."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.resources import files
from typing import Any, Final, TypeAlias

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from engine.errors import LedgerLocked, LedgerUnavailable

Connection: TypeAlias = "PoolConnectionProxy[asyncpg.Record]"

QUERIES: Final = dict(
    re.findall(
        r"^-- name: (\w+)\n(.+?);$", files("engine.ledger").joinpath("queries.sql").read_text(), re.M | re.S
    )
)

_PAGE: Final = 10_000
"""Rows."""
_PATIENCE: Final = 10
"""Times the wait for another query."""
_BEGIN: Final = "BEGIN; SET LOCAL work_mem = '64MB'"
"""Memory enough to group a million rows without writing them to disk."""

RECORD_ERRORS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.PLPGSQLError,  # a trigger of the operator's own
    asyncpg.ProgramLimitExceededError,
    asyncpg.WithCheckOptionViolationError,
    ValueError,
)
"""The record is at fault, and would be again."""
# Everything else: the connection, the server, one that is read-only now, or a statement that was given up.
# The client calls it an internal error if the server closes the connection at a bad moment, and uvloop a
# RuntimeError if it is closed already.
SERVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    RuntimeError,
    TimeoutError,
)
_PAUSE_S: Final = 0.1
"""For so long after a connect that failed nobody tries another: it costs a millisecond of the processor."""


class Connections:
    """A pool of connections to PostgreSQL, each of which ends with the first error that is the server's."""

    def __init__(
        self,
        pool: "asyncpg.Pool[asyncpg.Record]",
        timeout_s: float,
        beside: "Connections | None" = None,
    ) -> None:
        self.pool = pool
        self._pools: list[asyncpg.Pool[asyncpg.Record]] = beside._pools if beside else []
        """All that are replaced together."""
        self._pools.append(pool)
        self._timeout_s = timeout_s
        self._refused_until = 0.0
        """On time.monotonic."""
        self._refusal = ""

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Connection]:
        """Lend a connection. Raises LedgerUnavailable for any error but RECORD_ERRORS.

        LedgerLocked says nothing of the server. After any other such error it may no longer be the one in
        charge: all connections are replaced before they are used again, and the server's name is looked up
        anew. A connection whose answer is not awaited ends at once: to cancel a statement takes a server that
        answers.
        """
        connection: Connection | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._acquire()
            yield connection
        except RECORD_ERRORS:
            raise
        except asyncpg.LockNotAvailableError as error:
            if connection is not None and connection.is_in_transaction():
                connection.terminate()
            raise LedgerLocked(describe(error)) from error
        except BaseException as error:
            if connection is not None:
                with suppress(asyncpg.InterfaceError):  # it has ended already
                    connection.terminate()
            if not isinstance(error, SERVER_ERRORS):
                raise
            for pool in self._pools:
                await pool.expire_connections()
            raise LedgerUnavailable(describe(error)) from error
        finally:
            if connection is not None:
                await self.pool.release(connection)

    async def _acquire(self) -> Connection:
        if time.monotonic() < self._refused_until:
            raise LedgerUnavailable(self._refusal)
        try:
            return await self.pool.acquire()
        except (*SERVER_ERRORS, ValueError) as error:
            self._refused_until, self._refusal = time.monotonic() + _PAUSE_S, describe(error)
            if isinstance(error, ValueError):
                # What the URL says, and no record.
                raise LedgerUnavailable(self._refusal) from error
            raise

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """Return the rows of a named query; see `borrow` for the errors."""
        async with self.borrow() as connection:
            return await self.fetch_on(connection, query, *arguments)

    async def stream(self, query: str, *arguments: Any) -> AsyncGenerator[list[asyncpg.Record], None]:
        """Yield the rows of a named query that returns many, in pages; see `borrow` for the errors."""
        async with self.borrow() as connection:
            async with asyncio.timeout(self._timeout_s):
                await connection.execute(_BEGIN)
                cursor = await connection.cursor(QUERIES[query], *arguments)
            while True:
                # The first page comes once all rows are known.
                async with asyncio.timeout(_PATIENCE * self._timeout_s):
                    page = await cursor.fetch(_PAGE)
                if not page:
                    break
                yield page
            async with asyncio.timeout(self._timeout_s):
                await connection.execute("COMMIT")

    async def fetch_on(self, connection: Connection, query: str, *arguments: Any) -> list[asyncpg.Record]:
        """Return the rows of a named query on a connection that was borrowed."""
        async with asyncio.timeout(self._timeout_s):
            return await connection.fetch(QUERIES[query], *arguments)


def describe(error: Exception) -> str:
    """Return kind and text of an error."""
    return f"{type(error).__name__}: {error}".removesuffix(": ")
