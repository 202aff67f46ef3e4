"""The requests that the benchmark sends, in bytes: a purchase as different clients spell it, and looks.

User 101 buys product 1 in each of them. What the six real clients send is what their sources write, in their
order: Go's net/http and json.Encoder, .NET's JsonContent (of a length that it does not know yet), Java's
HttpURLConnection with an ObjectMapper that indents and its HttpClient, which offers HTTP/2 each time, axios
on Node, and Python's requests.
"""

import random
from collections.abc import Sequence
from typing import Final
from uuid import UUID

HOST: Final = "Host: shop.example"
JSON: Final = "Content-Type: application/json"
LENGTH: Final = "Content-Length"
BODY: Final = '{"userId":101,"productId":1}'
DIFFERENT: Final = 20_000
"""Different requests of a client whose headers change each time: more than a server should remember."""

PROXIED: Final = "nginx's default proxy"
"""The client that is no spelling of its own: a plain purchase that came through the proxy."""


def write_buy(*headers: str, body: str = BODY, version: str = "1.1") -> bytes:
    """Return a purchase with these headers; LENGTH stands for that header and its value."""
    lines = [f"{LENGTH}: {len(body)}" if header == LENGTH else header for header in headers]
    return "\r\n".join([f"POST /purchase/buy HTTP/{version}", *lines, "", body]).encode()


PLAIN: Final = (write_buy(HOST, JSON, LENGTH),)


def look_at_stock() -> list[bytes]:
    """Return a look at the stock of product 1."""
    return [f"GET /purchase/stock?productId=1 HTTP/1.1\r\n{HOST}\r\n\r\n".encode()]


def look_at_orders(order_ids: Sequence[str]) -> list[bytes]:
    """Return a look at each of the orders."""
    return [f"GET /purchase/orders/{order_id} HTTP/1.1\r\n{HOST}\r\n\r\n".encode() for order_id in order_ids]


def buy_any_of(products: int) -> list[bytes]:
    """Return purchases of random products, from 1 to `products`."""
    pick = random.Random(1)
    bodies = (f'{{"userId":101,"productId":{pick.randint(1, products)}}}' for _ in range(5 * products))
    return [write_buy(HOST, JSON, LENGTH, body=body) for body in bodies]


def list_spellings() -> dict[str, Sequence[bytes]]:
    """Return what each client sends, in turn, by the client's name."""
    pick = random.Random(1)
    traces = [
        f"traceparent: 00-{pick.getrandbits(128):032x}-{pick.getrandbits(64):016x}-01"
        for _ in range(DIFFERENT)
    ]
    utf8 = f"{JSON}; charset=utf-8"
    swapped = '{"productId":1,"userId":101}'
    return {
        "plain": PLAIN,
        "charset=utf-8": [write_buy(HOST, utf8, LENGTH)],
        "productId first": [write_buy(HOST, JSON, LENGTH, body=swapped)],
        "newline at the end": [write_buy(HOST, JSON, LENGTH, body=f"{BODY}\n")],
        "trace header of its own": [write_buy(HOST, JSON, LENGTH, trace) for trace in traces],
        "browser, three headers of its own": [
            write_buy(*_browser(utf8), trace, f"X-Request-Id: {UUID(int=pick.getrandbits(128))}", cookie)
            for trace in traces
            for cookie in [f"Cookie: session={pick.getrandbits(128):032x}; theme=dark"]
        ],
        "HTTP/1.0, keep-alive": [write_buy(HOST, "Connection: keep-alive", JSON, LENGTH, version="1.0")],
        "HTTP/1.0, a connection each": [write_buy(HOST, JSON, LENGTH, version="1.0")],
        "Go, a map": [
            write_buy(
                HOST, "User-Agent: Go-http-client/1.1", LENGTH, JSON, "Accept-Encoding: gzip",
                body=f"{swapped}\n",
            )
        ],
        ".NET, PostAsJsonAsync": [
            write_buy(
                HOST, "Transfer-Encoding: chunked", utf8, body=f"{len(BODY):X}\r\n{BODY}\r\n0\r\n\r\n"
            )
        ],
        "Java, indented": [
            write_buy(
                "Accept: application/json, application/*+json", JSON, "User-Agent: Java/17.0.13", HOST,
                "Connection: keep-alive", LENGTH,
                body='{\n  "userId" : 101,\n  "productId" : 1\n}',
            )
        ],
        "Java, HttpClient": [
            write_buy(
                "Connection: Upgrade, HTTP2-Settings", LENGTH, HOST,
                "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA", "Upgrade: h2c",
                "User-Agent: Java-http-client/17.0.15", JSON,
            )
        ],
        "Node, axios": [
            write_buy(
                "Accept: application/json, text/plain, */*", JSON, "User-Agent: axios/1.12.2", LENGTH,
                "Accept-Encoding: gzip, compress, deflate, br", HOST, "Connection: keep-alive",
            )
        ],
        "Python, requests": [
            write_buy(
                HOST, "User-Agent: python-requests/2.32.5", "Accept-Encoding: gzip, deflate", "Accept: */*",
                "Connection: keep-alive", LENGTH, JSON,
                body='{"userId": 101, "productId": 1}',
            )
        ],
    }  # fmt: skip


def _browser(content_type: str) -> list[str]:
    """Return the head that a page's script makes Chrome send."""
    return [
        HOST,
        "Connection: keep-alive",
        LENGTH,
        'sec-ch-ua-platform: "Windows"',
        "User-Agent: Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko)"
        " Chrome/141.0.0.0 Safari/537.36",
        "Accept: application/json, text/plain, */*",
        'sec-ch-ua: "Google Chrome";v="141", "Not?A_Brand";v="8", "Chromium";v="141"',
        content_type,
        "sec-ch-ua-mobile: ?0",
        "Origin: http://shop.example",
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Mode: cors",
        "Sec-Fetch-Dest: empty",
        "Referer: http://shop.example/drop/1",
        "Accept-Encoding: gzip, deflate, br, zstd",
        "Accept-Language: en-GB,en;q=0.9,de;q=0.8",
    ]
