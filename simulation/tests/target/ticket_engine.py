"""An engine with another contract: form bodies, 202 and a ticket to ask for with its id in `Location`, the
stock in header fields.

`python ticket_engine.py PORT POSTGRES_URL [WORD...]`: the loser (`lose`) answers as the other does, and
writes no ticket, or only the `first` one; it may write a row elsewhere for each purchase (`log`), which may
name the ticket (`named`), and say as little of a missing ticket as of a missing path (`mute`). The overseller
(`oversell`) sells five units too many; the keeper (`keep`) leaves the tickets of earlier sales.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
from aiohttp import web

SCHEMA = Path(__file__).with_name("ticket_engine.sql").read_text()
POOL: web.AppKey[Any] = web.AppKey("pool")
LEFT = web.AppKey("left", dict[int, list[int]])
NAMES = web.AppKey("names", dict[str, str])
QUEUE: web.AppKey[Any] = web.AppKey("queue")


async def read_form(request: web.Request) -> dict[str, str]:
    return {name: str(value) for name, value in (await request.post()).items()}


async def offer(request: web.Request) -> web.Response:
    sku, units = int(request.match_info["sku"]), int((await read_form(request))["units"])
    async with request.app[POOL].acquire() as connection, connection.transaction():
        if "keep" not in sys.argv:
            await connection.execute("DELETE FROM tickets WHERE sku = $1", sku)
        await connection.execute(
            "INSERT INTO offers VALUES ($1, $2) ON CONFLICT (sku) DO UPDATE SET units = $2", sku, units
        )
    request.app[LEFT][sku] = [units, 0]
    return web.Response(status=201, headers={"Location": f"/offers/{sku}"})


async def buy(request: web.Request) -> web.Response:
    wanted, app = await read_form(request), request.app
    sku, key = int(wanted["sku"]), request.headers.get("X-Request-Id")
    ticket = app[NAMES].get(key) if key else None
    if ticket is None and app[LEFT][sku][0] <= (-5 if "oversell" in sys.argv else 0):
        return web.Response(status=410, text="gone")
    if ticket is None:
        app[LEFT][sku][0] -= 1
        app[LEFT][sku][1] += 1
        ticket = str(uuid4()).upper()
        app[NAMES][key or ticket] = ticket
        if is_kept(app, ticket):
            app[QUEUE].put_nowait((ticket, int(wanted["who"]), sku, key))
        elif "log" in sys.argv:
            named = ticket if "named" in sys.argv else None
            await app[POOL].execute("INSERT INTO log VALUES ($1, $2)", int(wanted["who"]), named)
    headers = {"Location": f"/tickets/{ticket}", "X-Trace": uuid4().hex}
    return web.Response(status=202, text="queued", headers=headers)


def is_kept(app: web.Application, ticket: str) -> bool:
    first = next(iter(app[NAMES].values()), None)
    return "lose" not in sys.argv or ("first" in sys.argv and ticket == first)


async def show_ticket(request: web.Request) -> web.Response:
    ticket = request.match_info["ticket"]
    found = await request.app[POOL].fetchval("SELECT who FROM tickets WHERE id = $1", ticket)
    if found is not None:
        return web.json_response({"ticket": {"state": "sold"}})
    if ticket in request.app[NAMES].values() and is_kept(request.app, ticket):
        return web.json_response({"ticket": {"state": "queued"}}, status=202)
    if "mute" in sys.argv:
        raise web.HTTPNotFound
    return web.json_response({"error": "no such ticket"}, status=404)


async def show_offer(request: web.Request) -> web.Response:
    left, sold = request.app[LEFT][int(request.match_info["sku"])]
    return web.Response(headers={"X-Units-Left": str(left), "X-Units-Sold": str(sold)})


async def write(app: web.Application) -> None:
    while True:
        await app[POOL].execute("INSERT INTO tickets VALUES ($1, $2, $3, $4)", *await app[QUEUE].get())


async def work(app: web.Application) -> AsyncIterator[None]:
    app[QUEUE] = asyncio.Queue()
    async with asyncpg.create_pool(sys.argv[2], min_size=1, max_size=2) as app[POOL]:
        await app[POOL].execute(SCHEMA)
        writer = asyncio.create_task(write(app))
        yield
        writer.cancel()


if __name__ == "__main__":
    app = web.Application()
    app[LEFT], app[NAMES] = {}, {}
    app.add_routes(
        [
            web.put("/offers/{sku}", offer),
            web.get("/offers/{sku}", show_offer),
            web.post("/basket", buy),
            web.get("/tickets/{ticket}", show_ticket),
        ]
    )
    app.cleanup_ctx.append(work)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
