"""When a connection to Redis is kept, and when it ends."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ConnectionError, RedisError

from engine.gate.client import connect_redis
from engine.gate.connection.wire import Wire
from engine.local.ports import free_port
from engine.tests.certificates import Authority
from engine.tests.services import skip_or_fail


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


@pytest.mark.parametrize("url", ["rediss://127.0.0.1:1/0", "rediss+cluster://127.0.0.1:1,127.0.0.1:2"])
def test_all_connections_by_tls_have_one_context(url: str) -> None:
    pool: Any = connect_redis(url).connection_pool
    one, other = pool.make_connection(), pool.make_connection()
    assert one.ssl_context is other.ssl_context
    others: Any = connect_redis(url).connection_pool
    assert others.make_connection().ssl_context is not one.ssl_context


async def refuse(client: Redis, refusal: str) -> None:
    await client.eval("return redis.error_reply(ARGV[1])", 0, refusal)


@pytest.mark.parametrize(
    ("refusal", "kept"),
    [("READONLY no", False), ("LOADING no", False), ("CLOSED now", True), ("OOM no", True)],
)
async def test_a_wire_is_left_after_a_refusal_that_another_server_might_not_give(
    redis_url: str, refusal: str, kept: bool
) -> None:
    wire = Wire(connect_redis(redis_url))
    await wire.connect()
    before, refused, after = await wire.ask(
        ("ECHO", "x"), ("EVAL", "return redis.error_reply(ARGV[1])", 0, refusal), ("ECHO", b"\xff")
    )
    assert (before, after) == (b"x", b"\xff"), "the answers around it are given"
    assert isinstance(refused, RedisError)
    assert wire.is_open is kept
    wire.close()


async def test_a_wire_that_stops_waiting_takes_no_later_answer_for_its_own(redis_url: str) -> None:
    wire = Wire(connect_redis(redis_url))
    await wire.connect()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await wire.ask(("BLPOP", "nothing", 0))
    assert not wire.is_open
    with pytest.raises(ConnectionError):
        await wire.ask(("ECHO", "x"))


async def test_a_server_that_hangs_up_ends_the_wait(redis: Redis, redis_url: str) -> None:
    wire = Wire(connect_redis(redis_url))
    await wire.connect()
    [number] = await wire.ask(("CLIENT", "ID"))
    waiting = asyncio.create_task(wire.ask(("BLPOP", "nothing", 0)))
    while not (await redis.info("clients"))["blocked_clients"]:
        pass
    await redis.client_kill_filter(_id=number)
    with pytest.raises(ConnectionError):
        await waiting
    assert not wire.is_open


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """URLs of a Redis that lets in who knows a password, in every way that a URL may name."""
    # The package's Redis knows no TLS.
    program = Path("/usr/bin/redis-server")
    if not program.exists():
        skip_or_fail("the distribution's redis-server is not installed")
    folder = tmp_path_factory.mktemp("guarded")
    certificate, socket = Authority(folder).issue("server", "IP:127.0.0.1"), folder / "socket"
    port, tls_port = free_port(), free_port()
    configuration = folder / "redis.conf"
    configuration.write_text(
        f"port {port}\ntls-port {tls_port}\n"
        f"tls-cert-file {certificate.file}\ntls-key-file {certificate.key}\n"
        f'tls-auth-clients no\nunixsocket {socket}\nrequirepass secret\nsave ""\n'
        "user seller on >word ~* +@all\n"
    )
    command = [str(program), str(configuration)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert any("Ready to accept" in line for line in process.stdout)
        yield {
            "password": f"redis://:secret@127.0.0.1:{port}/3",
            "user": f"redis://seller:word@127.0.0.1:{port}/3",
            "socket": f"unix://:secret@{socket}?db=3",
            "tls": f"rediss://:secret@127.0.0.1:{tls_port}/3?ssl_ca_certs={certificate.authority}",
        }
        process.terminate()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["password", "user", "socket", "tls"])
def test_a_wire_goes_every_way_that_a_url_may_name(guarded: dict[str, str], way: str) -> None:
    async def use() -> None:
        wire = Wire(connect_redis(guarded[way]))
        await wire.connect()
        long = "x" * 1_000_000
        text, info = await wire.ask(("ECHO", long), ("CLIENT", "INFO"))
        assert text == long.encode()
        assert b" db=3 " in info
        wire.close()

    uvloop.run(use())
