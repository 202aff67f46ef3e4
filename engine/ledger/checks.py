"""What is checked of PostgreSQL before a stage starts: that it keeps what it confirms, and allows enough."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.resources import files
from typing import Final

import asyncpg

from engine.errors import LedgerUnavailable, SettingsError
from engine.ledger.hosts import Connection, Hosts
from engine.ledger.ledger import Ledger
from engine.ledger.queries import SERVER_ERRORS, describe

log = logging.getLogger(__name__)

_RIGHTS: Final = files("engine.ledger").joinpath("rights.sql").read_text()
_WAIT_S: Final = 3.0
"""A pooler whose sessions are all taken answers nothing for longer."""


async def check_postgres(url: str, sessions: int = 1) -> None:
    """Raise SettingsError for a PostgreSQL that is too old, may lose what it confirmed, or is behind a pool
    of transactions, or one that has fewer than so many sessions.

    The ledger prepares statements and holds a lock for longer than a transaction: each of its connections
    must lead to one session of the server. Raises LedgerUnavailable.
    """
    async with Hosts(url) as hosts:
        await _check_server(hosts, sessions)
        for host, error in hosts.find_silent().items():
            log.warning("PostgreSQL at %s does not answer (%s): the engine goes on without it", host, error)


async def _check_server(hosts: Hosts, sessions: int) -> None:
    async with _connect(hosts) as first:
        if first.get_server_version().major < 14:
            raise SettingsError(f"PostgreSQL is {first.get_settings().server_version}; 14 or newer is needed")
        if await first.fetchval("SHOW transaction_read_only") == "on":
            raise asyncpg.ReadOnlySQLTransactionError(
                "it takes no writes: a standby, or default_transaction_read_only is on for role or database"
            )
        await _check_durability(first)
        if hosts.several:
            await _check_standbys(first)
        before = await _read_session(first)
        if before == first.get_server_pid():
            most = int(await first.fetchval("SHOW max_connections"))
            if most < sessions:
                log.warning("PostgreSQL's max_connections is %d, and up to %d may be needed", most, sessions)
            return
        # A pooler answers for the server. Let another client hold a session for the time of a transaction.
        async with _connect(hosts) as second, second.transaction():
            held = await second.fetchval("SELECT pg_backend_pid()")
            try:
                after = await asyncio.wait_for(_read_session(first), _WAIT_S)
            except TimeoutError:
                after = held
    if held == before or after != before:
        raise SettingsError(
            "leads to a pooler (PgBouncer?) in transaction mode, which breaks prepared statements and locks:"
            " name PostgreSQL itself, or a pool with pool_mode = session"
        )
    log.info("PostgreSQL is behind a pooler, in session mode")
    await _check_pool(hosts, sessions)


async def _check_durability(connection: Connection) -> None:
    for name in ("synchronous_commit", "fsync", "full_page_writes"):
        if await connection.fetchval("SELECT current_setting($1)", name) == "off":
            if name == "synchronous_commit":
                raise SettingsError(f"{name} is off: PostgreSQL may lose settled orders when it restarts")
            log.warning("PostgreSQL may lose settled orders if its machine dies: set %s to on", name)
    role = await connection.fetchval("SHOW session_replication_role")
    if role != "origin":
        raise SettingsError(f"session_replication_role is {role}: the ledger's triggers would not work")


async def _check_standbys(connection: Connection) -> None:
    """Warn of standbys that may lack what was settled, and of a server that waits for one in vain."""
    confirms = await connection.fetchval("SHOW synchronous_commit") in ("on", "remote_write", "remote_apply")
    if not confirms or not await connection.fetchval("SHOW synchronous_standby_names"):
        log.warning(
            "PostgreSQL has several hosts, and no standby confirms what is settled: settled orders are lost"
            " when one takes over; set synchronous_standby_names on every host, synchronous_commit to on"
        )
    elif not await connection.fetchval("SELECT count(*) FROM pg_stat_replication"):
        log.warning("PostgreSQL waits for a standby (synchronous_standby_names), and none is connected to it")


async def _check_pool(hosts: Hosts, sessions: int) -> None:
    """Raise SettingsError for a pooler that does not serve so many sessions at once."""
    async with AsyncExitStack() as held:

        async def ask() -> object:
            return await (await held.enter_async_context(_connect(hosts))).fetchval("SELECT 1")

        asked = [asyncio.create_task(ask()) for _ in range(sessions)]
        done, pending = await asyncio.wait(asked, timeout=_WAIT_S)
        for task in pending:
            task.cancel()
        answered = [task for task in done if not task.exception()]
        await asyncio.gather(*asked, return_exceptions=True)
    if len(answered) < sessions:
        raise SettingsError(
            f"leads to a pooler that serves {len(answered)} sessions at once, and {sessions} may be needed:"
            " raise PgBouncer's default_pool_size"
        )


async def prepare_schema(url: str, ledger: Ledger) -> list[str]:
    """Apply the migrations that are missing, and return their names; check the role's rights.

    Raises LedgerUnavailable, or SettingsError that says what is missing and who may mend it.
    """
    missing: list[str] = []
    newer: list[str] = []
    applied: list[str] = []
    refusal: BaseException | None = None
    try:
        missing, newer = await ledger.read_schema()
        applied = await ledger.migrate() if missing else []
    except LedgerUnavailable as error:
        refusal = error.__cause__
        if not isinstance(refusal, (asyncpg.InsufficientPrivilegeError, asyncpg.InvalidSchemaNameError)):
            raise
    async with Hosts(url) as hosts, _connect(hosts) as connection:
        role = await connection.fetchval("SELECT current_user")
        needs = [row["need"] for row in await connection.fetch(_RIGHTS)]
    if missing and refusal:
        raise SettingsError(
            f"the schema lacks {', '.join(missing)}, and role {role} may not add it ({refusal}):"
            " run `flashgrid migrate` as the role that owns the schema,"
            f" and let it grant {role} SELECT, INSERT, UPDATE on its tables"
        )
    if needs:
        raise SettingsError(
            f"role {role} lacks {', '.join(needs)}: let the role that runs `flashgrid migrate` grant them"
        )
    for name in applied:
        log.info("applied the migration %s", name)
    if newer:
        log.warning(
            "a newer engine has applied %s: this one goes on beside it, as migrations only add",
            ", ".join(newer),
        )
    return applied


@asynccontextmanager
async def _connect(hosts: Hosts) -> AsyncIterator[Connection]:
    """Lend a connection. Raises LedgerUnavailable for any error of it."""
    try:
        # Without names for its statements, a transaction works through any pooler.
        connection = await hosts.connect(timeout=5, command_timeout=5, statement_cache_size=0)
        try:
            yield connection
        finally:
            connection.terminate()
    except SERVER_ERRORS as error:
        raise LedgerUnavailable(describe(error)) from error


async def _read_session(connection: Connection) -> int:
    """Return the process of the server's session that serves the connection just now."""
    async with connection.transaction():
        return int(await connection.fetchval("SELECT pg_backend_pid()"))
