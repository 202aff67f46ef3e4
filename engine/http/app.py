"""The front door: the HTTP service (aiohttp) that opens sales, sells, and shows orders and stock."""

import asyncio
import hmac
import logging
import re
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from typing import Final

from aiohttp import HttpVersion10, HttpVersion11, web
from aiohttp.typedefs import Handler

from engine.errors import GateUnavailable, InputError, LedgerUnavailable, OutcomeUnknown
from engine.gate.gate import Gate
from engine.http.answers import (
    JSON,
    Answer,
    answer_input_error,
    answer_opening,
    answer_purchase,
    answer_sale,
    make_problem,
    respond,
    respond_http_error,
    respond_json,
)
from engine.http.looking import LOOK_SHARE, Looking, Reply
from engine.http.opening import open_sale
from engine.http.readiness import Readiness
from engine.http.requests import (
    MAX_BODY_BYTES,
    is_loopback,
    parse_buy,
    parse_key,
    parse_order_id,
    parse_product,
    parse_terms,
)
from engine.ledger.ledger import Ledger
from engine.metrics import render_metrics
from engine.settings import PREFIX, Settings

log = logging.getLogger(__name__)

HOST_PORT: Final = re.compile(r":[0-9]*$")
LEAVING: Final = web.AppKey("leaving", asyncio.Event)
"""Set once nobody else may connect."""


class FrontDoor:
    """The handlers of all requests."""

    def __init__(
        self,
        settings: Settings,
        gate: Gate,
        ledger: Ledger,
        looking: Looking,
        retiring: asyncio.Event | None = None,
    ) -> None:
        self._admin_token = settings.admin_token
        self._dev = settings.dev
        self._client_timeout_s = settings.client_timeout_ms / 1000
        self._look_s = settings.look_timeout_ms / 1000 * LOOK_SHARE
        self._gate = gate
        self._looking = looking
        self._retiring = retiring or asyncio.Event()
        self._ledger = ledger
        self.readiness = Readiness(gate, ledger, settings.amqp_url)
        self._openapi = files("engine.http").joinpath("openapi.json").read_bytes()

    def make_app(self, buyers: bool = True, operations: bool = True) -> web.Application:
        """Return the aiohttp application for buyers, for operations, or for both."""
        # aiohttp refuses a body as soon as it is longer than this.
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[take_leave, answer_errors])
        app[LEAVING] = asyncio.Event()
        app.router.add_get("/healthz", self.show_health)
        app.router.add_options("/healthz", self.show_health)  # HAProxy checks with OPTIONS
        if buyers:
            app.router.add_post("/purchase/buy", self.buy)
            app.router.add_get("/purchase/orders/{order_id:[^/]+}", self.show_order)
            app.router.add_get("/purchase/stock", self.show_stock)
            app.router.add_get("/openapi.json", self.show_openapi)
        if operations:
            app.on_cleanup.append(self.readiness.close)
            app.router.add_post("/purchase/init", self.open_sale)
            app.router.add_get("/readyz", self.show_readiness)
            app.router.add_options("/readyz", self.show_readiness)
            app.router.add_get("/metrics", self.show_metrics)
        return app

    async def buy(self, request: web.Request) -> web.Response:
        """Validate a purchase, put it into the gate's batch, and answer what the gate said."""
        if request.content_type != JSON:
            raise InputError("Content-Type", f"must be {JSON}", 415)
        key = parse_key(request.headers.getall("Idempotency-Key", []))
        try:
            async with asyncio.timeout(self._client_timeout_s):
                body = await request.read()
        except TimeoutError:
            raise InputError("body", "did not arrive in time", 408) from None
        except RuntimeError:
            # aiohttp raises this if the client had gone before the reading began.
            raise ConnectionResetError("the client has gone") from None
        user_id, product_id = map(int, parse_buy(body))
        return respond(answer_purchase(*await self._gate.reserve(user_id, product_id, key)))

    async def open_sale(self, request: web.Request) -> web.Response:
        """Open a new sale, or answer with the one that the same key has opened."""
        self._check_admin(request)
        terms = parse_terms(request.query)
        key = parse_key(request.headers.getall("Idempotency-Key", []))
        try:
            sale = await open_sale(self._gate, self._ledger, terms, key, self._look_s)
        except (GateUnavailable, LedgerUnavailable, OutcomeUnknown) as error:
            log.warning("a sale of product %d was not opened: %s", terms.product_id, error)
            return respond(answer_opening(error, key is not None))
        log.info("sale %d opened: %d units of product %d", sale.sale_id, terms.stock, terms.product_id)
        return respond(answer_sale(sale))

    async def show_order(self, request: web.Request) -> web.Response:
        """Show the status of an order."""
        order_id = parse_order_id(request.match_info["order_id"])
        return await _wait_for(partial(self._looking.show, order_id))

    async def show_stock(self, request: web.Request) -> web.Response:
        """Show initial, remaining and sold units of a product's current sale."""
        return await _wait_for(partial(self._looking.show, parse_product(request.query)))

    async def show_health(self, _request: web.Request) -> web.Response:
        """Show that this process lives."""
        return respond_json({"status": "OK"})

    async def show_readiness(self, _request: web.Request) -> web.Response:
        """Show whether this process can sell, and what each service says."""
        obstacle, services = await self.readiness.read()
        stages = self.readiness.stages
        if self._retiring.is_set():
            return respond(make_problem(503, "Not ready", "the server stops", "STOPPING", retry=True))
        if not obstacle:
            return respond_json({"status": "READY", "services": services, "stages": stages})
        return respond(
            make_problem(
                503, "Not ready", obstacle, "GATE_UNAVAILABLE", retry=True, services=services, stages=stages
            )
        )

    async def show_metrics(self, _request: web.Request) -> web.Response:
        """Show the metrics of every process of this server, in Prometheus' text format."""
        return respond(
            Answer(200, await asyncio.to_thread(render_metrics), "text/plain; version=0.0.4; charset=utf-8")
        )

    async def show_openapi(self, _request: web.Request) -> web.Response:
        """Show the OpenAPI document of this service."""
        return respond(Answer(200, self._openapi))

    def _check_admin(self, request: web.Request) -> None:
        """Raise InputError unless the caller may open a sale."""
        if self._admin_token is not None:
            scheme, _, token = request.headers.get("Authorization", "").partition(" ")
            given = token.encode(errors="surrogateescape")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given, self._admin_token.encode()):
                raise InputError("Authorization", "must be Bearer with the admin token", 401)
            return
        if not self._dev:
            raise InputError(
                "Authorization", f"nobody may open a sale: set {PREFIX}ADMIN_TOKEN, or serve with --dev", 403
            )
        peer = request.transport.get_extra_info("peername") if request.transport else None
        if not peer or not is_loopback(peer[0]):
            raise InputError("Authorization", "without an admin token only loopback may open a sale", 403)
        if not is_loopback(HOST_PORT.sub("", request.host).strip("[]")):
            # A name that leads here from a web page, or through a proxy.
            raise InputError("Host", "must be this machine's loopback, without an admin token", 403)
        if request.version == HttpVersion10:
            raise InputError("version", "nginx speaks HTTP/1.0: a proxy needs an admin token", 403)
        for name in ("Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Via", "Origin"):
            # Nor must a page in a browser on this machine (Origin) open sales for the page's author.
            if name in request.headers:
                raise InputError(name, "a proxy or a web page may open a sale only with an admin token", 403)


