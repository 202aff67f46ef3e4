"""Pytest plugin: real Redis, PostgreSQL and RabbitMQ, private to the session and clean for each test."""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import aio_pika
import asyncpg
import hypothesis
import msgspec
import pytest
from redis.asyncio import Redis

from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys
from engine.local.stack import Stack, start_stack
from engine.settings import Settings

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("flashgrid", deadline=None)
hypothesis.settings.register_profile("quick", deadline=None, max_examples=10)
hypothesis.settings.load_profile("flashgrid")

_MOST_SHARDS = 4
"""As many as any test uses."""
_BUS_NAMES = ("flashgrid.purchases", "flashgrid.dead", "flashgrid.ledger")
_IS_PLAIN = """
SELECT datconnlimit = -1 AND datacl IS NULL AND datdba = current_user::regrole
    AND NOT EXISTS (SELECT FROM pg_db_role_setting WHERE setdatabase = database.oid)
    AND NOT EXISTS (SELECT FROM pg_default_acl)
    AND NOT EXISTS (
        SELECT FROM pg_namespace WHERE nspname <> ALL ('{public,information_schema}') AND nspname !~ '^pg_'
    )
    AND NOT EXISTS (
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
    )
FROM pg_database AS database WHERE datname = current_database()
"""
_EMPTY = """
DROP SCHEMA public CASCADE;
CREATE SCHEMA public AUTHORIZATION pg_database_owner;
GRANT USAGE ON SCHEMA public TO PUBLIC;
SELECT pg_stat_reset()
"""


def skip_or_fail(reason: str) -> None:
    """Skips the test; where CI runs it, what is missing must not go unseen."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that need services or processes of their own, so that the pure ones can be run alone.

    Several processes begin with the files that have few such tests, which are long ones, and end with the
    pure ones: so none of them works for minutes after the others.
    """
    for item in items:
        if {"stack_dir", "stack"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    if hasattr(config, "workerinput"):
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: slow[item.path] or math.inf)


@pytest.fixture(scope="session")
def stack_dir() -> Iterator[Path]:
    """A temporary folder that the unprivileged user PostgreSQL may run as can reach, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="flashgrid-"))
    # The stack opens it only if it finds nothing in it, and a test may have put something there before.
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
async def stack(stack_dir: Path) -> AsyncIterator[Stack]:
    """The session's services."""
    stack = await start_stack(stack_dir)
    yield stack
    await stack.stop()


@pytest.fixture(scope="session")
def redis_url(stack: Stack) -> str:
    return stack.urls["redis"]


@pytest.fixture(scope="session")
def postgres_url(stack: Stack) -> str:
    return stack.urls["postgres"]


@pytest.fixture(scope="session")
def amqp_url(stack: Stack) -> str:
    if "rabbitmq" not in stack.urls:
        skip_or_fail(stack.notes[0])
    return stack.urls["rabbitmq"]


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client of a Redis that holds an open gate and nothing else; its answers are bytes."""
    async with connect_redis(redis_url, timeout_ms=10_000) as client:
        await client.flushall()
        await client.script_flush()
        for count in range(1, _MOST_SHARDS + 1):
            for shard in range(count):
                await client.hset(ShardKeys(shard, count).fence, "open", 1)
        yield client


@pytest.fixture(scope="session")
def used_databases() -> dict[str, list[str]]:
    """URLs of databases that earlier tests have used, by their server's: to empty one is quicker."""
    return {}


@pytest.fixture
async def postgres_db(postgres_url: str, used_databases: dict[str, list[str]]) -> AsyncIterator[str]:
    """URL of an empty database, as a fresh one is."""
    used = used_databases.setdefault(postgres_url, [])
    url = used.pop() if used else None
    if url is None or not await _empty(url):
        if url:
            await execute(postgres_url, f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
        name = f"test_{uuid4().hex}"
        await execute(postgres_url, f"CREATE DATABASE {name}")
        url = postgres_url.rpartition("/")[0] + f"/{name}"
    yield url
    used.append(url)


async def _empty(url: str) -> bool:
    """Empty a database, unless somebody is connected to it or it has more than a schema of its own."""
    connection = await asyncpg.connect(url)
    try:
        if is_plain := bool(await connection.fetchval(_IS_PLAIN)):
            await connection.execute(_EMPTY)
        return is_plain
    finally:
        await connection.close()


async def execute(postgres_url: str, statement: str) -> None:
    """One statement on a connection of its own, since a test may restart PostgreSQL."""
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@pytest.fixture
async def bus_url(amqp_url: str) -> str:
    """URL of a RabbitMQ without Flashgrid's queues and exchanges."""
    async with await aio_pika.connect(amqp_url) as connection, connection.channel() as channel:
        for name in _BUS_NAMES:
            await channel.queue_delete(name)
            await channel.exchange_delete(name)
    return amqp_url


@pytest.fixture
def settings_without_bus(redis: Redis, redis_url: str, postgres_db: str, tmp_path: Path) -> Settings:
    """An engine on this test's services whose fulfilment reads the outbox itself.

    Its gate is asked each time, so that a test need not wait to see a unit that came back.
    """
    return Settings(
        redis_url=redis_url, postgres_url=postgres_db, data_dir=str(tmp_path), port=0, sold_out_ms=0, dev=True
    )


@pytest.fixture
def settings(settings_without_bus: Settings, bus_url: str) -> Settings:
    """An engine on this test's services, RabbitMQ among them."""
    return msgspec.structs.replace(settings_without_bus, amqp_url=bus_url)
