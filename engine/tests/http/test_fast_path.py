"""The fast path promises to be invisible: the same bytes get the same answer as from aiohttp alone."""

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec
import pytest
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from engine.gate.gate import Gate
from engine.http.app import LEAVING, FrontDoor
from engine.http.fast_path import Door, Ordinary
from engine.http.listener import listen
from engine.ledger.ledger import Ledger
from engine.model.sale import Sale, SaleTerms
from engine.settings import Settings

EXAMPLES = 700
"""With about fifteen requests in each, over 10,000 requests."""

LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
PLAIN = b'{"userId":101,"productId":1}'
SOLD_OUT, LIMITED, UNKNOWN = 2, 3, 4


class Doors(NamedTuple):
    """Two front doors of one gate: with the fast path and without."""

    fast: int
    plain: int
    door: Door
    fast_server: web.Server
    plain_server: web.Server
    gate: Gate


@pytest.fixture
async def doors(settings_without_bus: Settings) -> AsyncIterator[Doors]:
    gate = Gate(msgspec.structs.replace(settings_without_bus))
    ledger = await Ledger.connect(settings_without_bus.postgres_url or "")
    await ledger.migrate()
    for sale_id, terms in enumerate(
        [
            SaleTerms(product_id=1, stock=10_000_000),
            SaleTerms(product_id=SOLD_OUT, stock=0),
            SaleTerms(product_id=LIMITED, stock=10, limit=1, quantity=1, ends_ms=1),
        ],
        start=1,
    ):
        await gate.open_sale(Sale(sale_id=sale_id, terms=terms))
    front_door = FrontDoor(settings_without_bus, gate, ledger)
    fast, plain = (
        web.AppRunner(front_door.make_app()),
        web.AppRunner(front_door.make_app()),
    )
    with bind() as fast_socket, bind() as plain_socket:
        async with listen(fast, gate, fast_socket, 75, 10) as door:
            await plain.setup()
            fast_server, plain_server = fast.server, plain.server
            assert fast_server is not None
            assert plain_server is not None
            loop = asyncio.get_running_loop()
            accepting = await loop.create_server(lambda: Ordinary(plain_server, loop), sock=plain_socket)
            yield Doors(port_of(fast_socket), port_of(plain_socket), door, fast_server, plain_server, gate)
            accepting.close()
            await plain.cleanup()
    await gate.close()
    await ledger.close()


def bind() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1000)
    listener.setblocking(False)
    return listener


