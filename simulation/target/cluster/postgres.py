"""PostgreSQL where a URL names several hosts: the one in charge is the primary on the highest timeline."""

import asyncio
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg

from engine.tasks import cancel
from engine.urls import split_hosts

ASK_S: Final = 1.0
"""Longest wait for the answer of one of several hosts."""
SILENT: Final = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""Errors of a host that does not answer; the last one, of a connection whose question was given up."""
QUESTION: Final = Path(__file__).with_name("server.sql").read_text()


class View(NamedTuple):
    """What a server says of itself; the greatest view is that of the newest primary."""

    timeline: int
    is_primary: bool


async def connect_postgres(url: str, timeout_s: float, **settings: str) -> asyncpg.Connection:
    """Connect to PostgreSQL, with these settings of the session.

    All of several hosts are asked at once. A primary that was frozen or cut off, and replaced, still takes
    itself for the primary: the host in charge is known once most have answered. Raises ConnectionError if
    none is, and what the client library raises of a single host.
    """
    hosts = split_hosts(url)
    if len(hosts) == 1:
        return await asyncpg.connect(url, timeout=timeout_s, server_settings=settings)
    connections: dict[str, asyncpg.Connection] = {}
    views: dict[str, View] = {}
    errors: list[str] = []

    async def ask(host: str) -> None:
        try:
            connection = await asyncpg.connect(hosts[host], timeout=ASK_S, server_settings=settings)
            connections[host] = connection
            async with asyncio.timeout(ASK_S):
                [(is_primary, timeline)] = await connection.fetch(QUESTION)
            views[host] = View(timeline, is_primary)
        except SILENT as error:
            errors.append(f"{host}: {error or 'no answer in time'}")

    asking = [asyncio.create_task(ask(host)) for host in hosts]
    try:
        for answered in asyncio.as_completed(asking):
            await answered
            newest = max(views, key=views.__getitem__, default="")
            if 2 * len(views) > len(hosts) and views[newest].is_primary:
                return connections.pop(newest)
        raise ConnectionError("; ".join(["no host of PostgreSQL is the primary", *errors]))
    finally:
        await cancel(*asking)
        for connection in connections.values():
            connection.terminate()
