"""Runs the three servers of a private PostgreSQL: promotes a standby when the primary is lost, and takes back
the lost one.

As simple as can be: it is one process on one machine. In service this is the work of Patroni or of a cloud.
SIGUSR1 asks it to exchange the primary in order, without a loss.
"""

import asyncio
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from engine.errors import StackError
from engine.local.cluster.postgres import LOST, Server, list_servers, promote, start_servers

_PAUSE_S: Final = 0.5
_PATIENCE_S: Final = 2.0
"""A primary that does not answer for so long is lost."""


async def run_servers(folder: Path) -> None:
    """Run the servers until SIGTERM."""
    stop, exchange = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, exchange.set)
    servers = list_servers(folder)
    keeping = asyncio.create_task(_keep(servers, exchange))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({keeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
    keeping.cancel()
    await asyncio.wait({keeping})
    # The primary first, while its standbys take what it has left.
    for server in sorted(servers, key=lambda server: not server.was_primary):
        await server.stop()
    if not keeping.cancelled():
        keeping.result()


async def _keep(servers: list[Server], exchange: asyncio.Event) -> None:
    await start_servers(servers)
    newest, seen_s = "", time.monotonic()
    while True:
        timelines = await asyncio.gather(*map(_ask, servers))
        answers = dict(zip(servers, timelines, strict=True))
        newest = max([newest, *(timeline for timeline in timelines if timeline)])
        primary = next((server for server, timeline in answers.items() if timeline == newest), None)
        # A standby that does not answer now may have received more: with two of them, wait for both.
        standbys = [server for server, timeline in answers.items() if timeline == ""]
        may_promote = len(standbys) == len(servers) - 1
        with suppress(*LOST, StackError):
            # A primary that no standby follows confirms nothing: it may be cut off from them.
            if primary is not None and (not may_promote or await primary.count_followers()):
                seen_s = time.monotonic()
                if may_promote and exchange.is_set():
                    exchange.clear()
                    await primary.stop()
                    await promote(standbys)
                    continue
                for server, timeline in answers.items():
                    if server is not primary:
                        await _take_back(server, timeline, primary)
            elif time.monotonic() - seen_s > _PATIENCE_S:
                if may_promote:
                    await promote(standbys)
                else:
                    await _revive(servers)
        await asyncio.sleep(_PAUSE_S)


async def _ask(server: Server) -> str | None:
    """Return the timeline of a primary; "" of a standby, None of a server that does not answer."""
    with suppress(*LOST):
        async with asyncio.timeout(1):
            return await server.find_timeline() or ""
    return None


async def _take_back(server: Server, timeline: str | None, primary: Server) -> None:
    """Let a server follow the primary again if it is down, was the primary, or follows another one."""
    if server.is_held or not await server.can_reach(primary):
        return
    if timeline or (not server.runs and server.was_primary):
        await server.rewind(primary)
    if not server.runs:
        await server.start()
    if timeline is not None and not await server.follows(primary):
        await server.follow(primary)


async def _revive(servers: list[Server]) -> None:
    """Start those that are down, as they were: too few are left to choose a primary among them."""
    for server in servers:
        if not server.runs and not server.is_held:
            await server.start()


if __name__ == "__main__":
    asyncio.run(run_servers(Path(sys.argv[1])))
