"""A contract is data: its requests are filled in, and its answers mean what it says."""

from collections.abc import Callable
from typing import Any, get_args
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree.ElementTree import XML

import msgspec
import pytest

from simulation.model.contract import (
    FLASHGRID,
    Buy,
    Contract,
    Init,
    OrderRead,
    Outcome,
    Request,
    Rule,
    StockRead,
)
from simulation.model.outcome import OUTCOMES, Stock
from simulation.model.places import decode, find_in, word_at
from simulation.model.requests import Encoder, fill

SHOP = Contract(
    init=Init(path="/init"),
    buy=Buy(
        path="/buy",
        answers=(
            Rule(status=200, outcome="SOLD_OUT", word=False),
            Rule(status=200, outcome="ACCEPTED", word=True),
            Rule(status=202, outcome="ACCEPTED"),
            Rule(status=429, outcome="SOLD_OUT"),
            Rule(status=500, outcome="UNKNOWN"),
        ),
        words=("result.ok",),
        order_id="result.orders.0",
        numbered=True,
    ),
    stock=StockRead(path="/stock", remaining="."),
    order=OrderRead(path="/order/{order_id}", status="state", words={"PAID": "CONFIRMED"}),
)


def test_every_outcome_can_be_said() -> None:
    assert set(get_args(Outcome)) == set(OUTCOMES)


@pytest.mark.parametrize(
    ("status", "body", "found"),
    [
        (200, b'{"result":{"ok":true,"orders":[17]}}', ("ACCEPTED", "17")),
        (200, b'{"result":{"ok":false}}', ("SOLD_OUT", None)),
        (200, b'{"result":{"ok":1,"orders":[17]}}', ("UNKNOWN", None)),
        (200, b'{"result":{"ok":"true","orders":[17]}}', ("ACCEPTED", "17")),
        (200, b'{"result":{"ok":null,"orders":[17]}}', ("UNKNOWN", None)),
        (200, b'{"result":{"ok":true,"orders":["17"]}}', ("UNKNOWN", None)),
        (200, b'{"result":{"ok":true,"orders":[true]}}', ("UNKNOWN", None)),
        (200, b'{"result":{"ok":true,"orders":[]}}', ("UNKNOWN", None)),
        (202, b"", ("UNKNOWN", None)),
        (429, b"<html>", ("SOLD_OUT", None)),
        (500, b"", ("UNKNOWN", None)),
        (503, b"", ("UNKNOWN", None)),
        (404, b"", ("INVALID", None)),
    ],
)
def test_an_answer_means_what_the_contract_says(
    status: int, body: bytes, found: tuple[str, str | None]
) -> None:
    assert SHOP.classify(status, body) == found


def test_without_a_place_for_it_no_order_id_is_needed() -> None:
    buy = msgspec.structs.replace(SHOP.buy, order_id=None)
    assert msgspec.structs.replace(SHOP, buy=buy).classify(202, b"") == ("ACCEPTED", None)


def test_a_status_with_several_outcomes_is_read_and_kept() -> None:
    assert SHOP.ambiguous == {200}
    assert SHOP.kept == {200, 202}
    assert FLASHGRID.ambiguous == set()
    assert FLASHGRID.kept == {200}


def test_reads_are_understood_by_their_places() -> None:
    assert SHOP.classify_stock(200, b"twelve", 1) == ("UNKNOWN", None)
    assert SHOP.classify_stock(200, b"12\n", 1) == ("SHOWN", Stock(remaining=12))
    assert SHOP.classify_stock(200, b"[" * 100_000, 1) == ("UNKNOWN", None)
    plain = msgspec.structs.replace(SHOP, stock=StockRead(path="/stock", remaining="left"))
    for said in (b"12", b'"12"', b" 12.0"):
        shown = plain.classify_stock(200, b'{"left":' + said + b"}", 1)
        assert shown == ("SHOWN", Stock(remaining=12, initial=None, sold=None))
    for said in (b"12.5", b'"few"', b'""', b"true", b"null", b"1e99", b"[12]"):
        assert plain.classify_stock(200, b'{"left":' + said + b"}", 1) == ("UNKNOWN", None)
    words = {"PAID": "CONFIRMED", "3": "CONFIRMED", "false": "FAILED"}
    order = OrderRead(path="/order/{order_id}", status="state", words=words)
    coded = msgspec.structs.replace(SHOP, order=order)
    for said, status in ((b'"PAID"', "CONFIRMED"), (b"3", "CONFIRMED"), (b"false", "FAILED"), (b"4", "4")):
        assert coded.classify_order(200, b'{"state":' + said + b"}", "17") == ("SHOWN", status)
    for said in (b"null", b'""', b"[3]", b"{}"):
        assert coded.classify_order(200, b'{"state":' + said + b"}", "17") == ("UNKNOWN", None)
    named = msgspec.structs.replace(SHOP, order=OrderRead(path="/", status="state", order_id="no"))
    assert named.classify_order(200, b'{"state":"PENDING","no":17}', "17") == ("SHOWN", "PENDING")
    assert named.classify_order(200, b'{"state":"PENDING","no":18}', "17") == ("UNKNOWN", None)


