"""The textbook flash sale, as books and talks on system design draw it: Redis decides, a queue remembers.

Each purchase runs one script in Redis (EVALSHA: check and decrement). A purchase that got a unit is published
to RabbitMQ as a persistent message and answered 200 once that is confirmed; where the publish fails, the unit
goes back. Every other purchase is answered 429. Any error is a 500. A consumer (textbook_consumer) writes
orders and stock to PostgreSQL, one message after the other. A stock that Redis does not know is loaded from
there.

`python -m simulation.bench.baselines.textbook PORT REDIS_URL AMQP_URL [POSTGRES_URL]`: one process on uvloop;
one pool of connections to Redis, one channel to RabbitMQ, no access log. Without PostgreSQL it only buys.
"""

import sys
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
import asyncpg
import msgspec
import uvloop
from aio_pika.abc import AbstractExchange
from aiohttp import web
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

QUEUE: Final = "textbook.orders"
MOST_REDIS_CONNECTIONS: Final = 10_000
"""One for each request under way: with the client's default of 100, one more is an error."""
_HOME: Final = files("simulation.bench.baselines")
_SCRIPT: Final = _HOME.joinpath("textbook.lua").read_text()
_SCHEMA: Final = _HOME.joinpath("textbook_schema.sql").read_text()
_OPEN, _LEFT, _ORDER, _STOCK, _ = _HOME.joinpath("textbook_front_door.sql").read_text().split(";")
_TAKE: Final = web.AppKey("take", AsyncScript)
_REDIS: Final = web.AppKey("redis", Redis)
_EXCHANGE: Final = web.AppKey("exchange", AbstractExchange)
_DATABASE: Final[web.AppKey[Any]] = web.AppKey("database")
UNKNOWN: Final = -1
"""What the script returns for a product whose stock Redis does not know."""


class Purchase(msgspec.Struct):
    """The body of a purchase."""

    userId: int  # noqa: N815 - the name in JSON
    productId: int  # noqa: N815


_purchase: Final = msgspec.json.Decoder(Purchase)


def stock_key(product_id: int) -> str:
    """Return the key that counts the units left."""
    return f"textbook:stock:{product_id}"


async def buy(request: web.Request) -> web.Response:
    """Check and decrement, publish, answer."""
    purchase = _purchase.decode(await request.read())
    key = stock_key(purchase.productId)
    taken = await request.app[_TAKE](keys=[key])
    if taken == UNKNOWN and await _load_stock(request.app, purchase.productId):
        taken = await request.app[_TAKE](keys=[key])
    if taken != 1:
        return _respond(429, {"status": "SOLD_OUT"})
    order_id = str(uuid4())
    order = {
        "orderId": order_id,
        "userId": purchase.userId,
        "productId": purchase.productId,
        "acceptedAt": time.time(),
    }
    message = aio_pika.Message(
        msgspec.json.encode(order),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    try:
        await request.app[_EXCHANGE].publish(message, QUEUE)
    except Exception:  # a channel that is closed, or a broker that refuses, or is gone
        await request.app[_REDIS].incr(key)
        raise
    return _respond(200, {"status": "ACCEPTED", "orderId": order_id})


async def init(request: web.Request) -> web.Response:
    """Open a sale: its stock goes to PostgreSQL, and from there to Redis."""
    product_id, stock = (int(request.query[name]) for name in ("productId", "stock"))
    await request.app[_DATABASE].execute(_OPEN, product_id, stock)
    await request.app[_REDIS].set(stock_key(product_id), stock)
    return _respond(200, {"productId": product_id, "stock": stock})


async def show_order(request: web.Request) -> web.Response:
    """Show an order; one that is not in PostgreSQL may be in the queue."""
    order_id = request.match_info["order_id"]
    status = await request.app[_DATABASE].fetchval(_ORDER, UUID(order_id))
    return _respond(200, {"orderId": order_id, "status": status or "PENDING"})


async def show_stock(request: web.Request) -> web.Response:
    """Show what was for sale, and what Redis has left of it."""
    product_id = int(request.query["productId"])
    stock = await request.app[_DATABASE].fetchval(_STOCK, product_id)
    if stock is None:
        return _respond(404, {})
    left = int(await request.app[_REDIS].get(stock_key(product_id)) or 0)
    return _respond(200, {"initial": stock, "remaining": left, "sold": stock - left})


async def _load_stock(app: web.Application, product_id: int) -> bool:
    """Put what PostgreSQL has left into Redis, unless somebody else did; return whether there is a stock."""
    if (database := app.get(_DATABASE)) is None:
        return False
    left = await database.fetchval(_LEFT, product_id)
    if left is None:
        return False
    await app[_REDIS].set(stock_key(product_id), left, nx=True)
    return True


def _respond(status: int, body: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


def make_app(redis_url: str, amqp_url: str, postgres_url: str | None = None) -> web.Application:
    """Return the application, which connects when it starts."""

    async def connect(app: web.Application) -> AsyncIterator[None]:
        redis = Redis.from_url(redis_url, max_connections=MOST_REDIS_CONNECTIONS)
        async with await aio_pika.connect_robust(amqp_url) as connection, redis:
            channel = await connection.channel(publisher_confirms=True)
            await channel.declare_queue(QUEUE, durable=True)
            app[_EXCHANGE] = channel.default_exchange
            app[_REDIS] = redis
            app[_TAKE] = redis.register_script(_SCRIPT)
            yield

    async def connect_database(app: web.Application) -> AsyncIterator[None]:
        async with asyncpg.create_pool(postgres_url, min_size=1, max_size=5) as pool:
            await pool.execute(_SCHEMA)
            app[_DATABASE] = pool
            yield

    app = web.Application()
    app.router.add_post("/purchase/buy", buy)
    app.cleanup_ctx.append(connect)
    if postgres_url is not None:
        app.router.add_post("/purchase/init", init)
        app.router.add_get("/purchase/orders/{order_id}", show_order)
        app.router.add_get("/purchase/stock", show_stock)
        app.cleanup_ctx.append(connect_database)
    return app


def main() -> None:
    """Serve on loopback until SIGTERM."""
    port, *urls = sys.argv[1:]
    web.run_app(
        make_app(*urls),
        host="127.0.0.1",
        port=int(port),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
