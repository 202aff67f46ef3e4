"""Losses of the gate's memory: Redis comes back with nothing, or with an older state.

Its data are exchanged while it is down, and it serves on the same port. The engine sees the same address with
less in it: as after a restored disk, or after a lagging replica took over.
"""

import asyncio
import shutil
from typing import Final
from urllib.parse import urlsplit

from engine.local.ports import free_port
from engine.local.process import log_of, stop_process
from engine.local.redis import Redis
from engine.local.stack import Stack
from simulation.errors import FaultError
from simulation.faults.commands import command_redis, insist
from simulation.target.services import Services

STOP_S: Final = 30.0
"""Longest time in which the replica must have written all that it holds."""
LOOK_S: Final = 0.1


class MemoryLoss:
    """One loss of one of the kinds in fault.LOSSES. Every method raises FaultError or StackError."""

    def __init__(self, kind: str, services: Services, stack: Stack) -> None:
        self._kind = kind
        self._url = services.redis_url
        self._stack = stack
        self._data = stack.data_dir / "redis"
        self._copy = stack.data_dir / "redis-copy"

    async def prepare(self) -> None:
        """Copy what Redis holds now, if it is to come back with that."""
        try:
            if self._kind == "rollback":
                await asyncio.to_thread(shutil.copytree, self._data, self._copy)
            elif self._kind == "failover":
                await self._replicate()
        except (OSError, shutil.Error) as error:
            raise FaultError(f"redis' files can't be copied: {error}") from None

    async def drain(self) -> None:
        """Wait until the relay has emptied the outbox. The front door must be stopped."""
        await insist(self._expect_empty_outbox)
        # Commands that the front door sent before it was stopped are done by the second look.
        await asyncio.sleep(LOOK_S)
        await insist(self._expect_empty_outbox)

    async def strike(self) -> None:
        """Take Redis' memory away. Redis does not run afterwards, except after a flush."""
        if self._kind == "flush":
            await command_redis(self._url, "FLUSHALL")
            return
        await self._stack.kill("redis")
        shutil.rmtree(self._data)
        if self._kind != "wipe":
            self._copy.rename(self._data)

    def tidy(self) -> None:
        """Remove what is left of the copy."""
        shutil.rmtree(self._copy, ignore_errors=True)
        log_of(self._copy).unlink(missing_ok=True)

    async def _expect_empty_outbox(self) -> None:
        for outbox in await command_redis(self._url, "KEYS", "fg:{*}:outbox"):
            if await command_redis(self._url, "XLEN", outbox.decode()):
                raise FaultError("the relay does not empty the outbox")

    async def _replicate(self) -> None:
        """Fill the copy's folder by a replica, which is cut off once it holds what the primary does."""
        self._copy.mkdir()
        program, port, primary = Redis(), free_port(), urlsplit(self._url)
        url = program.url(port, self._copy)
        # By default a primary waits for more replicas before it sends its data; there is only this one.
        await command_redis(self._url, "CONFIG", "SET", "repl-diskless-sync-delay", "0")
        [replica] = await program.launch(self._copy, [port])
        try:
            await insist(lambda: command_redis(url, "REPLICAOF", primary.hostname or "", str(primary.port)))
            await insist(lambda: self._expect_sync(url))
            await command_redis(url, "REPLICAOF", "NO", "ONE")
        finally:
            # On an ordinary stop it writes what it holds into its append-only file.
            await stop_process(replica, program.stop_signal, STOP_S)

    async def _expect_sync(self, url: str) -> None:
        info = await command_redis(url, "INFO")
        # It begins a new append-only file with the data that it was sent.
        busy = ("master_sync_in_progress", "aof_rewrite_in_progress", "aof_rewrite_scheduled")
        if info["master_link_status"] != "up" or any(info[name] for name in busy):
            raise FaultError("a replica of redis is not up to date")
