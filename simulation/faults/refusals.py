"""Refusals: services that live and answer, and refuse to do their work, until they are told to stop it.

They are private ones, whose settings are known, so that the end of a refusal is the setting as it was.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final, Protocol

import asyncpg
from redis.exceptions import RedisError

from engine.errors import StackError
from engine.gate.client import connect_redis
from engine.local.stack import Stack
from engine.stages.lifecycle import cancel
from simulation.errors import FaultError
from simulation.target.services import Services

TIMEOUT_S: Final = 10.0
START_S: Final = 30.0
"""Longest time in which a service that another fault has just ended must be up again."""
POLL_S: Final = 0.02
SEIZE_S: Final = 0.05
"""Between two looks for connection slots that have come free."""
_HOLDER: Final = "flashsim no_connections"
"""The application name of the connections that take all slots."""
_END_SESSIONS: Final = Path(__file__).with_name("end_sessions.sql").read_text()


class Refusal(Protocol):
    """What is done to a service; both methods raise FaultError where it can't be."""

    async def begin(self) -> None:
        """Make the service refuse."""
        ...

    async def end(self) -> None:
        """Make it work as before, also where `begin` was interrupted."""
        ...


def make_refusal(kind: str, on: str, services: Services, stack: Stack) -> Refusal:
    """The refusal of this kind by this service of the stack; one of faults.REFUSALS."""
    if on == "redis":
        return _FullDisk(services, stack) if kind == "disk_full" else _RedisSettings(services, *_REDIS[kind])
    if on == "rabbitmq":
        return _Alarm(stack, *_ALARMS[kind])
    return _ReadOnly(services) if kind == "read_only" else _NoConnections(services)


async def insist(action: Callable[[], Awaitable[None]]) -> None:
    """Does it as soon as the service, which may be on its way back, does as it is told. Raises FaultError."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            return await action()
        except (FaultError, StackError) as error:
            if time.monotonic() > deadline:
                raise FaultError(str(error)) from None
            await asyncio.sleep(POLL_S)


_Command = tuple[str, ...]

_REDIS: Final[dict[str, tuple[_Command, _Command]]] = {
    "out_of_memory": (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    # Nobody listens on port 1: a replica that has never seen its primary keeps its data, and refuses writes.
    "read_only": (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
}


async def command_redis(url: str, *commands: _Command) -> Any:
    """Does the commands, one after the other, and returns the last answer. Raises FaultError."""
    try:
        async with connect_redis(url, round(TIMEOUT_S * 1000)) as redis:
            answer = None
            for command in commands:
                answer = await redis.execute_command(*command)  # type: ignore[no-untyped-call]
            return answer
    except (RedisError, OSError) as error:
        raise FaultError(f"redis does not do {' '.join(commands[0])}: {error}") from None


class _RedisSettings:
    def __init__(self, services: Services, begin: _Command, end: _Command) -> None:
        self._url = services.redis_url
        self._begin = begin
        self._end = end

    async def begin(self) -> None:
        await insist(lambda: self._do(self._begin))

    async def end(self) -> None:
        await insist(lambda: self._do(self._end))

    async def _do(self, command: _Command) -> None:
        await command_redis(self._url, command)


class _FullDisk:
    """A snapshot that can't be written, since a folder has its name: from then on Redis refuses every write.

    Redis does so only where it takes snapshots at all (stop-writes-on-bgsave-error, save). A write that fails
    on the append-only file itself ends Redis under `appendfsync always`: that is a kill.
    """

    def __init__(self, services: Services, stack: Stack) -> None:
        self._url = services.redis_url
        self._obstacle = stack.data_dir / "redis" / "dump.rdb"

    async def begin(self) -> None:
        if self._obstacle.is_file():
            # What a replica was once sent; Redis itself starts from its append-only file.
            self._obstacle.unlink()
        self._obstacle.mkdir(exist_ok=True)
        await insist(self._fail_to_save)

    async def _fail_to_save(self) -> None:
        await command_redis(
            self._url,
            ("CONFIG", "SET", "stop-writes-on-bgsave-error", "yes"),
            ("CONFIG", "SET", "save", "86400 1"),
            ("BGSAVE", "SCHEDULE"),
        )
        deadline = time.monotonic() + TIMEOUT_S
        while (await command_redis(self._url, ("INFO", "persistence")))["rdb_last_bgsave_status"] == "ok":
            if time.monotonic() > deadline:
                raise FaultError("redis does not try to write a snapshot")
            await asyncio.sleep(POLL_S)

    async def end(self) -> None:
        await insist(self._save_no_more)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._obstacle.rmdir()

    async def _save_no_more(self) -> None:
        await command_redis(self._url, ("CONFIG", "SET", "save", ""))


# RabbitMQ's defaults are what ends them.
_ALARMS: Final[dict[str, tuple[_Command, _Command]]] = {
    "out_of_memory": (("set_vm_memory_high_watermark", "0"), ("set_vm_memory_high_watermark", "0.4")),
    "disk_full": (("set_disk_free_limit", "999999GB"), ("set_disk_free_limit", "50MB")),
}


class _Alarm:
    def __init__(self, stack: Stack, begin: _Command, end: _Command) -> None:
        self._stack = stack
        self._begin = begin
        self._end = end

    async def begin(self) -> None:
        await insist(lambda: self._stack.control_rabbitmq(*self._begin))

    async def end(self) -> None:
        await insist(lambda: self._stack.control_rabbitmq(*self._end))


async def _execute(url: str, *statements: str) -> None:
    """Statements each on its own, by a session that may write whatever the default is. Raises FaultError."""
    try:
        connection = await asyncpg.connect(
            url, timeout=TIMEOUT_S, server_settings={"default_transaction_read_only": "off"}
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise FaultError(f"postgres does not do {statements[0]}: {error}") from None


class _ReadOnly:
    def __init__(self, services: Services) -> None:
        self._url = services.postgres_url

    async def begin(self) -> None:
        await insist(lambda: self._alter("SET default_transaction_read_only = on"))

    async def end(self) -> None:
        await insist(lambda: self._alter("RESET default_transaction_read_only"))

    async def _alter(self, what: str) -> None:
        await _execute(self._url, f"ALTER SYSTEM {what}", "SELECT pg_reload_conf()")


class _NoConnections:
    """Takes every slot that is free, ends the sessions of the engine's database, and takes theirs."""

    def __init__(self, services: Services) -> None:
        self._url = services.postgres_url
        self._held: list[asyncpg.Connection] = []
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        await insist(self._begin_to_seize)
        self._task = asyncio.create_task(self._keep_seizing())

    async def end(self) -> None:
        if self._task is not None:
            await cancel(self._task)
        for connection in self._held:
            connection.terminate()

    async def _begin_to_seize(self) -> None:
        try:
            await self._seize()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
            raise FaultError(f"postgres' connections can't be taken: {error}") from None

    async def _keep_seizing(self) -> None:
        while True:
            await asyncio.sleep(SEIZE_S)
            # A service that another fault stops or cuts off has no slots to take.
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                await self._seize()

    async def _seize(self) -> None:
        # A restart, by another fault, ends those that were taken.
        self._held = [connection for connection in self._held if not connection.is_closed()]
        await self._take_free()
        if not self._held:
            raise asyncpg.TooManyConnectionsError("others hold all of them")
        await self._held[0].execute(_END_SESSIONS, _HOLDER)
        await self._take_free()

    async def _take_free(self) -> None:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                self._held.append(
                    await asyncpg.connect(
                        self._url, timeout=TIMEOUT_S, server_settings={"application_name": _HOLDER}
                    )
                )
