"""What is checked of RabbitMQ before a stage starts: its nodes, and how many of them hold a purchase."""

import asyncio
import logging
import ssl
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from functools import lru_cache
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import aiohttp
from aio_pika.abc import AbstractConnection

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.topology import DEAD, DELIVERY_LIMIT, LEDGER, PURCHASES, declare_topology, name_ledger
from engine.errors import BusUnavailable, SettingsError
from engine.urls import split_hosts

log = logging.getLogger(__name__)

_NODE_S: Final = 2.0
_TLS_OPTIONS: Final = ("cafile", "capath", "certfile", "keyfile", "no_verify_ssl")
_MANAGEMENT: Final = {"amqp": ("http", 15672), "amqps": ("https", 15671)}


async def check_bus(url: str, ledger: str = "", is_private: bool = False) -> None:
    """Declare exchanges and queues for this ledger. Of several nodes, warn of each that does not answer, and
    of a queue that only one of them holds. A private broker has no policies.

    Raises BusUnavailable if none answers, or if the virtual host is another ledger's; SettingsError for a
    policy that loses purchases.
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
    await _check_queues([nodes[host] for host in connections], ledger, len(nodes) > 1, is_private)


def _refuse(failures: dict[str, BaseException]) -> None:
    """Raise BusUnavailable that names every host and what is wrong with it."""
    error = next(iter(failures.values()))
    if len(failures) == 1:
        with translate_errors():
            raise error
    said = "; ".join(f"{host}: {_describe(each)}" for host, each in failures.items())
    raise BusUnavailable(said) from error


async def _check_queues(urls: list[str], ledger: str, several: bool, is_private: bool) -> None:
    """Check each queue's policy and, of several nodes, how many hold it, as far as management tells it.

    Raises SettingsError for a policy that loses purchases.
    """
    try:
        queues = await _read_queues(urls, ledger)
    except BusUnavailable as error:
        if not is_private:
            log.warning(
                "can't read the policies of RabbitMQ (%s): none may set expires, message-ttl, max-length or"
                " delivery-limit for %s and %s; the option management_port of its URL names another port",
                error, PURCHASES, DEAD,
            )  # fmt: skip
        return
    if risk := _find_risk(queues):
        raise SettingsError(risk)
    for name, queue in queues.items():
        if several and len(queue.get("members", ())) == 1:
            log.warning(
                "only %s holds the queue %s, and what is in it is lost with that node: add members with"
                " rabbitmq-queues grow",
                queue["members"][0], name,
            )  # fmt: skip


async def find_risk(url: str, ledger: str) -> str:
    """Return what a policy does that loses purchases of this ledger; nothing if none does.

    Raises BusUnavailable if the management of no node tells it.
    """
    return _find_risk(await _read_queues(split_hosts(url).values(), ledger))


def _find_risk(queues: Mapping[str, Mapping[str, Any]]) -> str:
    for name, queue in queues.items():
        if harm := _find_harm(queue.get("effective_policy_definition") or {}):
            return f"a policy of RabbitMQ loses purchases: it sets {harm} for the queue {name}"
    return ""


def _find_harm(policy: Mapping[str, Any]) -> str:
    """Return what a policy sets that loses messages, or the queue; nothing if it does no harm.

    The lower one of a policy's number and that of the queue's arguments holds.
    """
    # Where it is full, the relay waits. A quorum queue takes reject-publish-dlx for drop-head.
    refuses = policy.get("overflow") == "reject-publish"
    harmful = ["expires", "message-ttl", *([] if refuses else ["max-length", "max-length-bytes"])]
    # Each outage delivers what was under way again; -1 is no limit.
    if 0 <= policy.get("delivery-limit", -1) < DELIVERY_LIMIT:
        harmful.append("delivery-limit")
    return " and ".join(name for name in harmful if name in policy)


async def _read_queues(urls: Collection[str], ledger: str) -> dict[str, dict[str, Any]]:
    """Return what the management of the first node that answers says of each queue. Raises BusUnavailable."""
    said = ""
    for url in urls:
        try:
            async with asyncio.timeout(_NODE_S):
                await _check_broker(url, ledger)
                return {name: await read_queue(url, name) for name in (PURCHASES, DEAD)}
        except TimeoutError:
            said = f"it says nothing for {_NODE_S:g} s"
        except (aiohttp.ClientError, OSError, ValueError) as error:
            said = _describe(error)
    raise BusUnavailable(f"RabbitMQ's management: {said}")


async def _check_broker(url: str, ledger: str) -> None:
    """Raise ValueError if the management is that of another broker, since several may be on one machine: its
    virtual host is not the one that this ledger has claimed.
    """
    if ledger:
        claim = await _ask_management(url, "exchanges", LEDGER)
        if claim.get("arguments") != name_ledger(ledger):
            raise ValueError("it is that of another broker, which serves another ledger")


async def read_queue(url: str, name: str) -> dict[str, Any]:
    """Return what the management of a node says of a queue. Raises ClientError, OSError or ValueError."""
    return await _ask_management(url, "queues", name)


async def _ask_management(url: str, kind: str, name: str) -> dict[str, Any]:
    parts, options = urlsplit(url), dict(parse_qsl(urlsplit(url).query))
    scheme, usual = _MANAGEMENT[parts.scheme]
    port = options.get("management_port", usual)
    trust = True if scheme == "http" else _trust(*(options.get(name, "") for name in _TLS_OPTIONS))
    vhost = quote(unquote(parts.path[1:]) or "/", safe="")
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    login = aiohttp.encode_basic_auth(unquote(parts.username or "guest"), unquote(parts.password or "guest"))
    async with aiohttp.ClientSession(headers={"Authorization": login}, raise_for_status=True) as session:
        address = f"{scheme}://{host}:{port}/api/{kind}/{vhost}/{name}"
        async with session.get(address, ssl=trust) as response:
            found = await response.json()
    if not isinstance(found, dict):
        raise ValueError(f"{address} tells nothing of {name}")  # noqa: TRY004
    return found


@lru_cache(maxsize=1)
def _trust(cafile: str, capath: str, certfile: str, keyfile: str, no_verify_ssl: str) -> ssl.SSLContext:
    """Return whom to trust, and who the client is, as the broker's connections have it."""
    # Reading all certificates holds up whatever else the process does.
    context = ssl.create_default_context(cafile=cafile or None, capath=capath or None)
    if certfile:
        context.load_cert_chain(certfile, keyfile or None)
    if no_verify_ssl == "1":
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def _describe(error: BaseException) -> str:
    return str(error) or type(error).__name__
