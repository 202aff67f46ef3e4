"""A client that does not finish what it began to ask holds its connection for a bounded time only."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator

import msgspec
import psutil
import pytest

from engine.gate.gate import Gate
from engine.model.sale import Sale, SaleTerms
from engine.settings import Settings
from engine.stages.front_door import run_front_door

LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BODY = b'{"userId":101,"productId":1}'
HEAD = (
    b"POST /purchase/buy HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n" % len(BODY)
)


@contextlib.asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[int]:
    """The port of a front door with a sale of product 1."""
    gate = Gate(settings)
    await gate.open_sale(Sale(sale_id=1, terms=SaleTerms(product_id=1, stock=10)))
    await gate.close()
    stop, ready = asyncio.Event(), asyncio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        async with asyncio.TaskGroup() as group:
            group.create_task(run_front_door(settings, [listener], asyncio.Event(), stop, ready.set))
            await ready.wait()
            yield listener.getsockname()[1]
            stop.set()


async def talk(port: int, *pieces: bytes) -> bytes:
    """All that the server says to these bytes until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        # A piece of its own, and not a part of the next one.
        await asyncio.sleep(0.05)
    said = await reader.read(-1)
    writer.close()
    return said


@pytest.mark.parametrize(
    "pieces",
    [(), (HEAD[:40],), (HEAD,), (HEAD[:40], HEAD[40:80])],
    ids=["nothing", "half a head", "a head without its body", "a head in pieces"],
)
async def test_a_connection_without_a_whole_request_is_closed(
    settings_without_bus: Settings, pieces: tuple[bytes, ...]
) -> None:
    async with serving(msgspec.structs.replace(settings_without_bus, keepalive_s=0.5)) as port:
        assert await talk(port, *pieces) == b""


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
ODD = HEAD.replace(b"Host", b"Accept-Encoding: x, y\r\nETag: x\r\nHost")
"""A head that aiohttp reads, not the fast path."""
CHUNKED, ODD_CHUNKED = (
    head.replace(b"Content-Length: 28", b"Transfer-Encoding: chunked") for head in (HEAD, ODD)
)
CHUNK, END = b"1c\r\n" + BODY + b"\r\n", b"0\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (HEAD[:40],), (HEAD,), (HEAD[:40], HEAD[40:80]), (GET[:10],), (GET, GET[:10]), (GET + GET[:10],),
        (HEAD + BODY, HEAD[:9]), (HEAD + BODY, HEAD), (ODD + BODY, GET[:9]), (ODD + BODY + GET[:9],),
        (ODD, BODY, GET[:9]), (ODD, BODY + GET[:9]), (b"\r\n",), (CHUNKED,), (CHUNKED, CHUNK),
        (ODD_CHUNKED, CHUNK + END + GET[:9]),
    ],
)  # fmt: skip
async def test_a_head_that_has_begun_and_stays_away_is_dropped_long_before_an_idle_connection(
    settings_without_bus: Settings, pieces: tuple[bytes, ...]
) -> None:
    async with serving(msgspec.structs.replace(settings_without_bus, client_timeout_ms=300)) as port:
        async with asyncio.timeout(30):
            said = await talk(port, *pieces)
        assert said.count(b"HTTP/1.1 200") == sum(
            piece.startswith((GET, HEAD + BODY, ODD, ODD_CHUNKED)) for piece in pieces
        )


@pytest.mark.parametrize(
    "pieces",
    [
        (), (GET,), (HEAD + BODY,), (HEAD, BODY), (ODD + BODY,), (ODD, BODY),
        (CHUNKED + CHUNK + END,), (CHUNKED, CHUNK + END),
        (ODD_CHUNKED + CHUNK + END,), (ODD_CHUNKED, CHUNK + END),
    ],
)  # fmt: skip
async def test_an_idle_connection_outlasts_the_time_for_a_request(
    settings_without_bus: Settings, pieces: tuple[bytes, ...]
) -> None:
    async with serving(msgspec.structs.replace(settings_without_bus, client_timeout_ms=100)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        writer.write(LAST)
        said = await reader.read(-1)
        assert said.count(b"HTTP/1.1 200") == bool(pieces) + 1
        writer.close()


@pytest.mark.parametrize(
    ("first", "answers"),
    [
        (
            b"POST /purchase/buy HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c"
            b"\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1c\r\n" + BODY + b"\r\n0\r\n\r\n",
            3,
        ),
        (HEAD.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost") + BODY, 3),
        (ODD.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: h2c\r\nHost") + BODY, 1),
        (GET.replace(b"Host", b"Connection: Upgrade\r\nUpgrade: websocket\r\nHost"), 1),
    ],
    ids=["h2c, chunked", "h2c", "h2c, not plain", "websocket"],
)
async def test_behind_a_request_for_another_protocol_nothing_is_left_unanswered(
    settings_without_bus: Settings, first: bytes, answers: int
) -> None:
    """The connection goes on, or ends with the answer."""
    async with serving(settings_without_bus) as port, asyncio.timeout(30):
        said = await talk(port, first + HEAD + BODY + LAST)
    assert said.count(b"HTTP/1.1 200") == answers
    assert said.count(b"Connection: close") == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 400),
        (HEAD.replace(b"Content-Length: 28", b"Transfer-Encoding: chunked") + b"zz\r\n", 400),
        (GET.replace(b"Host", b"Connection: close\r\nExpect: teapot\r\nHost"), 417),
    ],
)
async def test_what_cannot_be_read_gets_a_problem_document_that_names_no_versions(
    settings_without_bus: Settings, sent: bytes, status: int
) -> None:
    async with serving(settings_without_bus) as port, asyncio.timeout(30):
        said = await talk(port, sent)
    assert said.split()[1] == b"%d" % status
    assert b"Content-Type: application/problem+json" in said
    assert b"aiohttp" not in said
    assert b"Python" not in said


