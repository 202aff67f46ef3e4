"""Commands to the services of a run, which may be on their way back from another fault."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
from redis.exceptions import RedisError

from engine.errors import StackError
from engine.gate.client import connect_redis
from engine.local.stack import Stack
from simulation.errors import FaultError
from simulation.target.foreign.programs import try_command
from simulation.target.services import Services
from simulation.target.stores import connect_ledger

TIMEOUT_S: Final = 10.0
START_S: Final = 30.0
"""Longest time in which a service or stage that another fault has ended must be up again."""
POLL_S: Final = 0.02
_END_SESSIONS: Final = Path(__file__).with_name("end_sessions.sql").read_text()

T = TypeVar("T")


async def insist(action: Callable[[], Awaitable[T]]) -> T:
    """Repeat the action while it raises FaultError or StackError. Raises FaultError after START_S."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return await action()
        except (FaultError, StackError) as error:
            if time.monotonic() > deadline:
                raise FaultError(str(error)) from None
        await asyncio.sleep(POLL_S)


async def command_redis(url: str, *command: str) -> Any:
    """Send one command to Redis and return its answer. Raises FaultError."""
    try:
        async with connect_redis(url, round(TIMEOUT_S * 1000)) as redis:
            return await redis.execute_command(*command)  # type: ignore[no-untyped-call]
    except (RedisError, OSError) as error:
        raise FaultError(f"redis does not do {' '.join(command)}: {error}") from None


async def alter_postgres(url: str, change: str) -> None:
    """Do ALTER SYSTEM with this change, and let the server read it. Raises FaultError."""
    with postgres_faults(f"ALTER SYSTEM {change}"):
        # The session may write even while the default is that none does.
        async with connect_ledger(url, default_transaction_read_only="off") as connection:
            await connection.execute(f"ALTER SYSTEM {change}")
            await connection.execute("SELECT pg_reload_conf()")


async def do_command(command: str, what: str) -> None:
    """Do a command of one's own; an empty one does nothing. Raises FaultError, which says `what` failed."""
    if command and (failure := await try_command(command, START_S)):
        raise FaultError(f"{what}: {command}: {failure}")


async def drop_connections(on: str, services: Services, stack: Stack) -> None:
    """Let a service close every connection that it has. Raises FaultError or StackError."""
    if on == "redis":
        await command_redis(services.redis_url, "CLIENT", "KILL", "TYPE", "normal")
    elif on == "rabbitmq":
        await stack.control_rabbitmq("close_all_connections", "flashsim")
    else:
        spared = "flashsim drop_connections"
        with postgres_faults("end its sessions"):
            async with connect_ledger(services.postgres_url, application_name=spared) as connection:
                await end_sessions(connection, spared)


async def end_sessions(connection: asyncpg.Connection, spared: str) -> None:
    """End every session of this database but those of the application `spared`."""
    await connection.execute(_END_SESSIONS, spared)


@contextlib.contextmanager
def postgres_faults(action: str) -> Iterator[None]:
    """Turn any error of the client library into a FaultError that names the action."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise FaultError(f"postgres does not do {action}: {error}") from None