async def _wait_for(look: Callable[[Reply], None]) -> web.Response:
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def reply(answer: Answer) -> None:
        if not future.done():
            future.set_result(answer)

    look(reply)
    return respond(await future)


@web.middleware
async def take_leave(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Tell the clients of a front door that is leaving to connect anew (RFC 9112, 9.6).

    So do clients that ask for another protocol: aiohttp reads nothing after such a request.
    """
    response = await handler(request)
    if request.app[LEAVING].is_set() or "Upgrade" in request.headers:
        response.force_close()
    return response


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn errors into problem documents."""
    if request.version not in (HttpVersion10, HttpVersion11) and request.transport is not None:
        # aiohttp answers in the version of the request, which here no client could read.
        request.transport.abort()
        return respond(answer_input_error(InputError("version", "must be HTTP/1.0 or HTTP/1.1")))
    try:
        return await handler(request)
    except (web.RequestPayloadError, ConnectionError):
        # If the connection is lost, nobody receives this.
        response = respond(answer_input_error(InputError("body", "can't be read")))
        response.force_close()
        return response
    except InputError as error:
        response = respond(answer_input_error(error))
        if error.status == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        if error.status == 408:
            response.force_close()
        return response
    except web.HTTPRequestEntityTooLarge:
        return respond(answer_input_error(InputError("body", f"must be at most {MAX_BODY_BYTES} bytes", 413)))
    except web.HTTPException as error:
        if request.method == "OPTIONS" and request.path in ("*", "/"):
            # This asks for the server itself (RFC 9110, 9.3.7), as HAProxy does where it is told no path.
            return respond_json({"status": "OK"})
        response = respond_http_error(error)
        if request.method == "CONNECT":
            # How the bytes behind it are framed is unknown.
            response.force_close()
        return response
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        return respond(make_problem(500, "Internal error", "this is a bug", "INTERNAL_ERROR"))
