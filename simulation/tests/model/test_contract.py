"""A contract is data: its requests are filled in, and its answers mean what it says."""

from typing import get_args

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
    plain = msgspec.structs.replace(SHOP, stock=StockRead(path="/stock", remaining="left"))
    outcome, stock = plain.classify_stock(200, b'{"left":12}', 1)
    assert outcome == "SHOWN"
    assert stock
    assert (stock.remaining, stock.initial, stock.sold) == (12, None, None)
    assert SHOP.classify_order(200, b'{"state":"PAID"}', "17") == ("SHOWN", "CONFIRMED")
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


def test_a_status_that_the_contract_does_not_list_does_not_fit() -> None:
    assert SHOP.fits("buy", 500, "UNKNOWN")
    assert not SHOP.fits("buy", 429, "ACCEPTED")
    assert SHOP.knows(500)
    assert not FLASHGRID.knows(500)


def test_what_has_no_value_is_left_out_and_null_in_a_body() -> None:
    request = Request(
        path="/a/{order_id}",
        query={"q": "{product_id}", "limit": "{limit}"},
        headers={"X-Key": "k {key}", "X-User": "{user_id}"},
        body='{"p":{product_id},"limit":{limit},"key":"{key}"}',
    )
    path, headers, body = fill(request, order_id="a/b ü", product_id=7, limit=None, key='"', user_id=3)
    assert path == "/a/a%2Fb%20%C3%BC?q=7"
    assert headers == {"X-Key": 'k "', "X-User": "3"}
    assert body == b'{"p":7,"limit":null,"key":"\\""}'
    assert "X-Key" not in fill(request, order_id="a", product_id=7, limit=1, key=None, user_id=3)[1]


def test_an_encoder_sends_what_the_template_says() -> None:
    request = Request(
        path="/buy", method="POST", query={"p": "{product_id}"}, headers={"K": "{key}"}, body="100%,{user_id}"
    )
    sent = Encoder(request, "shop:80", "/v1").encode(user_id=12, product_id=3, key="k")
    assert sent == (b"POST /v1/buy?p=3 HTTP/1.1\r\nHost: shop:80\r\nK: k\r\nContent-Length: 7\r\n\r\n100%,12")
    keyless = Encoder(request, "shop:80", "", missing=("key",)).encode(user_id=1, product_id=3, key="")
    assert b"K: " not in keyless