@pytest.mark.parametrize(
    ("value", "order_id"),
    [
        ("17", "17"),
        ("/orders/17", "17"),
        ("https://shop.example:8443/orders/17/?new=1#top", "17"),
        ("/orders/6F96-19FF%20a", "6F96-19FF a"),
        ("a:b", "a:b"),
        ("orders/17", "17"),
        ("https://shop.example/", None),
        ("/", None),
        ("", None),
    ],
)
def test_an_order_id_may_stand_in_a_header_field(value: str, order_id: str | None) -> None:
    shop = msgspec.structs.replace(
        SHOP, buy=msgspec.structs.replace(SHOP.buy, order_id="header:Location", numbered=False)
    )
    head = f"HTTP/1.1 202 Accepted\r\nX-Location: 9\r\nlocation:  {value} \r\n\r\n".encode()
    assert shop.reads_heads
    assert not SHOP.reads_heads
    assert shop.classify(202, b"", head) == (("ACCEPTED", order_id) if order_id else ("UNKNOWN", None))
    assert shop.classify(202, b'{"header:Location":"1"}') == ("UNKNOWN", None)


def test_a_header_field_that_is_no_path_is_read_whole() -> None:
    shop = msgspec.structs.replace(
        SHOP, buy=msgspec.structs.replace(SHOP.buy, order_id="header:X-Order", numbered=False)
    )
    for value in ("mPfIk6tWR0h/gkr7", "shop1/17", "/orders/17"):
        head = f"HTTP/1.1 202 Accepted\r\nX-Order: {value}\r\n\r\n".encode()
        assert shop.classify(202, b"", head) == ("ACCEPTED", value.removeprefix("/orders/"))


def test_stock_and_status_may_stand_in_header_fields() -> None:
    shop = msgspec.structs.replace(
        SHOP,
        stock=StockRead(path="/stock", remaining="header:X-Left", sold="header:X-Sold"),
        order=OrderRead(path="/", status="header:X-State", statuses=(200, 202), words={"paid": "CONFIRMED"}),
    )
    head = b"HTTP/1.1 200 OK\r\nX-Left: 12\r\nX-Sold: 3\r\nX-State: paid\r\n\r\n"
    assert shop.classify_stock(200, b"", 1, head) == ("SHOWN", Stock(remaining=12, sold=3, initial=None))
    assert shop.classify_stock(200, b"", 1, head.replace(b"12", b"few"))[0] == "UNKNOWN"
    assert shop.classify_order(202, b"", "17", head) == ("SHOWN", "CONFIRMED")
    assert shop.fits("order", 202, "SHOWN")
    assert not SHOP.fits("order", 202, "SHOWN")
    assert SHOP.classify_order(202, b'{"state":"PAID"}', "17") == ("UNKNOWN", None)


@pytest.mark.parametrize(
    ("place", "answer", "found"),
    [
        ("$id", {"$id": 1}, 1),
        ("@id.#text", {"@id": {"#text": 1}}, 1),
        ('data."order.id"', {"data": {"order.id": 1}}, 1),
        ('"a b"."".c', {"a b": {"": {"c": 1}}}, 1),
        ('"header:X"', {"header:X": 1}, 1),
        ("a.0.b.1", {"a": [{"b": [0, 1]}]}, 1),
        ("a.0", {"a": {"0": 1}}, 1),
        ("a.2", {"a": [1]}, None),
        ("a.²", {"a": [1]}, None),
        ("a.-1", {"a": [1]}, None),
        (f"a.{'9' * 5_000}", {"a": [1]}, None),
    ],
)
def test_a_place_is_a_path_of_names(place: str, answer: Any, found: Any) -> None:
    assert find_in(place, msgspec.json.encode(answer)) == found


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("1", "1"),
        ("1.0", "1"),
        ("-0.0", "0"),
        ("1.5", "1.5"),
        ("1e300", "1e300"),
        ("true", "true"),
        ("[]", None),
    ],
)
def test_a_number_is_the_word_that_it_is_as_a_count(value: str, word: str | None) -> None:
    body = f'{{"state":{value}}}'.encode()
    assert word_at("state", body, decode(body)) == word


def test_a_status_that_the_contract_does_not_list_does_not_fit() -> None:
    assert SHOP.fits("buy", 500, "UNKNOWN")
    assert not SHOP.fits("buy", 429, "ACCEPTED")
    assert SHOP.knows(500)
    assert not FLASHGRID.knows(500)


