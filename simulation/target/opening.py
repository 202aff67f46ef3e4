"""Opening the sales of a scenario at an engine, over HTTP as an operator would."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import msgspec

from engine.gate.client import connect_redis
from engine.model.sale import Sale, SaleTerms
from simulation.errors import EngineError, Unreadable
from simulation.model.formats import name_key, place_product
from simulation.scenario.schema import SaleOffer
from simulation.target.services import Services
from simulation.target.stores import TIMEOUT_MS, connect_ledger, read_within

TIMEOUT_S: Final = 30.0
_AGAIN_S: Final = 0.5
"""How soon a sale is asked for again while the engine can't open it."""
_NEW_SALES: Final = Path(__file__).with_name("new_sales.sql").read_text()


async def open_sales(
    url: str, offers: Sequence[SaleOffer], admin_token: str | None, t0_ns: int | None = None
) -> list[Sale]:
    """Open the sales over HTTP, in their order. Raises EngineError, in one line that says what to do.

    `starts_in_s` and `ends_in_s` count from the run's start `t0_ns`, on time.monotonic_ns(), or else
    from now. The engine is told the hours by this machine's clock, and keeps them by the gate's clock.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise EngineError(f"{url}: must look like http://host:port")
    headers = {"Authorization": f"Bearer {admin_token}"} if admin_token else {}
    ahead_ns = 0 if t0_ns is None else t0_ns - time.monotonic_ns()
    start_ms = (time.time_ns() + ahead_ns) / 1e6
    sales = []
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(TIMEOUT_S)) as session:
        for offer in offers:
            terms = SaleTerms(
                product_id=offer.product_id,
                stock=offer.stock,
                limit=offer.limit,
                quantity=offer.quantity,
                starts_ms=None if offer.starts_in_s is None else round(start_ms + offer.starts_in_s * 1e3),
                ends_ms=None if offer.ends_in_s is None else round(start_ms + offer.ends_in_s * 1e3),
            )
            sales.append(Sale(sale_id=await _open_sale(session, url.rstrip("/"), terms), terms=terms))
    return sales


async def _open_sale(session: aiohttp.ClientSession, url: str, terms: SaleTerms) -> int:
    query = {
        "productId": terms.product_id,
        "stock": terms.stock,
        "limit": terms.limit,
        "quantity": terms.quantity,
        "startsAt": terms.starts_ms,
        "endsAt": terms.ends_ms,
    }
    parameters = {name: str(value) for name, value in query.items() if value is not None}
    # One sale, however often it is asked for.
    headers = {"Idempotency-Key": uuid4().hex}
    until_s = time.monotonic() + TIMEOUT_S
    try:
        while True:
            async with session.post(f"{url}/purchase/init", params=parameters, headers=headers) as answer:
                body = await answer.read()
            if answer.status != 503 or time.monotonic() >= until_s:
                break
            await asyncio.sleep(_AGAIN_S)
        if answer.status in (401, 403):
            raise EngineError(f"{url} refuses to open a sale ({answer.status}): give its --admin-token")
        if answer.status != 200:
            raise EngineError(f"{url} answers {answer.status} to the opening of a sale: {body[:200]!r}")
        return int(msgspec.json.decode(body)["saleId"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(f"{url} can't be reached: {error or 'no answer in time'}") from None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        raise EngineError(f"{url}/purchase/init does not answer like Flashgrid: {body[:200]!r}") from None


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
            raise EngineError(f"the {name} given is not this engine's: it lacks a sale that was just opened")


async def _find_at_gate(services: Services, sales: Sequence[Sale], shards: int) -> set[int]:
    async with (
        connect_redis(services.redis_url, TIMEOUT_MS) as redis,
        redis.pipeline(transaction=False) as pipe,
    ):
        for sale in sales:
            product = sale.terms.product_id
            pipe.hget(name_key(place_product(product, shards), f"sale:{product}"), "sale_id")
        return {int(sale_id or 0) for sale_id in await pipe.execute()}


async def _find_in_ledger(services: Services, sales: Sequence[Sale]) -> set[int]:
    products = {sale.sale_id: sale.terms.product_id for sale in sales}
    async with connect_ledger(services.postgres_url) as connection:
        rows = await connection.fetch(_NEW_SALES, list(products))
    return {sale_id for sale_id, product_id in rows if products[sale_id] == product_id}
