"""Refusals: services that live and answer, and refuse to do their work until the fault ends.

The services are private and their settings are known: at the end every setting is as it was.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import asyncpg

from engine.local.stack import Stack
from engine.tasks import cancel
from simulation.errors import FaultError
from simulation.faults.commands import (
    TIMEOUT_S,
    alter_postgres,
    command_redis,
    end_sessions,
    insist,
    postgres_faults,
)
from simulation.target.cluster.postgres import connect_postgres
from simulation.target.services import Services

SEIZE_S: Final = 0.05
"""Time between two looks for free connection slots."""
_HOLDER: Final = "flashsim no_connections"
"""The application name of the connections that take all slots."""

_SETTINGS: Final[dict[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    ("redis", "out_of_memory"): (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
    # Nobody listens on port 1. A replica that has never seen its primary keeps its data and refuses writes.
    ("redis", "read_only"): (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    # RabbitMQ's alarms end with its default settings.
    ("rabbitmq", "out_of_memory"): (
        ("set_vm_memory_high_watermark", "0"),
        ("set_vm_memory_high_watermark", "0.4"),
    ),
    ("rabbitmq", "disk_full"): (("set_disk_free_limit", "999999GB"), ("set_disk_free_limit", "50MB")),
    ("postgres", "read_only"): (
        ("SET default_transaction_read_only = on",),
        ("RESET default_transaction_read_only",),
    ),
}
"""The commands that begin and end a refusal."""


class Setting:
    """A refusal that one command begins and another one ends."""

    def __init__(self, kind: str, on: str, services: Services, stack: Stack) -> None:
        send: dict[str, Callable[..., Awaitable[object]]] = {
            "redis": partial(command_redis, services.redis_url),
            "rabbitmq": stack.control_rabbitmq,
            "postgres": partial(alter_postgres, services.postgres_url),
        }
        self._send = send[on]
        self._begin, self._end = _SETTINGS[on, kind]

    async def begin(self) -> None:
        """Make the service refuse. Raises FaultError."""
        await insist(lambda: self._send(*self._begin))

    async def end(self) -> None:
        """Make it work as before, also if `begin` was interrupted. Raises FaultError."""
        await insist(lambda: self._send(*self._end))


class FullDisk:
    """A snapshot that can't be written, because a folder has its name: Redis then refuses every write.

    Redis does so only if it takes snapshots at all (stop-writes-on-bgsave-error, save). A write that fails
    on the append-only file itself ends Redis under `appendfsync always`: that is a kill.
    """

    def __init__(self, services: Services, stack: Stack) -> None:
        self._send = partial(command_redis, services.redis_url)
        self._obstacle = stack.data_dir / "redis" / "dump.rdb"

    async def begin(self) -> None:
        """Make Redis refuse writes. Raises FaultError."""
        if self._obstacle.is_file():
            # A replica got this snapshot from its primary; Redis itself starts from its append-only file.
            self._obstacle.unlink()
        self._obstacle.mkdir(exist_ok=True)
        await insist(self._fail_to_save)

    async def end(self) -> None:
        """Make Redis work as before, also if `begin` was interrupted. Raises FaultError."""
        await insist(lambda: self._send("CONFIG", "SET", "save", ""))
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._obstacle.rmdir()

    async def _fail_to_save(self) -> None:
        await self._send("CONFIG", "SET", "stop-writes-on-bgsave-error", "yes")
        await self._send("CONFIG", "SET", "save", "86400 1")
        await self._send("BGSAVE", "SCHEDULE")
        if (await self._send("INFO", "persistence"))["rdb_last_bgsave_status"] == "ok":
            raise FaultError("redis does not try to write a snapshot")


class NoConnections:
    """Takes every free connection slot of PostgreSQL, ends the engine's sessions, and takes theirs."""

    def __init__(self, services: Services) -> None:
        self._url = services.postgres_url
        self._held: list[asyncpg.Connection] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def begin(self) -> None:
        """Take all slots, and go on taking them. Raises FaultError."""
        await insist(self._seize)
        self._tasks.append(asyncio.create_task(self._keep_seizing()))

    async def end(self) -> None:
        """Give the slots back."""
        await cancel(*self._tasks)
        for connection in self._held:
            connection.terminate()

    async def _keep_seizing(self) -> None:
        while True:
            await asyncio.sleep(SEIZE_S)
            # A service that another fault stops or cuts off has no slots to take.
            with contextlib.suppress(FaultError):
                await self._seize()

    async def _seize(self) -> None:
        with postgres_faults("end its sessions"):
            # Another fault may have restarted the service, and so closed them.
            self._held = [connection for connection in self._held if not connection.is_closed()]
            await self._take_free()
            if not self._held:
                raise FaultError("postgres has no connection to take: others hold all of them")
            await end_sessions(self._held[0], _HOLDER)
            await self._take_free()

    async def _take_free(self) -> None:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                self._held.append(await connect_postgres(self._url, TIMEOUT_S, application_name=_HOLDER))


def make_refusal(kind: str, on: str, services: Services, stack: Stack) -> Setting | FullDisk | NoConnections:
    """Return the refusal of this kind by this service of the stack; one of fault.REFUSALS."""
    if (on, kind) == ("redis", "disk_full"):
        return FullDisk(services, stack)
    return NoConnections(services) if kind == "no_connections" else Setting(kind, on, services, stack)