def test_what_has_no_value_is_left_out() -> None:
    request = Request(
        path="/a/{order_id}",
        query={"q": "{product_id}", "limit": "{limit}"},
        headers={"X-Key": "k {key}", "X-User": "{user_id}", "Content-Type": "application/json"},
        body='{"p":{product_id},"limit":{limit},"in":{"key":"k-{key}","all":["{key}",{limit},{"l":{limit}}]}}',
    )
    values: dict[str, Any] = {"order_id": "a", "product_id": 7, "user_id": 3}
    path, headers, body = fill(request, **values, limit=None, key="")
    assert path == "/a/a?q=7"
    assert headers == {"X-User": "3", "Content-Type": "application/json"}
    assert body == b'{"p":7,"in":{"all":[null,null,{}]}}'
    path, headers, body = fill(request, **values, limit=2, key="x")
    assert (path, headers["X-Key"]) == ("/a/a?q=7&limit=2", "k x")
    assert body == b'{"p":7,"limit":2,"in":{"key":"k-x","all":["x",2,{"l":2}]}}'
    form = msgspec.structs.replace(
        request, headers={"content-type": FORM}, body="a=1&key={key}&p={product_id}"
    )
    assert fill(form, **values, limit=2, key=None)[2] == b"a=1&p=7"


FORM = "application/x-www-form-urlencoded; charset=utf-8"
NASTY = 'a"\\&=+ %<ü\r\nX: 1'


@pytest.mark.parametrize(
    ("kind", "body", "read"),
    [
        ("application/json", '{"a":"{key}","b":"x{key}","c":{key},"n":{user_id}}', msgspec.json.decode),
        ("application/vnd.shop+json;v=1", '[{"a":"{key}"}, "x{key}", {key}, {user_id}]', msgspec.json.decode),
        (FORM, "a={key}&b=x{key}&n={user_id}", lambda body: parse_qs(body.decode())),
        ("text/xml", "<a n='{user_id}'>{key}<b>x{key}</b></a>", lambda body: XML(body.decode())),
    ],
)
def test_a_value_is_encoded_for_its_place(kind: str, body: str, read: Callable[[bytes], Any]) -> None:
    request = Request(
        path="/a b/{key}?p={key}",
        method="POST",
        query={"a&b": "x {key}"},
        headers={"Content-Type": kind, "X-Key": "{key}"},
        body=body,
    )
    sent = Encoder(request, "shop:80", "").encode(user_id=3, key=NASTY)
    head, _, sent_body = sent.partition(b"\r\n\r\n")
    target, *fields = head.decode().split("\r\n")
    path, headers, filled = fill(request, user_id=3, key=NASTY)
    assert target == f"POST {path} HTTP/1.1"
    assert fields[1:] == [f"{name}: {value}" for name, value in headers.items()] + [
        f"Content-Length: {len(filled)}"
    ]
    assert sent_body == filled
    parts = urlsplit(path)
    assert unquote(parts.path) == f"/a b/{NASTY}"
    assert parts.path.count("/") == 2
    assert parse_qs(parts.query) == {"p": [NASTY], "a&b": [f"x {NASTY}"]}
    assert headers["X-Key"] == NASTY.replace("\r\n", "%0D%0A")
    found = read(filled)
    if kind == "application/json":
        assert found == {"a": NASTY, "b": f"x{NASTY}", "c": NASTY, "n": 3}
    elif kind == FORM:
        assert found == {"a": [NASTY], "b": [f"x{NASTY}"], "n": ["3"]}
    elif kind == "text/xml":
        assert (found.text, found[0].text) == (NASTY.replace("\r\n", "\n"), f"x{NASTY}".replace("\r\n", "\n"))
    else:
        assert found == [{"a": NASTY}, f"x{NASTY}", NASTY, 3]


def test_an_encoder_sends_what_the_template_says() -> None:
    request = Request(
        path="/buy", method="POST", query={"p": "{product_id}"}, headers={"K": "{key}"}, body="100%,{user_id}"
    )
    sent = Encoder(request, "shop:80", "/v1").encode(user_id=12, product_id=3, key="k")
    assert sent == (b"POST /v1/buy?p=3 HTTP/1.1\r\nHost: shop:80\r\nK: k\r\nContent-Length: 7\r\n\r\n100%,12")
    keyless = Encoder(request, "shop:80", "", missing=("key",)).encode(user_id=1, product_id=3, key="")
    assert b"K: " not in keyless
    named = Request(path="/", headers={"host": "inside"}, body="{}")
    assert (
        Encoder(named, "shop:80", "").encode()
        == b"GET / HTTP/1.1\r\nhost: inside\r\nContent-Length: 2\r\n\r\n{}"
    )
