"""Opening the sales of a scenario at an engine, over HTTP as an operator would."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
from yarl import URL

from engine.model.sale import Sale, SaleTerms
from simulation.errors import EngineError, Unreadable
from simulation.model.contract import FLASHGRID, Contract, Init, Request
from simulation.model.formats import name_key, place_product
from simulation.model.places import find_in
from simulation.model.requests import fill
from simulation.scenario.schema import SaleOffer
from simulation.target.services import Services
from simulation.target.stores import connect_ledger, open_gate, read_within

TIMEOUT_S: Final = 30.0
AT_ONCE: Final = 50
"""Most requests at the same time."""
_AGAIN_S: Final = 0.5
"""How soon a sale is asked for again while the engine can't open it."""
_NEW_SALES: Final = Path(__file__).with_name("new_sales.sql").read_text()


class Answer(NamedTuple):
    """An engine's answer."""

    status: int
    body: bytes
    head: bytes


async def open_sales(
    urls: tuple[str, ...],
    offers: Sequence[SaleOffer],
    admin_token: str | None,
    t0_ns: int | None = None,
    contract: Contract = FLASHGRID,
    ca: str | None = None,
) -> list[Sale]:
    """Open the sales over HTTP, in their order, at any of these front doors.

    Raises EngineError, in one line that says what to do.

    `starts_in_s` and `ends_in_s` count from the run's start `t0_ns`, on time.monotonic_ns(), or else
    from now. The engine is told the hours by this machine's clock, and keeps them by the gate's clock. `ca`
    is a file of certificates for https; None: the system's.
    """
    for url in urls:
        check_url(url)
    ahead_ns = 0 if t0_ns is None else t0_ns - time.monotonic_ns()
    start_ms = (time.time_ns() + ahead_ns) / 1e6
    sales = []
    async with connect(ca) as session:
        for offer in offers:
            terms = SaleTerms(
                product_id=offer.product_id,
                stock=offer.stock,
                limit=offer.limit,
                quantity=offer.quantity,
                starts_ms=None if offer.starts_in_s is None else round(start_ms + offer.starts_in_s * 1e3),
                ends_ms=None if offer.ends_in_s is None else round(start_ms + offer.ends_in_s * 1e3),
            )
            sale_id = await _open_sale(session, urls, terms, admin_token, contract.init)
            sales.append(Sale(sale_id=sale_id, terms=terms))
    return sales


def check_url(url: str) -> None:
    """Raise EngineError unless a URL is that of a server, and perhaps of a path there."""
    try:
        parts = urlsplit(url)
        is_server = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        is_server = False
    if not is_server or parts.query or parts.fragment or not url.isprintable() or " " in url:
        raise EngineError(f"{url}: must look like http://host:port or https://host:port")


@asynccontextmanager
async def connect(ca: str | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """Open a session for requests to an engine. Raises EngineError if `ca` is of no use."""
    try:
        tls = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise EngineError(f"{ca}: can't be used as certificates: {error.strerror or error}") from None
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(TIMEOUT_S),
        connector=aiohttp.TCPConnector(ssl=tls, limit=AT_ONCE),
        # As the load sends: what the contract says, and nothing else.
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
    ) as session:
        yield session


async def send(session: aiohttp.ClientSession, url: str, request: Request, **values: Any) -> Answer:
    """Send a request of the contract to the engine at `url`. Raises EngineError."""
    path, headers, body = fill(request, **values)
    try:
        async with session.request(
            request.method,
            URL(url + path, encoded=True),
            headers=headers,
            data=body or None,
            allow_redirects=False,
        ) as answer:
            head = b"\r\n".join(name + b": " + value for name, value in answer.raw_headers)
            return Answer(answer.status, await answer.read(), head)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(f"{url} can't be reached: {error or 'no answer in time'}") from None


async def _open_sale(
    session: aiohttp.ClientSession,
    urls: tuple[str, ...],
    terms: SaleTerms,
    admin_token: str | None,
    init: Init,
) -> int:
    values = {name: getattr(terms, name) for name in terms.__struct_fields__}
    # One sale, however often it is asked for.
    values |= {"admin_token": admin_token, "key": uuid4().hex}
    until_s = time.monotonic() + TIMEOUT_S
    for each in cycle(urls):
        url, is_late = each.rstrip("/"), time.monotonic() >= until_s
        try:
            status, body, head = await send(session, url, init, **values)
            if status != 503 or is_late:
                break
        except EngineError:
            if len(urls) == 1 or is_late:
                raise
        await asyncio.sleep(_AGAIN_S)
    if status in (401, 403):
        raise EngineError(f"{url} refuses to open a sale ({status}): give its --admin-token")
    if not 200 <= status < 300:
        raise EngineError(f"{url} answers {status} to the opening of a sale: {body[:200]!r}")
    if init.sale_id is None:
        return terms.product_id
    try:
        return int(find_in(init.sale_id, body, head))
    except (TypeError, ValueError):
        raise EngineError(
            f"{url}{init.path} names no sale at {init.sale_id} in its answer: {body[:200]!r}"
        ) from None


async def check_ownership(services: Services, sales: Sequence[Sale], shards: int) -> None:
    """Raise EngineError unless these services hold the sales that the engine has just opened.

    The final state of another engine's services would judge the wrong engine.
    """
    try:
        found = {
            "Redis": await read_within(_find_at_gate(services, sales, shards), TIMEOUT_S),
            "PostgreSQL": await read_within(_find_in_ledger(services, sales), TIMEOUT_S),
        }
    except Unreadable as error:
        raise EngineError(f"the engine's services can't be read: {error}") from None
    for name, sale_ids in found.items():
        if sale_ids != {sale.sale_id for sale in sales}:
            or_else = f", or has not {shards} shards (topology.shards)" if name == "Redis" else ""
            raise EngineError(
                f"the {name} given is not this engine's{or_else}: it lacks a sale that was just opened"
            )


async def _find_at_gate(services: Services, sales: Sequence[Sale], shards: int) -> set[int]:
    found: set[int] = set()
    async with open_gate(services.redis_url, shards) as gate:
        for shard, redis in enumerate(gate):
            products = [sale.terms.product_id for sale in sales]
            pipe = redis.pipeline(transaction=False)
            for product in [each for each in products if place_product(each, shards) == shard]:
                pipe.hget(name_key(shard, f"sale:{product}", shards), "sale_id")
            found |= {int(sale_id or 0) for sale_id in await pipe.execute()}
    return found


async def _find_in_ledger(services: Services, sales: Sequence[Sale]) -> set[int]:
    products = {sale.sale_id: sale.terms.product_id for sale in sales}
    async with connect_ledger(services.postgres_url) as connection:
        rows = await connection.fetch(_NEW_SALES, list(products))
    return {sale_id for sale_id, product_id in rows if products[sale_id] == product_id}
