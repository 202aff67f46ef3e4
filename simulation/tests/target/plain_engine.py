"""An engine with a plain contract and tables of its own: 200 or 429, and nothing worth reading.

`python plain_engine.py PORT POSTGRES_URL [oversell] [tokens FILE] [https CERTIFICATE KEY]`

The file has rows of user,token; a purchase then needs the token of its buyer, and so does a look at the
order, which the answer names.
"""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
from aiohttp import web

SCHEMA = Path(__file__).with_name("plain_engine.sql").read_text()
POOL: web.AppKey[Any] = web.AppKey("pool")
LOCK = web.AppKey("lock", asyncio.Lock)
SPARE = web.AppKey("spare", int)
TOKENS = web.AppKey("tokens", dict[str, str])


async def init(request: web.Request) -> web.Response:
    item, amount = int(request.query["item"]), int(request.query["amount"])
    async with request.app[POOL].acquire() as connection, connection.transaction():
        await connection.execute("DELETE FROM units_sold WHERE item = $1", item)
        await connection.execute(
            "INSERT INTO items VALUES ($1, $2) ON CONFLICT (item) DO UPDATE SET amount = $2", item, amount
        )
    return web.Response(status=204)


def may(request: web.Request, buyer: Any) -> bool:
    tokens = request.app[TOKENS]
    mine = tokens.get(str(buyer), "nobody") if tokens else f"user-{buyer}"
    return request.headers.get("Authorization") == f"Bearer {mine}"


async def buy(request: web.Request) -> web.Response:
    wanted = await request.json()
    if not may(request, wanted["buyer"]):
        return web.Response(status=401)
    item = int(wanted["item"])
    async with request.app[LOCK], request.app[POOL].acquire() as connection:
        sold = await connection.fetchval("SELECT count(*) FROM units_sold WHERE item = $1", item)
        amount = await connection.fetchval("SELECT amount FROM items WHERE item = $1", item)
        if sold >= amount + request.app[SPARE]:
            return web.Response(status=429)
        unit = await connection.fetchval(
            "INSERT INTO units_sold (buyer, item) VALUES ($1, $2) RETURNING id", int(wanted["buyer"]), item
        )
    return web.json_response({"order": unit}, status=201) if request.app[TOKENS] else web.Response()


async def show(request: web.Request) -> web.Response:
    async with request.app[POOL].acquire() as connection:
        buyer = await connection.fetchval(
            "SELECT buyer FROM units_sold WHERE id = $1", int(request.match_info["id"])
        )
    return web.json_response({"state": "PAID"}) if may(request, buyer) else web.Response(status=401)


async def connect(app: web.Application) -> AsyncIterator[None]:
    async with asyncpg.create_pool(sys.argv[2], min_size=1, max_size=2) as app[POOL]:
        await app[POOL].execute(SCHEMA)
        yield


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.post("/init", init), web.post("/buy", buy), web.get("/orders/{id}", show)])
    app.cleanup_ctx.append(connect)
    app[LOCK], app[SPARE] = asyncio.Lock(), 5 if "oversell" in sys.argv else 0
    app[TOKENS] = {}
    if "tokens" in sys.argv:
        rows = Path(sys.argv[sys.argv.index("tokens") + 1]).read_text().splitlines()
        app[TOKENS] = dict(row.split(",") for row in rows)
    tls = None
    if "https" in sys.argv:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*sys.argv[-2:])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), ssl_context=tls, access_log=None, print=None)
