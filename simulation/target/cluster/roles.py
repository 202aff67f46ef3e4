"""Who is in charge: which node is the primary of each shard and of the ledger, and the leader of the queue.

A node that is cut off may still take itself for the one in charge. So most nodes that are asked must answer,
and the latest news count.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError

from engine.gate.client import connect_redis
from engine.urls import read_redis_url, split_hosts
from simulation.model.formats import PURCHASES, find_slot
from simulation.target.cluster.postgres import QUESTION, SILENT, View
from simulation.target.services import Services

ANSWER_S: Final = 0.3
"""Longest wait for the answer of a node."""
QUEUE: Final = "queue"
LEDGER: Final = "ledger"
_SILENT: Final = (*SILENT, RedisError)
"""Errors of a node that does not answer."""
_ELECTED: Final = re.compile(
    rf"^(\S+ \S+) .* queue '{re.escape(PURCHASES)}' in vhost '[^']*': \w+ -> leader ", re.MULTILINE
)

T = TypeVar("T")
InCharge = dict[str, str]
"""A node's place or name by what it is in charge of; none where there is nobody, or nobody could tell."""


class Reader(Protocol):
    """Knows who is in charge at one service."""

    async def read(self) -> InCharge:
        """Return who is in charge now."""

    async def close(self) -> None:
        """Disconnect; the next reading connects again."""


class Roles:
    """Reads who is in charge at all services that have several nodes."""

    def __init__(self, services: Services | None, shards: int) -> None:
        self._readers: list[Reader] = []
        self._names = services.nodes if services else {}
        if services and "redis" in services.clustered:
            self._readers.append(ShardRoles(services.redis_url, shards))
        if services and "postgres" in services.clustered:
            self._readers.append(LedgerRole(services.postgres_url))
        if services and services.queue_logs:
            self._readers.append(QueueRole(services.queue_logs))

    async def read(self) -> InCharge:
        """Return who is in charge now."""
        # A group has no reading left once it is cancelled.
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(reader.read()) for reader in self._readers]
        found = {role: place for task in tasks for role, place in task.result().items()}
        return {role: self._names.get(place, place) for role, place in found.items()}

    async def close(self) -> None:
        """Disconnect."""
        for reader in self._readers:
            await reader.close()


class ShardRoles:
    """The primary of each shard, as nodes of a Redis Cluster or Sentinels know it."""

    def __init__(self, url: str, shards: int) -> None:
        parts = read_redis_url(url)
        first = ":".join(map(str, parts.nodes[0]))
        self._nodes = [
            connect_redis(parts.plain.replace(first, f"{host}:{port}", 1), round(1_000 * ANSWER_S))
            for host, port in parts.nodes
        ]
        self._name = parts.name
        self._slots = {f"shard {shard}": find_slot(shard, shards) for shard in range(shards)}

    async def read(self) -> InCharge:
        """Return the primaries."""
        asked = await ask_most(self._nodes, self._ask)
        newest = {
            role: max((answer[role] for answer in asked if role in answer), default=(0, ""))
            for role in self._slots
        }
        return {role: place for role, (_, place) in newest.items() if place}

    async def close(self) -> None:
        """Disconnect."""
        for redis in self._nodes:
            await redis.aclose()

    async def _ask(self, redis: Redis) -> dict[str, tuple[int, str]]:
        """Return epoch and place of each primary, as one node knows them; no place of one that is down."""
        execute: Callable[..., Awaitable[Any]] = redis.execute_command
        if self._name:
            words = [word.decode() for word in await execute("SENTINEL", "MASTER", self._name)]
            row = dict(zip(words[::2], words[1::2], strict=True))
            return dict.fromkeys(self._slots, (int(row["config-epoch"]), f"{row['ip']}:{row['port']}"))
        owners: dict[str, tuple[int, str]] = {}
        for line in (await execute("CLUSTER", "NODES")).decode().splitlines():
            _, place, flags, _, _, _, epoch, _, *spans = line.split()
            known = "" if "fail" in flags.split(",") else place.partition("@")[0]
            for role, slot in self._slots.items():
                if any(_holds(span, slot) for span in spans):
                    owners[role] = int(epoch), known
        return owners


def _holds(span: str, slot: int) -> bool:
    """Return whether slots, written as 5 or 0-99, or in brackets while one moves, hold one."""
    first, _, last = span.partition("-")
    return first.isdigit() and int(first) <= slot <= int(last or first)


class LedgerRole:
    """The primary of PostgreSQL, as its hosts know it."""

    def __init__(self, url: str) -> None:
        self._hosts = split_hosts(url)
        self._connections: dict[str, asyncpg.Connection] = {}

    async def read(self) -> InCharge:
        """Return the primary on the highest timeline."""
        newest, place = max(await ask_most(self._hosts, self._ask), default=(View(0, False), ""))
        return {LEDGER: place} if newest.is_primary else {}

    async def close(self) -> None:
        """Disconnect."""
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            connection.terminate()

    async def _ask(self, host: str) -> tuple[View, str]:
        connection = self._connections.pop(host, None) or await asyncpg.connect(
            self._hosts[host], timeout=ANSWER_S, server_settings={"application_name": "flashsim roles"}
        )
        try:
            [(is_primary, timeline)] = await connection.fetch(QUESTION)
        except BaseException:
            connection.terminate()
            raise
        self._connections[host] = connection
        return View(timeline, is_primary), host


class QueueRole:
    """The leader of the engine's queue, as the logs of the nodes tell it: no protocol does."""

    def __init__(self, logs: Mapping[str, Path]) -> None:
        """`logs` are the nodes' logs, by the names of nodes."""
        self._logs = logs
        self._read = dict.fromkeys(logs, 0)
        self._elected: tuple[str, str] = ("", "")
        """When the newest leader was elected, and which node it is."""

    async def read(self) -> InCharge:
        """Return the node that was elected last."""
        for node, log in self._logs.items():
            with log.open("rb") as text:
                text.seek(self._read[node])
                lines, end, _ = text.read().rpartition(b"\n")
            self._read[node] += len(lines) + len(end)
            for at in _ELECTED.findall(lines.decode(errors="replace")):
                self._elected = max(self._elected, (at, node))
        return {QUEUE: self._elected[1]} if self._elected[1] else {}

    async def close(self) -> None:
        """Do nothing: nothing is open."""


async def ask_most(nodes: Collection[Any], ask: Callable[[Any], Awaitable[T]]) -> list[T]:
    """Return the answers of the nodes that answer in time; none if fewer than most of them do."""

    async def ask_one(node: Any) -> list[T]:
        try:
            async with asyncio.timeout(ANSWER_S):
                return [await ask(node)]
        except _SILENT:
            return []

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask_one(node)) for node in nodes]
    answers = [answer for task in tasks for answer in task.result()]
    return answers if 2 * len(answers) > len(nodes) else []
