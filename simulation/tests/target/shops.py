"""Engines of other kinds, which keep everything in memory.

`python shops.py PORT graphql|rest|text [oversell] [fumble] [https CERTIFICATE KEY]`

All of them take a key for what it is: two purchases with the same one are the same purchase, be it empty.
Order ids have characters that need care. `oversell` sells five units too many, `fumble` takes two for the
first purchase.
"""

import ssl
import sys
from typing import Any

from aiohttp import web

STOCK: dict[str, int] = {}
SOLD: dict[str, int] = {}
ORDERS: dict[str, str] = {}
KEYS: dict[Any, str] = {}
SPARE = 5 if "oversell" in sys.argv else 0


def open_sale(product: str, stock: int) -> None:
    STOCK[product], SOLD[product] = stock, 0


def sell(product: str, user: str, key: list[Any]) -> str | None:
    """The order's id; None when sold out."""
    if key and key[0] in KEYS:
        return KEYS[key[0]]
    if SOLD[product] >= STOCK[product] + SPARE:
        return None
    SOLD[product] += 1 if ORDERS or "fumble" not in sys.argv else 2
    order = str(len(ORDERS) + 1) if "rest" in sys.argv else f'"{len(ORDERS)}" / ü&=%\\ +?'
    ORDERS[order] = user
    if key:
        KEYS[key[0]] = order
    return order


def left(product: str) -> int:
    return max(STOCK[product] - SOLD[product], 0)


def token_of(user: Any) -> str:
    return f't"{user}\\&'


async def graphql(request: web.Request) -> web.Response:
    """Every answer is 200; what went wrong is in `errors`."""
    asked = await request.json()
    given, query = asked["variables"], asked["query"]
    if query.startswith("mutation Open"):
        open_sale(given["product"], given["stock"])
        return web.json_response({"data": {"open": True}})
    if query.startswith("query Stock"):
        return web.json_response({"data": {"product": {"left": left(given["product"])}}})
    if given["token"] != token_of(given["user"]):
        return web.json_response({"errors": [{"extensions": {"code": "FORBIDDEN"}}], "data": None})
    if query.startswith("query Order"):
        state = {"state": "DONE"} if ORDERS.get(given["order"]) == str(given["user"]) else None
        return web.json_response({"data": {"order": state}})
    order = sell(given["product"], str(given["user"]), [given["key"]] if "key" in given else [])
    if order is None:
        return web.json_response({"errors": [{"extensions": {"code": "SOLD_OUT"}}], "data": None})
    return web.json_response({"data": {"buy": {"orders": [{"id": order}]}}})


async def rest_open(request: web.Request) -> web.Response:
    open_sale(request.match_info["product"], (await request.json())["stock"])
    return web.Response(status=201)


async def rest_buy(request: web.Request) -> web.Response:
    user, product = request.match_info["user"], request.match_info["product"]
    if request.headers.get("Authorization") != f"Bearer {token_of(user)}":
        return web.Response(status=401)
    order = sell(product, user, [request.query["key"]] if "key" in request.query else [])
    if order is None:
        return web.json_response({"error": {"reason": "OUT"}}, status=409)
    return web.json_response({"data": [{"lines": [{"order": int(order)}]}]}, status=201)


async def rest_order(request: web.Request) -> web.Response:
    if ORDERS.get(request.match_info["order"]) != request.query["user"]:
        return web.Response(status=404)
    return web.json_response({"data": [{"state": 1, "name": "paid"}]})


async def rest_stock(request: web.Request) -> web.Response:
    product = request.match_info["product"]
    return web.json_response({"counts": [STOCK[product], left(product), SOLD[product]]})


async def text(request: web.Request) -> web.Response:
    """Every request and answer is plain text."""
    what, *words = (await request.text()).split(" ")
    if what == "open":
        open_sale(words[0], int(words[1]))
        return web.Response(text="opened")
    if what == "buy":
        order = sell(words[1], words[0], [request.headers["X-Key"]] if "X-Key" in request.headers else [])
        return web.Response(text="SOLD OUT\n" if order is None else f"{order}\n")
    if "left" in request.query:
        return web.Response(text=f"{left(request.query['left'])}\n")
    return web.Response(text="paid\n" if request.headers["X-Order"] in ORDERS else "unknown\n")


ROUTES = {
    "graphql": [web.post("/graphql", graphql)],
    "rest": [
        web.put("/v1/products/{product}", rest_open),
        web.get("/v1/products/{product}", rest_stock),
        web.put("/v1/carts/{user}/{product}", rest_buy),
        web.get("/v1/orders/{order}", rest_order),
    ],
    "text": [web.route("*", "/", text)],
}

if __name__ == "__main__":
    app = web.Application()
    app.add_routes(ROUTES[sys.argv[2]])
    tls = None
    if "https" in sys.argv:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*sys.argv[-2:])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), ssl_context=tls, access_log=None, print=None)
