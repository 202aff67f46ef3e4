"""The textbook flash sale, as books and talks on system design draw it: Redis decides, a queue remembers.

Each purchase runs one script in Redis (EVALSHA: check and decrement). A purchase that got a unit is published
to RabbitMQ as a persistent message and answered 200 once that is confirmed; where the publish fails, the unit
goes back. Every other purchase is answered 429. Any error is a 500.

`python -m simulation.bench.baselines.textbook PORT REDIS_URL AMQP_URL`: one process on uvloop; one pool of
connections to Redis, one channel to RabbitMQ, no access log.
"""

import sys
from collections.abc import AsyncIterator
from importlib.resources import files
from typing import Final
from uuid import uuid4

import aio_pika
import msgspec
import uvloop
from aio_pika.abc import AbstractExchange
from aio_pika.exceptions import AMQPError
from aiohttp import web
from redis.asyncio import Redis
from redis.commands.core import AsyncScript

QUEUE: Final = "textbook.orders"
MOST_REDIS_CONNECTIONS: Final = 10_000
"""One for each request under way: with the client's default of 100, one more is an error."""
_SCRIPT: Final = files("simulation.bench.baselines").joinpath("textbook.lua").read_text()
_TAKE: Final = web.AppKey("take", AsyncScript)
_REDIS: Final = web.AppKey("redis", Redis)
_EXCHANGE: Final = web.AppKey("exchange", AbstractExchange)


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
    if not await request.app[_TAKE](keys=[key]):
        return _respond(429, {"status": "SOLD_OUT"})
    order_id = str(uuid4())
    order = {"orderId": order_id, "userId": purchase.userId, "productId": purchase.productId}
    message = aio_pika.Message(
        msgspec.json.encode(order),
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )
    try:
        await request.app[_EXCHANGE].publish(message, QUEUE)
    except AMQPError:
        await request.app[_REDIS].incr(key)
        raise
    return _respond(200, {"status": "ACCEPTED", "orderId": order_id})


def _respond(status: int, body: dict[str, str]) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")


def make_app(redis_url: str, amqp_url: str) -> web.Application:
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

    app = web.Application()
    app.router.add_post("/purchase/buy", buy)
    app.cleanup_ctx.append(connect)
    return app


def main() -> None:
    """Serve on loopback until SIGTERM."""
    port, redis_url, amqp_url = sys.argv[1:]
    web.run_app(
        make_app(redis_url, amqp_url),
        host="127.0.0.1",
        port=int(port),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
