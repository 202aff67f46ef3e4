"""An aiohttp application that does nothing but answer every purchase with the engine's own 429.

`python -m simulation.bench.baselines.bare PORT`: one process, on uvloop, without an access log.
"""

import sys

import uvloop
from aiohttp import web

from engine.http.answers import JSON, answer_purchase
from engine.model.purchase import Outcome

SOLD_OUT = answer_purchase(Outcome.SOLD_OUT, None)


async def refuse(_request: web.Request) -> web.Response:
    """Answer that the sale is sold out."""
    return web.Response(status=SOLD_OUT.status, body=SOLD_OUT.body, content_type=JSON)


def main() -> None:
    """Serve on loopback until SIGTERM."""
    app = web.Application()
    app.router.add_post("/purchase/buy", refuse)
    web.run_app(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )


if __name__ == "__main__":
    main()
