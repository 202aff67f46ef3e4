"""Runs the three servers of a private PostgreSQL: promotes a standby when the primary is lost, and takes back
the lost one.

As simple as can be: it is one process on one machine. In service this is the work of Patroni or of a cloud.
SIGUSR1 asks it to exchange the primary in order, without a loss. It forgets that if it can't do it soon.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from engine.errors import StackError
from engine.local.cluster.postgres import LOST, Server, list_servers

_PAUSE_S: Final = 0.5
_PATIENCE_S: Final = 2.0
"""A primary that does not answer for so long is lost."""
_START_S: Final = 5.0
"""By how much longer one may take that starts."""
_ASKED_S: Final = 15.0
"""How long an exchange may wait until both standbys follow: afterwards nobody expects it any more."""
_PROMOTION_S: Final = 60.0
"""Longest time for a promotion; one that stands still is begun anew."""


async def run_servers(folder: Path) -> None:
    """Run the servers until SIGTERM."""
    stop, exchange = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGUSR1, _ask_for, exchange)
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


def _ask_for(exchange: asyncio.Event) -> None:
    exchange.set()
    asyncio.get_running_loop().call_later(_ASKED_S, exchange.clear)


async def _keep(servers: list[Server], exchange: asyncio.Event) -> None:
    await start_servers(servers)
    newest, seen_s = "", time.monotonic() + _START_S
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
                elif await _revive(servers):
                    # The primary may be among them.
                    seen_s = time.monotonic() + _START_S
        await asyncio.sleep(_PAUSE_S)


async def _ask(server: Server) -> str | None:
    """Return the timeline of a primary; "" of a standby, None of a server that does not answer."""
    with suppress(*LOST):
        async with asyncio.timeout(1):
            return await server.find_timeline() or ""
    return None


async def _take_back(server: Server, timeline: str | None, primary: Server) -> None:
    """Let a server follow the primary again if it is down, was the primary, or follows another one."""
    # It may be held meanwhile: ask for that last.
    if not await server.can_reach(primary) or server.is_held:
        return
    if timeline or (not server.runs and server.was_primary):
        try:
            await server.rewind(primary)
        except StackError:
            # An earlier one may have ended in its midst.
            await server.copy(primary)
    if not server.runs:
        if not server.is_held:
            await server.start()
    elif timeline is not None and not await server.follows(primary):
        await server.follow(primary)


async def _revive(servers: list[Server]) -> bool:
    """Start those that are down, as they were, and return whether there were any: too few are left to choose
    a primary among them.
    """
    down = [server for server in servers if not server.runs and not server.is_held]
    for server in down:
        await server.start()
    return bool(down)


async def start_servers(servers: Sequence[Server]) -> None:
    """Start all servers as they were; a new one is made a copy of the first."""
    first = servers[0]
    if not first.exists:
        await first.create()
    new = [server for server in servers if not server.exists]
    # One that was rewound may need another one before it answers.
    for server in servers:
        if server not in new:
            await server.start()
    for server in new:
        await first.wait()
        await server.copy(first)
        await server.start()


async def promote(standbys: Sequence[Server]) -> Server:
    """Promote the standby that has received most, and let the others follow it; return it.

    At first none of them follows the old primary any longer: whatever becomes of it, it confirms nothing.
    Raises LOST, StackError.
    """
    async with asyncio.timeout(_PROMOTION_S):
        for standby in standbys:
            await standby.follow(None)
        received = {standby: await standby.count_received() for standby in standbys}
        primary = max(standbys, key=received.__getitem__)
        if not await primary.fetch("SELECT pg_promote()"):
            raise StackError(f"PostgreSQL {primary.name} can't be promoted")
        for standby in standbys:
            if standby is not primary:
                await standby.follow(primary)
    return primary


if __name__ == "__main__":
    asyncio.run(run_servers(Path(sys.argv[1])))