async def test_a_body_that_stays_away_is_answered_and_its_connection_closed(
    settings_without_bus: Settings,
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, client_timeout_ms=200)
    async with serving(settings) as port:
        said = await talk(port, HEAD + BODY[:5])
    assert said.startswith(b"HTTP/1.1 408")
    assert b'"code":"TIMEOUT"' in said


async def test_an_idle_connection_is_closed_after_its_answer(settings_without_bus: Settings) -> None:
    async with serving(msgspec.structs.replace(settings_without_bus, keepalive_s=0.5)) as port:
        assert (await talk(port, HEAD + BODY)).startswith(b"HTTP/1.1 200")
        assert (await talk(port, HEAD, BODY)).startswith(b"HTTP/1.1 200")


async def test_a_refused_body_that_stays_away_holds_its_connection_no_longer_than_it_takes_to_say_so(
    settings_without_bus: Settings,
) -> None:
    endless = (
        b"POST /purchase/buy HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: 99\r\n\r\n"
    )
    async with serving(settings_without_bus) as port, asyncio.timeout(8):
        assert (await talk(port, endless)).startswith(b"HTTP/1.1 415")


async def test_a_client_that_takes_no_answers_is_dropped(settings_without_bus: Settings) -> None:
    async with serving(msgspec.structs.replace(settings_without_bus, keepalive_s=0.5)) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000)
            while serves_anybody(port):  # noqa: ASYNC110 (the kernel drops it, and has no event for others)
                await asyncio.sleep(0.05)


def serves_anybody(port: int) -> bool:
    connections = psutil.Process().net_connections("tcp4")
    return any(each.laddr.port == port and each.status != psutil.CONN_LISTEN for each in connections)


async def test_clients_that_go_away_in_the_middle_leave_no_traceback(
    settings_without_bus: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(settings_without_bus) as port:
        for piece in (HEAD + BODY[:5], HEAD[:40], HEAD + BODY):
            for pause_s in [0.05, *[0.0] * 100]:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(piece)
                await asyncio.sleep(pause_s)
                writer.transport.abort()
        for piece in (HEAD + BODY[:5], HEAD[:40], HEAD):
            # All of it is there when the server looks for the first time.
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(piece)
        while serves_anybody(port):  # noqa: ASYNC110 (as above)
            await asyncio.sleep(0.05)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.parametrize("version", [b"HTTP/0.9", b"HTTP/2.0", b""])
async def test_other_versions_of_http_buy_nothing_and_get_no_answer_in_them(
    settings_without_bus: Settings, version: bytes
) -> None:
    async with serving(settings_without_bus) as port:
        said = await talk(port, HEAD.replace(b"HTTP/1.1", version) + BODY)
    assert not said or said.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400"))


async def test_what_follows_a_connect_is_no_request(settings_without_bus: Settings) -> None:
    connect = b"CONNECT shop:443 HTTP/1.1\r\nHost: shop:443\r\n\r\n"
    async with serving(settings_without_bus) as port:
        for pieces in ((connect + HEAD + BODY,), (connect, HEAD + BODY)):
            said = await talk(port, *pieces)
            assert said.startswith(b"HTTP/1.1 404")
            assert said.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize("coding", [b"gzip", b"deflate", b"br"])
async def test_a_body_that_cannot_be_unpacked_is_bad_input(
    settings_without_bus: Settings, coding: bytes
) -> None:
    head = HEAD.replace(b"Host", b"Content-Encoding: " + coding + b"\r\nHost")
    async with serving(settings_without_bus) as port:
        assert (await talk(port, head + BODY)).startswith(b"HTTP/1.1 400")
