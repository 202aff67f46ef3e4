"""Losses of the gate's memory: Redis comes back with nothing, or with what it held some time ago.

Its data are exchanged while it is down and it serves on the same port, so that to the engine it is the same
address that knows less: as after a disk that was restored, or a replica that lagged when it took over.
"""

import asyncio
import shutil
import time
from typing import Any, Final
from urllib.parse import urlsplit

from engine.local.process import ProcessId, free_port, stop_process
from engine.local.redis import Redis
from engine.local.stack import Stack
from simulation.errors import FaultError
from simulation.faults.refusals import command_redis
from simulation.target.services import Services

DRAIN_S: Final = 15.0
"""Longest wait for the relay to empty the outbox."""
SYNC_S: Final = 30.0
"""Longest wait for a replica to hold what the primary does."""
POLL_S: Final = 0.02


class MemoryLoss:
    """One loss of one of the kinds in faults.LOSSES. Every method raises FaultError or StackError."""

    def __init__(self, kind: str, services: Services, stack: Stack) -> None:
        self._kind = kind
        self._url = services.redis_url
        self._stack = stack
        self._data = stack.data_dir / "redis"
        self._copy = stack.data_dir / "redis-copy"

    async def prepare(self) -> None:
        """Takes a copy of what Redis holds now, where it is to come back with it."""
        try:
            if self._kind == "rollback":
                await asyncio.to_thread(shutil.copytree, self._data, self._copy)
            elif self._kind == "failover":
                await self._replicate()
        except (OSError, shutil.Error) as error:
            raise FaultError(f"redis' files can't be copied: {error}") from None

    async def drain(self) -> None:
        """Waits, while nobody buys, until the relay has handed over all that the outbox holds."""
        deadline = time.monotonic() + DRAIN_S
        empty = 0
        # What the front door sent before it was stopped is done by the second look.
        while empty < 2:
            outboxes = await command_redis(self._url, ("KEYS", "fg:{*}:outbox"))
            lengths = [await command_redis(self._url, ("XLEN", outbox)) for outbox in outboxes]
            empty = 0 if any(lengths) else empty + 1
            if time.monotonic() > deadline:
                raise FaultError(f"the relay does not empty the outbox within {DRAIN_S:.0f} s")
            await asyncio.sleep(POLL_S)

    async def strike(self) -> None:
        """Takes Redis' memory away; but for a flush it does not run afterwards."""
        if self._kind == "flush":
            await command_redis(self._url, ("FLUSHALL",))
            return
        await self._stack.kill("redis")
        try:
            shutil.rmtree(self._data)
            if self._kind != "wipe":
                self._copy.rename(self._data)
        except OSError as error:
            raise FaultError(f"redis' files can't be exchanged: {error}") from None

    def tidy(self) -> None:
        """Removes what is left of the copy."""
        shutil.rmtree(self._copy, ignore_errors=True)
        self._copy.with_name(self._copy.name + ".log").unlink(missing_ok=True)

    async def _replicate(self) -> None:
        """Fills the copy's folder by a replica, which is cut off once it holds what the primary does."""
        self._copy.mkdir()
        program, port = Redis(), free_port()
        # A primary would wait for more replicas before it sends its data; there is only this one.
        await command_redis(self._url, ("CONFIG", "SET", "repl-diskless-sync-delay", "0"))
        replica = await program.launch(self._copy, [port])
        try:
            await self._await_sync(program.url(port), replica[0])
        finally:
            # Its goodbye writes what it holds into its append-only file.
            await stop_process(replica[0], program.stop_signal, SYNC_S)

    async def _await_sync(self, url: str, replica: ProcessId) -> None:
        primary = urlsplit(self._url)
        deadline = time.monotonic() + SYNC_S
        following = False
        while True:
            try:
                if not following:
                    await command_redis(
                        url, ("REPLICAOF", primary.hostname or "", str(primary.port)), ("PING",)
                    )
                    following = True
                info: dict[str, Any] = await command_redis(url, ("INFO",))
                synced = info["master_link_status"] == "up" and not info["master_sync_in_progress"]
                # It begins a new append-only file with what it was sent.
                if synced and not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]:
                    await command_redis(url, ("REPLICAOF", "NO", "ONE"))
                    return
            except FaultError:
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise FaultError(f"a replica of redis is not up to date after {SYNC_S:.0f} s")
            await asyncio.sleep(POLL_S)
