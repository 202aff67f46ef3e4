"""When a connection to Redis is kept, and when it ends."""

import asyncio
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, RedisError

from engine.gate.client import connect_redis


@pytest.mark.parametrize(
    "refusal", ["READONLY no", "MASTERDOWN no", "NOREPLICAS no", "CLUSTERDOWN no", "MISCONF no", "ERR no"]
)
async def test_a_refusal_ends_every_connection_of_the_client(redis_url: str, refusal: str) -> None:
    async with connect_redis(redis_url) as client:
        before = await asyncio.gather(client.client_id(), client.client_id())
        with pytest.raises(RedisError):
            await refuse(client, refusal)
        after = await asyncio.gather(client.client_id(), client.client_id())
        assert len({*before, *after}) == 4


@pytest.mark.parametrize("refusal", ["CLOSED the gate", "NOGROUP no group", "BUSYGROUP exists", "OOM memory"])
async def test_a_refusal_that_says_nothing_of_the_server_ends_no_connection(
    redis_url: str, refusal: str
) -> None:
    async with connect_redis(redis_url) as client:
        before = await client.client_id()
        with pytest.raises(RedisError):
            await refuse(client, refusal)
        assert await client.client_id() == before


@pytest.mark.parametrize("end", ["abort", "close"])
def test_a_connection_that_is_closed_already_is_an_error_of_the_connection(redis_url: str, end: str) -> None:
    """The event loop of the stages has an error of its own for that."""

    async def use_closed() -> None:
        async with connect_redis(redis_url) as client:
            await client.ping()
            connection: Any = client.connection_pool._available_connections[0]
            getattr(connection._writer.transport, end)()
            with pytest.raises(ConnectionError):
                await connection.send_command("PING")
            assert await client.ping()

    uvloop.run(use_closed())


async def refuse(client: Redis, refusal: str) -> None:
    await client.eval("return redis.error_reply(ARGV[1])", 0, refusal)
