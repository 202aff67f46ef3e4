"""What is checked of RabbitMQ before a stage starts: its nodes, and how many of them hold a purchase."""

import asyncio
import logging
import ssl
from contextlib import AsyncExitStack, suppress
from typing import Final
from urllib.parse import parse_qs, quote, unquote, urlsplit

import aiohttp
from aio_pika.abc import AbstractConnection

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.topology import PURCHASES, declare_topology
from engine.errors import BusUnavailable
from engine.urls import split_hosts

log = logging.getLogger(__name__)

_NODE_S: Final = 2.0
_MANAGEMENT: Final = {"amqp": ("http", 15672), "amqps": ("https", 15671)}


async def check_bus(url: str, ledger: str = "") -> None:
    """Declare exchanges and queues for this ledger. Of several nodes, warn of each that does not answer, and
    of a queue that only one of them holds.

    Raises BusUnavailable if none answers, or if the virtual host is another ledger's.
    """
    nodes = split_hosts(url)
    async with AsyncExitStack() as closing:

        async def connect(node: str) -> AbstractConnection:
            # One node has all the time that the caller has.
            async with asyncio.timeout(_NODE_S if len(nodes) > 1 else None):
                connection = await connect_bus(node, "check")
            closing.push_async_callback(close_connection, connection)
            return connection

        found = await asyncio.gather(*map(connect, nodes.values()), return_exceptions=True)
        named = dict(zip(nodes, found, strict=True))
        connections = {host: each for host, each in named.items() if not isinstance(each, BaseException)}
        failures = {host: each for host, each in named.items() if isinstance(each, BaseException)}
        if not connections:
            _refuse(failures)
        for host, error in failures.items():
            log.warning(
                "RabbitMQ at %s does not answer (%s): the engine goes on without it", host, _describe(error)
            )
        with translate_errors():
            await declare_topology(await next(iter(connections.values())).channel(), ledger)
    if len(nodes) > 1:
        await _check_members([nodes[host] for host in connections])


def _refuse(failures: dict[str, BaseException]) -> None:
    """Raise BusUnavailable that names every host and what is wrong with it."""
    error = next(iter(failures.values()))
    if len(failures) == 1:
        with translate_errors():
            raise error
    said = "; ".join(f"{host}: {_describe(each)}" for host, each in failures.items())
    raise BusUnavailable(said) from error


async def _check_members(urls: list[str]) -> None:
    """Warn of a queue that one node alone holds, as far as a node's management tells it."""
    members: list[str] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(_NODE_S):
            for url in urls:
                with suppress(aiohttp.ClientError, OSError, ValueError):
                    members = members or await _read_members(url)
    if not members:
        log.info("can't tell how many nodes hold the queues: RabbitMQ's management does not answer")
    elif len(members) == 1:
        log.warning(
            "only %s holds the queue %s, and what is in it is lost with that node: add members with"
            " rabbitmq-queues grow",
            members[0], PURCHASES,
        )  # fmt: skip


async def _read_members(url: str) -> list[str]:
    """Return the nodes that hold the purchases' queue."""
    parts = urlsplit(url)
    scheme, port = _MANAGEMENT[parts.scheme]
    cafile, capath = (parse_qs(parts.query).get(name, [None])[0] for name in ("cafile", "capath"))
    vhost = quote(unquote(parts.path[1:]) or "/", safe="")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    login = aiohttp.encode_basic_auth(unquote(parts.username or "guest"), unquote(parts.password or "guest"))
    async with aiohttp.ClientSession(headers={"Authorization": login}, raise_for_status=True) as session:
        address = f"{scheme}://{host}:{port}/api/queues/{vhost}/{PURCHASES}"
        tls = ssl.create_default_context(cafile=cafile, capath=capath) if scheme == "https" else True
        async with session.get(address, ssl=tls) as response:
            queue = await response.json()
    return [str(member) for member in queue["members"]] if "members" in queue else []


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