def port_of(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


async def exchange(port: int, pieces: list[bytes], patience_s: float) -> tuple[bytes, bool]:
    """All that the server answers until it closes or falls silent, and whether that is whole."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = bytearray()
    whole = True
    try:
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        while chunk := await asyncio.wait_for(reader.read(65536), patience_s):
            answer += chunk
    except TimeoutError:
        answer += b"<silence>"
    except ConnectionError:
        # Bytes that arrive after the server closed make the system reset the connection, and with it goes
        # what was not read yet.
        whole = False
    finally:
        writer.close()
    return mask(bytes(answer)), whole


def mask(answer: bytes) -> bytes:
    """The answer without what differs from one purchase to the next: order ids and the time of day."""
    answer = re.sub(rb'"orderId":"[0-9a-f-]{36}"', b'"orderId":"-"', answer)
    return re.sub(rb"Date: [^\r]+", b"Date: -", answer)


async def compare_again(doors: Doors, pieces: list[bytes]) -> bytes:
    """Compare once more what differs: a busy machine may cut the bytes on the two ways at other places."""
    with contextlib.suppress(AssertionError):
        return await compare(doors, pieces, 3)
    return await compare(doors, pieces, 3)


async def compare(doors: Doors, pieces: list[bytes], patience_s: float = 10.0) -> bytes:
    (fast, fast_whole), (plain, plain_whole) = await asyncio.gather(
        exchange(doors.fast, pieces, patience_s), exchange(doors.plain, pieces, patience_s)
    )
    if fast_whole and plain_whole:
        assert fast == plain, f"the answers differ for {pieces}"
    else:
        shared = min(len(fast), len(plain))
        assert fast[:shared] == plain[:shared], f"the answers differ for {pieces}"
    return fast


def purchase(body: bytes = PLAIN, *headers: bytes, line: bytes = b"POST /purchase/buy HTTP/1.1") -> bytes:
    lines = [line, b"Host: shop", b"Content-Type: application/json", b"Content-Length: %d" % len(body)]
    return b"\r\n".join([*lines, *headers]) + b"\r\n\r\n" + body


def product(number: int) -> bytes:
    return b'{"userId":101,"productId":%d}' % number


async def test_a_plain_purchase_does_not_pass_through_aiohttp(doors: Doors) -> None:
    for pieces in ([purchase()], [purchase()[:-28], PLAIN], [purchase(PLAIN, b"Idempotency-Key: k")]):
        await compare(doors, [*pieces, LAST])
    assert doors.plain_server.requests_count == 6
    assert doors.fast_server.requests_count == 3, "the three last ones, which are no purchases"


@pytest.mark.parametrize("number", [1, SOLD_OUT, LIMITED, UNKNOWN])
async def test_every_outcome_is_answered_alike(doors: Doors, number: int) -> None:
    pieces = [purchase(product(number)), purchase(product(number), b"Idempotency-Key: k"), LAST]
    answer = await compare(doors, pieces)
    assert answer.count(b"HTTP/1.1 ") == 3


async def test_pipelined_purchases_are_answered_in_order(doors: Doors) -> None:
    batch = [purchase(product(number)) for number in (1, SOLD_OUT, UNKNOWN, 1, LIMITED)] * 20
    statuses = [b"200", b"429", b"404", b"200", b"410"] * 20
    for pieces in ([b"".join(batch), LAST], [*batch, LAST], [purchase(), b"".join(batch[1:]), LAST]):
        answer = await compare(doors, pieces)
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [*statuses, b"200"]


async def test_a_connection_serves_both_kinds_in_turn(doors: Doors) -> None:
    stock = b"GET /purchase/stock?productId=2 HTTP/1.1\r\nHost: shop\r\n\r\n"
    sold_out = purchase(product(SOLD_OUT))
    answer = await compare(doors, [purchase(), stock, sold_out, stock + stock, purchase(), LAST])
    assert answer.count(b"HTTP/1.1 ") == 7


async def test_every_way_to_split_a_purchase_gets_its_answer(doors: Doors) -> None:
    request = purchase(PLAIN, b"User-Agent: x")
    for cut in range(1, len(request)):
        await compare(doors, [request[:cut], request[cut:], purchase(product(SOLD_OUT)), LAST])


async def test_a_half_message_hides_no_purchase_in_its_header(doors: Doors) -> None:
    answer = await compare(doors, [b"POST /purchase/buy HTTP/1.1\r\nX-Junk: ", purchase(), LAST], 2)
    assert answer.count(b"HTTP/1.1 ") <= 2


async def test_many_headers_with_a_bad_one_at_the_end_are_read_in_no_time(doors: Doors) -> None:
    """A pattern that can read a line in two ways needs ages for sixty of them."""
    answer = await compare(doors, [purchase(PLAIN, *[b"X-A: \t b c"] * 60, b"X-B: \x00"), LAST])
    assert answer.startswith(b"HTTP/1.0 400")


async def test_a_client_that_does_not_read_waits_for_itself(doors: Doors) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
    writer.write(purchase(product(UNKNOWN)))
    await reader.readuntil(b"}")
    (connection,) = doors.door.connections
    # What the transport does when the client has left too many answers unread.
    connection.pause_writing()
    writer.write(purchase())
    # Others are served meanwhile; when they are, the purchase would have been made long ago.
    for _ in range(5):
        await exchange(doors.fast, [purchase(product(UNKNOWN)), LAST], 10)
    assert await doors.gate.reads.read_stock(1) == (1, 10_000_000, 10_000_000), "nothing is bought unheard"
    connection.resume_writing()
    writer.write(LAST)
    answer = await asyncio.wait_for(reader.read(-1), 60)
    assert answer.count(b"ACCEPTED") == 1
    writer.close()


async def test_what_a_client_sends_ahead_is_held_within_bounds(doors: Doors) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", doors.fast)
    writer.write(purchase(product(UNKNOWN)))
    await reader.readuntil(b"}")
    (connection,) = doors.door.connections
    connection.pause_writing()
    count = 100_000 // len(purchase())
    writer.write(purchase() * count)
    while connection._transport.is_reading():  # noqa: ASYNC110 (a transport has no event for it)
        await asyncio.sleep(0)
    connection.resume_writing()
    writer.write(LAST)
    answer = await asyncio.wait_for(reader.read(-1), 60)
    assert answer.count(b"ACCEPTED") == count
    writer.close()


async def test_closing_answers_what_is_under_way(settings_without_bus: Settings) -> None:
    gate = Gate(settings_without_bus)
    await gate.open_sale(Sale(sale_id=1, terms=SaleTerms(product_id=1, stock=10)))
    ledger = await Ledger.connect(settings_without_bus.postgres_url or "")
    runner = web.AppRunner(FrontDoor(settings_without_bus, gate, ledger).make_app())
    with bind() as listener:
        async with listen(runner, gate, listener, 75, 10):
            clients = [await asyncio.open_connection("127.0.0.1", port_of(listener)) for _ in range(20)]
            for _, writer in clients:
                writer.write(purchase(product(UNKNOWN)))
            while not gate._lanes[0].waiting:  # noqa: ASYNC110 (the gate has no event for it, and needs none)
                await asyncio.sleep(0)
            under_way = len(gate._lanes[0].waiting)
        answers = [await reader.read(-1) for reader, _ in clients]
        assert len([answer for answer in answers if answer.startswith(b"HTTP/1.1 404")]) >= under_way
        for _, writer in clients:
            writer.close()
    await gate.close()
    await ledger.close()


async def test_who_asks_a_front_door_that_leaves_is_answered_and_sent_elsewhere(
    settings_without_bus: Settings,
) -> None:
    gate = Gate(settings_without_bus)
    await gate.open_sale(Sale(sale_id=1, terms=SaleTerms(product_id=1, stock=10)))
    ledger = await Ledger.connect(settings_without_bus.postgres_url or "")
    runner = web.AppRunner(FrontDoor(settings_without_bus, gate, ledger).make_app())
    with bind() as listener:
        door = listen(runner, gate, listener, 75, 10)
        await door.__aenter__()
        clients = [await asyncio.open_connection("127.0.0.1", port_of(listener)) for _ in range(5)]
        for reader, writer in clients:
            writer.write(purchase(PLAIN))
            assert b"Connection: close" not in await reader.readuntil(b"}")
        closing = asyncio.create_task(door.__aexit__(None, None, None))
        await asyncio.wait_for(runner.app[LEAVING].wait(), 60)
        for _, writer in clients:
            writer.write(purchase(PLAIN))
        for reader, writer in clients:
            answer = await asyncio.wait_for(reader.read(-1), 60)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"Connection: close\r\n" in answer
            writer.close()
        await closing
    await gate.close()
    await ledger.close()


BODIES = st.one_of(
    st.sampled_from(
        [
            PLAIN,
            product(SOLD_OUT),
            product(UNKNOWN),
            product(LIMITED),
            b'{"userId": 5, "productId": 2}',
            b' {"userId":1,"productId":2} ',
            b'{"productId":2,"userId":1}',
            b'{"userId":0,"productId":2}',
            b'{"userId":1,"productId":9223372036854775807}',
            b'{"userId":1,"productId":9223372036854775808}',
            b'{"userId":1,"userId":1,"productId":2}',
            b"{}",
            b"",
            b"nonsense",
            b'{"userId":1.0,"productId":2}',
            b'{"userId":999999999999999999,"productId":2}',
            b'{"userId":1000000000000000000,"productId":2}',
            b"x" * 2047,
            b"x" * 2048,
        ]
    ),
    st.binary(max_size=60),
)
EXTRAS = [
    b"User-Agent: Mozilla/5.0 (X11; Linux)",
    b"Accept: */*",
    b"accept-encoding: gzip, br",
    b"Cookie: a=b; c=d",
    b"Idempotency-Key: k-1",
    b"Idempotency-Key:k-2",
    b"IDEMPOTENCY-KEY: \t k-3 \t",
    b"Idempotency-Key: a b",
    b"Idempotency-Key:",
    b"Idempotency-Key: " + b"k" * 129,
    b"Connection: keep-alive",
    b"Connection: Keep-Alive",
    b"Connection: close",
    b"connection: foo, close",
    b"Connection: upgrade",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Expect: nonsense",
    b"Transfer-Encoding: identity",
    b"Content-Encoding: identity",
    b"Content-Encoding: gzip",
    b"Content-Type: text/plain",
    b"Content-Type: application/json; charset=utf-8",
    b"Content-Length: 28",
    b"Content-Length: 0",
    b"Host: other",
    b"X-Long: " + b"x" * 5000,
    b"X-Huge: " + b"x" * 9000,
    b"X-Folded: a\r\n b",
    b"X-Space : a",
    b": nameless",
    b"No colon here",
    b"X-Empty:",
    b"X-Control: a\x00b",
    b"X-Bell: \x07",
    b"X-Latin: caf\xe9",
    b"X-Lf: a\nX-B: c",
    b"TE: trailers",
    b"Trailer: X-T",
    b"Sec-WebSocket-Key: x",
    b"Proxy-Connection: close",
]
EXTRA = st.sampled_from(EXTRAS)
HARMLESS = [
    b"User-Agent: Mozilla/5.0 (X11; Linux)",
    b"Accept: */*",
    b"Cookie: a=b; c=d",
    b"Idempotency-Key: k-1",
    b"IDEMPOTENCY-KEY: \t k-3 \t",
    b"Connection: keep-alive",
    b"connection: Keep-Alive",
    b"X-Empty:",
    b"X-Long: " + b"x" * 5000,
    b"Expect: 100-continue",
    b"Content-Encoding: identity",
    b"TE: trailers",
    b"Sec-WebSocket-Key: x",
]

LINES = st.sampled_from(
    [b"POST /purchase/buy HTTP/1.1"] * 12
    + [
        b"POST /purchase/buy HTTP/1.0",
        b"post /purchase/buy HTTP/1.1",
        b"GET /purchase/buy HTTP/1.1",
        b"POST /purchase/buy?x=1 HTTP/1.1",
        b"POST /purchase/buy/ HTTP/1.1",
        b"POST  /purchase/buy HTTP/1.1",
        b"POST http://shop/purchase/buy HTTP/1.1",
        b"POST /purchase/%62uy HTTP/1.1",
        b"POST /purchase/buy HTTP/2.0",
        b"POST /purchase/buy",
        b"PUT /purchase/buy HTTP/1.1",
    ]
)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """One request: mostly plain, often odd, sometimes broken."""
    body = draw(BODIES)
    if draw(st.integers(0, 9)) < 5:
        return purchase(body, line=draw(LINES))
    if draw(st.integers(0, 9)) == 0:
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        return (
            b"POST /purchase/buy HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + chunks
        )
    length = draw(st.sampled_from([b"%d" % len(body)] * 8 + [b"+5", b"-1", b"05", b"5, 5", b"", b"1e1"]))
    headers = [b"Host: shop", b"Content-Type: application/json", b"Content-Length: " + length]
    headers += draw(st.lists(EXTRA, max_size=4))
    if draw(st.booleans()):
        headers = draw(st.permutations(headers))
    if draw(st.integers(0, 4)) == 0:
        headers.pop(draw(st.integers(0, len(headers) - 1)))
    if draw(st.integers(0, 4)) == 0:
        headers = [draw(st.sampled_from([header.lower(), header.upper(), header])) for header in headers]
    end = draw(st.sampled_from([b"\r\n"] * 9 + [b"\n"]))
    return end.join([draw(LINES), *headers]) + end * 2 + body


@st.composite
def lasting_requests(draw: st.DrawFn) -> bytes:
    """A request after which the connection goes on: odd in its spelling and its body, but whole."""
    headers = draw(st.lists(st.sampled_from(HARMLESS), max_size=3, unique=True))
    return purchase(draw(BODIES), *headers)


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What one client sends on one connection, in the pieces in which it sends it."""
    stream = draw(st.lists(lasting_requests(), min_size=10, max_size=25))
    # The server closes the connection at the first broken one, and so they come last.
    stream += draw(st.lists(requests(), max_size=3))
    pieces: list[bytes] = []
    for request in stream:
        match draw(st.integers(0, 9)):
            case 0 if len(request) > 1:
                cut = draw(st.integers(1, len(request) - 1))
                pieces += [request[:cut], request[cut:]]
            case 1 if pieces:
                pieces[-1] += request
            case _:
                pieces.append(request)
    return [*pieces, LAST]


async def test_a_body_is_as_long_as_its_head_says(doors: Doors) -> None:
    for length in (0, 1, 27, 29, 30, 100):
        request = purchase().replace(b"Content-Length: 28", b"Content-Length: %d" % length)
        await asyncio.gather(compare(doors, [request, LAST], 1), compare(doors, [request + LAST], 1))


async def test_a_header_makes_no_difference(doors: Doors) -> None:
    for header in EXTRAS:
        variants = (header, header.lower(), header.upper(), header.replace(b": ", b":", 1))
        await asyncio.gather(
            *(
                compare(doors, [purchase(product(number), variant), purchase(), LAST], 1)
                for variant in variants
                for number in (1, SOLD_OUT)
            )
        )


async def test_ten_thousand_generated_requests_get_the_same_answers_on_both_ways(doors: Doors) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(conversations())
    def collect(pieces: list[bytes]) -> None:
        collected.append(pieces)

    collected: list[list[bytes]] = []
    collect()
    answered = 0
    for start in range(0, len(collected), 20):
        batch = [compare_again(doors, pieces) for pieces in collected[start : start + 20]]
        answered += sum([answer.count(b"HTTP/1.1 ") for answer in await asyncio.gather(*batch)])
    assert answered > 10_000
