"""Another service at a service's address is told by name, and TLS where it is missing or wanted."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from engine.errors import SettingsError
from engine.identity import check_identity
from engine.local.ports import free_port
from engine.local.stack import Stack
from engine.tests.certificates import Authority

SCHEMES = {"redis": "redis", "rabbitmq": "amqp", "postgres": "postgresql"}
NAMES = {"redis": "Redis", "rabbitmq": "RabbitMQ", "postgres": "PostgreSQL"}


@pytest.fixture
async def tls_port(tmp_path: Path) -> AsyncIterator[int]:
    """A port where a server speaks TLS and nothing else."""
    certificate = Authority(tmp_path).issue("server", "DNS:localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.file, certificate.key)
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("wanted", SCHEMES)
@pytest.mark.parametrize("answering", SCHEMES)
async def test_every_service_is_told_from_the_others(wanted: str, answering: str, stack: Stack) -> None:
    port = urlsplit(stack.urls[answering]).port
    url = f"{SCHEMES[wanted]}://name:secret@127.0.0.1:{port}/0"
    if wanted == answering:
        await check_identity(url)
        return
    with pytest.raises(SettingsError) as refused:
        await check_identity(url)
    assert str(refused.value) == (
        f"{NAMES[answering]} answers at 127.0.0.1:{port}, where {NAMES[wanted]} is looked for"
    )


# Python 3.13 warns of a stream whose TLS handshake failed, and which nobody can close.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <function StreamWriter.__del__")
@pytest.mark.parametrize(("scheme", "name"), [("redis", "redis"), ("amqp", "rabbitmq")])
async def test_tls_is_said_where_it_is_missing_or_wanted(
    scheme: str, name: str, stack: Stack, tls_port: int
) -> None:
    port = urlsplit(stack.urls[name]).port
    with pytest.raises(SettingsError, match=f":{port} speaks no TLS: write {scheme}:"):
        await check_identity(f"{scheme}s://127.0.0.1:{port}/0")
    with pytest.raises(SettingsError, match=f"127.0.0.1:{tls_port} wants TLS: write {scheme}s:"):
        await check_identity(f"{scheme}://127.0.0.1:{tls_port}/0")
    await check_identity(f"{scheme}s://127.0.0.1:{tls_port}/0")


async def test_tls_is_said_of_several_nodes_as_well(redis_url: str, tls_port: int) -> None:
    port = urlsplit(redis_url).port
    with pytest.raises(SettingsError, match=rf":{port} speaks no TLS: write redis\+cluster://"):
        await check_identity(f"rediss+cluster://127.0.0.1:{port},127.0.0.1:{free_port()}")
    with pytest.raises(SettingsError, match=rf":{tls_port} wants TLS: write rediss\+sentinel://"):
        await check_identity(f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{tls_port}/gate")


async def test_an_http_server_is_no_redis() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(SettingsError, match="an HTTP server answers at"):
            await check_identity(f"redis://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:{}/0", "unix:///nowhere", "postgresql:///flashgrid?host=/nowhere", "amqp://a,b/"],
)
async def test_nothing_is_said_of_what_does_not_answer(url: str) -> None:
    await check_identity(url.format(free_port()))
