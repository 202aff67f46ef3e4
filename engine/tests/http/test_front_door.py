"""What the front door promises: the answers that the design names, and bad input that changes nothing."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from aiohttp import ClientSession, web
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from engine.gate import fence
from engine.gate.clearing import Clearing
from engine.gate.client import Shard
from engine.gate.gate import Gate
from engine.http.app import FrontDoor
from engine.http.looking import Looking
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack
from engine.model.lot import Lot
from engine.model.order_id import split_order_id
from engine.settings import Settings
from engine.tests.test_server import eventually

JSON = {"Content-Type": "application/json"}


class Client:
    """A keep-alive HTTP client of one front door."""

    def __init__(self, session: ClientSession, settings: Settings, gate: Gate, ledger: Ledger) -> None:
        self.session = session
        self.settings = settings
        self.gate = gate
        self.ledger = ledger

    async def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, path, data=body, headers=headers) as response:
            return response.status, json.loads(await response.read()), dict(response.headers)

    async def init(self, query: str = "productId=1&stock=3", **headers: str) -> tuple[int, dict[str, Any]]:
        status, body, _ = await self.ask("POST", f"/purchase/init?{query}", None, **headers)
        return status, body

    async def buy(self, user: int = 101, product: int = 1, **headers: str) -> tuple[int, dict[str, Any]]:
        body = json.dumps({"userId": user, "productId": product}).encode()
        status, answer, _ = await self.ask("POST", "/purchase/buy", body, **(JSON | headers))
        return status, answer

    async def stock(self, product: int = 1) -> dict[str, Any]:
        return (await self.ask("GET", f"/purchase/stock?productId={product}"))[1]


async def serve(settings: Settings) -> AsyncIterator[Client]:
    gate = Gate(settings)
    ledger = await Ledger.connect(settings.postgres_url or "")
    await ledger.migrate()
    runner = web.AppRunner(
        FrontDoor(settings, gate, ledger, Looking(settings, gate.reads, ledger)).make_app()
    )
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with ClientSession(f"http://127.0.0.1:{runner.addresses[0][1]}") as session:
        yield Client(session, settings, gate, ledger)
    await runner.cleanup()
    await gate.close()
    await ledger.close()


@pytest.fixture
async def client(settings_without_bus: Settings) -> AsyncIterator[Client]:
    async for client in serve(settings_without_bus):
        yield client


@pytest.fixture
async def guarded(settings_without_bus: Settings) -> AsyncIterator[Client]:
    async for client in serve(msgspec.structs.replace(settings_without_bus, admin_token="let-me-in-please")):
        yield client


async def test_three_units_make_three_happy_buyers(client: Client) -> None:
    status, sale = await client.init("productId=1&stock=3")
    assert status == 200
    assert sale == {
        "saleId": sale["saleId"], "productId": 1, "stock": 3, "limit": None, "quantity": 1,
        "startsAt": None, "endsAt": None,
    }  # fmt: skip
    answers = [await client.buy() for _ in range(5)]
    assert [status for status, _ in answers] == [200, 200, 200, 429, 429]
    assert answers[0][1] == {"status": "ACCEPTED", "orderId": answers[0][1]["orderId"]}
    assert answers[4][1] == {"status": "SOLD_OUT"}
    assert await client.stock() == {
        "productId": 1, "saleId": sale["saleId"], "initial": 3, "remaining": 0, "sold": 3,
    }  # fmt: skip


async def test_a_crowd_on_many_connections_gets_exactly_the_stock(client: Client) -> None:
    await client.init("productId=1&stock=100")
    answers = await asyncio.gather(*(client.buy(user) for user in range(1, 401)))
    assert Counter(status for status, _ in answers) == {200: 100, 429: 300}
    assert len({body["orderId"] for status, body in answers if status == 200}) == 100


@pytest.mark.parametrize(
    ("options", "status", "code"),
    [
        ("&limit=1", 409, "LIMIT_REACHED"),
        ("&startsAt=4000000000000", 403, "NOT_STARTED"),
        ("&endsAt=1000000000000", 410, "SALE_ENDED"),
    ],
)
async def test_the_terms_of_a_sale_refuse_in_their_own_words(
    client: Client, options: str, status: int, code: str
) -> None:
    await client.init(f"productId=1&stock=9{options}")
    await client.buy()
    refusal = await client.buy()
    assert (refusal[0], refusal[1]["code"], refusal[1]["status"]) == (status, code, status)


async def test_a_key_gets_its_first_answer_again_over_http(client: Client) -> None:
    await client.init()
    first = await client.buy(Idempotency_Key="k-1")
    assert first == await client.buy(Idempotency_Key="k-1")
    assert (await client.stock())["sold"] == 1


async def test_an_order_is_pending_then_what_the_ledger_says_and_otherwise_unknown(
    client: Client, redis: Redis
) -> None:
    _, sale = await client.init()
    _, accepted = await client.buy(user=7)
    path = f"/purchase/orders/{accepted['orderId']}"
    assert (await client.ask("GET", path))[:2] == (200, {"orderId": accepted["orderId"], "status": "PENDING"})
    lots = [Lot(*split_order_id(accepted["orderId"]), 1, sale["saleId"], 1, 1, [7])]
    await client.ledger.settle(lots, {})
    await Clearing([Shard(redis)]).clear(lots)
    assert (await client.ask("GET", path))[:2] == (
        200,
        {"orderId": accepted["orderId"], "status": "CONFIRMED", "productId": 1, "quantity": 1},
    )
    assert (await client.ask("GET", path.upper().replace("/PURCHASE/ORDERS", "/purchase/orders")))[0] == 200
    for stranger in (str(uuid4()), "nonsense", "1"):
        status, problem, _ = await client.ask("GET", f"/purchase/orders/{stranger}")
        assert (status, problem["code"]) == (404, "UNKNOWN_ORDER")


BAD_BODIES = [
    (b"", "body"),
    (b"not json", "body"),
    (b"[1]", "body"),
    (b"null", "body"),
    (b'"userId"', "body"),
    (b'{"userId":1,"productId":1', "body"),
    (b'{"userId":1,"productId":1} x', "body"),
    (b"{'userId':1,'productId':1}", "body"),
    (b'{"userId":NaN,"productId":1}', "body"),
    (b'{"userId":01,"productId":1}', "body"),
    (b'\xff\xfe{"userId":1,"productId":1}', "body"),
    ('{"userId":1,"productId":1}'.encode("utf-16"), "body"),
    (b"[" * 1500, "body"),
    (b'{"userId":"\\ud800","productId":1}', "body"),
    (b"{}", "userId"),
    (b'{"productId":1}', "userId"),
    (b'{"userId":1}', "productId"),
    (b'{"userid":1,"productId":1}', "userid"),
    (b'{"userId":1,"productId":1,"quantity":5}', "quantity"),
    (b'{"userId":0,"productId":1}', "userId"),
    (b'{"userId":-1,"productId":1}', "userId"),
    (b'{"userId":9223372036854775808,"productId":1}', "userId"),
    (b'{"userId":1' + b"0" * 400 + b',"productId":1}', "userId"),
    (b'{"userId":1.0,"productId":1}', "userId"),
    (b'{"userId":1e3,"productId":1}', "userId"),
    (b'{"userId":"1","productId":1}', "userId"),
    (b'{"userId":true,"productId":1}', "userId"),
    (b'{"userId":null,"productId":1}', "userId"),
    (b'{"userId":[1],"productId":1}', "userId"),
    (b'{"userId":1,"productId":0}', "productId"),
    (b'{"userId":1,"productId":9223372036854775808}', "productId"),
    (b'{"userId":1,"productId":"1"}', "productId"),
    (b'{"userId":1,"userId":2,"productId":1}', "userId"),
    (b'{"userId":1,"productId":1,"productId":1}', "productId"),
]


@pytest.mark.parametrize(("body", "field"), BAD_BODIES)
async def test_a_bad_body_is_refused_by_its_field_and_changes_nothing(
    client: Client, body: bytes, field: str
) -> None:
    await client.init()
    batches_before = count_batches()
    status, problem, headers = await client.ask("POST", "/purchase/buy", body, **JSON)
    assert (status, problem["field"], problem["status"]) == (400, field, 400)
    assert headers["Content-Type"] == "application/problem+json"
    assert count_batches() == batches_before, "it never reached the gate"
    assert (await client.stock())["sold"] == 0


@pytest.mark.parametrize(
    "body",
    [
        b'{"userId":1,"productId":1}',
        b' { "productId" : 1 ,\n"userId" : 1 } ',
        b'{"userId": 9223372036854775807, "productId": 1}',
        b'{"us\\u0065rId":1,"productId":1}',
        b'\xef\xbb\xbf{"userId":1,"productId":1}',  # https://github.com/Badgerati/Pode/issues/1604
    ],
)
async def test_any_spelling_of_good_json_buys(client: Client, body: bytes) -> None:
    await client.init()
    assert (await client.ask("POST", "/purchase/buy", body, **JSON))[0] == 200


@pytest.mark.parametrize("size", [2048, 10_000, 300_000])
async def test_a_body_of_two_kibibytes_is_too_large(client: Client, size: int) -> None:
    await client.init()
    body = b'{"userId":1,"productId":1' + b" " * (size - 26) + b"}"
    status, problem, _ = await client.ask("POST", "/purchase/buy", body, **JSON)
    assert (status, problem["field"]) == (413, "body")
    assert (await client.stock())["sold"] == 0


async def test_a_body_just_below_two_kibibytes_is_read(client: Client) -> None:
    await client.init()
    body = b'{"userId":1,"productId":1' + b" " * (2047 - 26) + b"}"
    assert (await client.ask("POST", "/purchase/buy", body, **JSON))[0] == 200


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", ""])
async def test_another_content_type_is_refused(client: Client, kind: str) -> None:
    await client.init()
    status, problem, _ = await client.ask(
        "POST", "/purchase/buy", b'{"userId":1,"productId":1}', Content_Type=kind
    )
    assert (status, problem["field"]) == (415, "Content-Type")


async def test_a_content_type_may_have_parameters(client: Client) -> None:
    await client.init()
    assert (await client.buy(Content_Type="Application/JSON; charset=utf-8"))[0] == 200


@pytest.mark.parametrize("key", ["", "a b", "x" * 129, "schlüssel"])
async def test_a_bad_key_is_refused(client: Client, key: str) -> None:
    await client.init()
    status, problem = await client.buy(Idempotency_Key=key)
    assert (status, problem["field"]) == (400, "Idempotency-Key")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("stock=3", "productId"),
        ("productId=1", "stock"),
        ("productId=0&stock=3", "productId"),
        ("productId=9223372036854775808&stock=3", "productId"),
        ("productId=abc&stock=3", "productId"),
        ("productId=1&stock=-1", "stock"),
        ("productId=1&stock=1.5", "stock"),
        ("productId=1&stock=1e3", "stock"),
        ("productId=1&stock=", "stock"),
        ("productId=1&stock=%2B3", "stock"),
        ("productId=1&stock=٣", "stock"),
        ("productId=1&stock=1000000000001", "stock"),
        ("productId=1&stock=3&stock=4", "stock"),
        ("productId=1&stock=3&limit=0", "limit"),
        ("productId=1&stock=3&limit=1&quantity=2", "limit"),
        ("productId=1&stock=3&quantity=5", "stock"),
        ("productId=1&stock=3&quantity=0", "quantity"),
        ("productId=1&stock=3&startsAt=soon", "startsAt"),
        ("productId=1&stock=3&startsAt=1790000000", "startsAt"),
        ("productId=1&stock=3&startsAt=0", "startsAt"),
        ("productId=1&stock=3&endsAt=1790000000", "endsAt"),
        ("productId=1&stock=3&endsAt=1790000000000000", "endsAt"),
        ("productId=1&stock=3&startsAt=2000000000000&endsAt=2000000000000", "endsAt"),
        ("productId=1&stock=3&colour=red", "colour"),
    ],
)
async def test_bad_terms_open_no_sale(client: Client, query: str, field: str) -> None:
    status, problem = await client.init(query)
    assert (status, problem["field"]) == (400, field)
    assert "milliseconds" in problem["detail"] or "At=1" not in query
    assert (await client.ask("GET", "/purchase/stock?productId=1"))[0] == 404


async def test_opening_a_product_again_starts_a_new_sale(client: Client) -> None:
    _, first = await client.init("productId=1&stock=1")
    await client.buy()
    _, second = await client.init("productId=1&stock=2")
    assert second["saleId"] > first["saleId"]
    assert [(await client.buy())[0] for _ in range(3)] == [200, 200, 429]


async def test_an_unknown_product_is_named(client: Client) -> None:
    status, problem = await client.buy(product=77)
    assert (status, problem["code"], problem["field"]) == (404, "UNKNOWN_PRODUCT", "productId")
    status, problem, _ = await client.ask("GET", "/purchase/stock?productId=77")
    assert (status, problem["code"]) == (404, "UNKNOWN_PRODUCT")
    assert (await client.ask("GET", "/purchase/stock?productId=x"))[1]["field"] == "productId"


@pytest.mark.parametrize(
    "header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic let-me-in-please"}]
)
async def test_a_sale_is_opened_only_with_the_admin_token(guarded: Client, header: dict[str, str]) -> None:
    status, problem = await guarded.init(**header)
    assert (status, problem["field"]) == (401, "Authorization")
    for scheme in ("Bearer", "bearer", "BEARER"):  # RFC 9110, 11.1: in either case
        assert (await guarded.init(Authorization=f"{scheme} let-me-in-please"))[0] == 200


async def test_a_token_in_bytes_that_are_no_text_is_a_wrong_token(guarded: Client) -> None:
    port = int(guarded.session._base_url.port or 0)  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"POST /purchase/init?productId=1&stock=3 HTTP/1.1\r\nHost: x\r\nAuthorization: \xff\xfe\r\n\r\n"
    )
    assert (await reader.readline()).startswith(b"HTTP/1.1 401")
    writer.close()


async def test_without_token_and_dev_nobody_opens_a_sale(settings_without_bus: Settings) -> None:
    async for client in serve(msgspec.structs.replace(settings_without_bus, dev=False)):
        status, problem = await client.init()
        assert (status, problem["field"]) == (403, "Authorization")
        assert "--dev" in problem["detail"]


async def test_in_dev_a_name_that_is_not_this_machines_opens_no_sale(client: Client) -> None:
    """A web page whose name leads to loopback, and a proxy that passes its own name on."""
    for name in ("shop.example", "shop.example:8080", "10.0.0.1", "[2001:db8::1]:80"):
        status, problem = await client.init(Host=name)
        assert (status, problem["field"]) == (403, "Host"), name
    for name in ("localhost", "127.0.0.1:1", "[::1]:80"):
        assert (await client.init(Host=name))[0] == 200, name


async def test_terms_in_the_body_are_answered_with_where_they_belong(client: Client) -> None:
    status, problem, _ = await client.ask(
        "POST", "/purchase/init", b"productId=1&stock=3", Content_Type="application/x-www-form-urlencoded"
    )
    assert (status, problem["field"]) == (400, "productId")
    assert "?productId=" in problem["detail"]


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via", "Origin"])
async def test_without_a_token_nobody_from_beyond_this_machine_opens_a_sale(
    client: Client, header: str
) -> None:
    status, problem = await client.init(**{header: "203.0.113.7"})
    assert (status, problem["field"]) == (403, header)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/purchase/buy", 405),
        ("POST", "/purchase/stock", 405),
        ("GET", "/", 404),
        ("GET", "/purchase", 404),
    ],
)
async def test_other_requests_get_problem_documents_too(
    client: Client, method: str, path: str, status: int
) -> None:
    answer = await client.ask(method, path)
    assert (answer[0], answer[1]["status"]) == (status, status)
    assert answer[2]["Content-Type"] == "application/problem+json"


async def test_without_redis_the_answer_is_503_and_comes_back_by_itself(client: Client, stack: Stack) -> None:
    await client.init()
    await stack.kill("redis")
    try:
        status, problem, headers = await client.ask(
            "POST", "/purchase/buy", b'{"userId":1,"productId":1}', **JSON
        )
        assert (status, problem["code"]) == (503, "GATE_UNAVAILABLE")
        assert int(headers["Retry-After"]) > 0
        status, problem, _ = await client.ask("GET", "/readyz")
        assert (status, problem["code"]) == (503, "GATE_UNAVAILABLE")
        assert problem["services"] == {"redis": "unavailable", "postgres": "OK"}
        assert (await client.ask("GET", "/healthz"))[0] == 200
        assert (await client.ask("GET", "/purchase/stock?productId=1"))[0] == 503
    finally:
        await stack.start("redis")

    async def sells() -> bool:
        return (await client.buy())[0] == 200

    await eventually(sells)
    assert (await client.ask("GET", "/readyz"))[0] == 200


async def test_a_redis_that_is_new_is_not_ready_before_it_sells(
    client: Client, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.init()
    assert (await client.ask("GET", "/readyz"))[0] == 200
    monkeypatch.setattr(fence, "NOTICED_S", 3600.0)
    await stack.kill("redis")
    await stack.start("redis")
    assert (await client.buy())[0] == 503
    status, problem, headers = await client.ask("GET", "/readyz")
    assert (status, problem["code"], problem["detail"]) == (503, "GATE_UNAVAILABLE", fence.NEW)
    assert problem["services"] == {"redis": "OK", "postgres": "OK"}
    assert int(headers["Retry-After"]) > 0
    monkeypatch.undo()

    async def is_ready() -> bool:
        return (await client.ask("GET", "/readyz"))[0] == 200

    await eventually(is_ready)
    assert (await client.buy())[0] == 200


async def test_the_gate_sells_while_the_ledger_is_away(client: Client, stack: Stack) -> None:
    await client.init()
    await stack.kill("postgres")
    try:
        assert (await client.buy())[0] == 200
        status, ready, _ = await client.ask("GET", "/readyz")
        assert (status, ready["services"]) == (200, {"redis": "OK", "postgres": "unavailable"})
        assert (await client.init())[0] == 503
    finally:
        await stack.start("postgres")
    assert (await client.ask("GET", "/readyz"))[0] == 200


async def test_the_openapi_document_names_every_request(client: Client) -> None:
    _, document, _ = await client.ask("GET", "/openapi.json")
    assert set(document["paths"]) == {
        "/purchase/init", "/purchase/buy", "/purchase/orders/{orderId}", "/purchase/stock",
        "/healthz", "/readyz", "/metrics", "/openapi.json",
    }  # fmt: skip


def count_batches() -> float:
    return REGISTRY.get_sample_value("flashgrid_gate_batch_purchases_count") or 0.0
