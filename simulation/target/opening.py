"""Opening the sales of a scenario at an engine, over HTTP as an operator would."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import msgspec
from redis.exceptions import RedisError

from engine.gate.client import connect_redis
from engine.gate.keys import ShardKeys, shard_of
from engine.model.sale import Sale, SaleTerms
from simulation.errors import EngineError
from simulation.model.events import Restocked
from simulation.scenario.schema import Restock, SaleOffer
from simulation.target.services import Services

TIMEOUT_S: Final = 30.0
_NEW_SALES: Final = Path(__file__).with_name("new_sales.sql").read_text()


async def open_sales(
    url: str, offers: Sequence[SaleOffer], admin_token: str | None, t0_ns: int | None = None
) -> list[Sale]:
    """Opens the sales over HTTP, in their order. Raises EngineError, in one line that says what to do.

    `t0_ns` is the run's start on time.monotonic_ns(), from which `starts_in_s` counts; now if there is none.
    The engine is told the moment by this machine's clock, and opens the doors by the gate's.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise EngineError(f"{url}: must look like http://host:port")
    headers = {"Authorization": f"Bearer {admin_token}"} if admin_token else {}
    sales = []
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        for offer in offers:
            terms = SaleTerms(
                product_id=offer.product_id,
                stock=offer.stock,
                limit=offer.limit,
                quantity=offer.quantity,
                starts_ms=None if offer.starts_in_s is None else _unix_ms(t0_ns, offer.starts_in_s),
            )
            sales.append(Sale(sale_id=await _open_sale(session, url.rstrip("/"), terms), terms=terms))
    return sales


class Restocker:
    """Opens the restocks of one run, each at its time and on the terms of the sale that it replaces."""

    def __init__(
        self, restocks: Sequence[Restock], sales: list[Sale], url: str, admin_token: str | None
    ) -> None:
        """`sales` are those that are open; a restock joins them."""
        self._restocks = sorted(restocks, key=lambda restock: restock.at_s)
        self._sales = sales
        self._url = url
        self._admin_token = admin_token
        self._done: list[Restocked] = []
        self._t0_ns: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._over = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="restocker")

    def begin(self, t0_ns: int) -> None:
        """The run's start, on time.monotonic_ns(), is known; may be said more than once."""
        if not self._t0_ns.done():
            self._t0_ns.set_result(t0_ns)

    async def finish(self) -> list[Restocked]:
        """The load is over: opens no more, and waits for one under way. Raises EngineError."""
        self._over.set()
        await self._task
        return self._done

    async def abandon(self) -> None:
        """Opens no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        t0_ns = await self._t0_ns
        for restock in self._restocks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), restock.at_s - _since(t0_ns))
                return
            at_s = _since(t0_ns)
            terms = next(sale.terms for sale in self._sales if sale.terms.product_id == restock.product_id)
            offer = SaleOffer(
                product_id=restock.product_id,
                stock=restock.stock,
                limit=terms.limit,
                quantity=terms.quantity,
            )
            (sale,) = await open_sales(self._url, [offer], self._admin_token)
            self._sales.append(sale)
            self._done.append(
                Restocked(
                    at_s=round(at_s, 3),
                    opened_s=round(_since(t0_ns), 3),
                    product_id=restock.product_id,
                    stock=restock.stock,
                    sale_id=sale.sale_id,
                )
            )


def _since(t0_ns: int) -> float:
    return (time.monotonic_ns() - t0_ns) / 1e9


def _unix_ms(t0_ns: int | None, after_s: float) -> int:
    ahead_ns = 0 if t0_ns is None else t0_ns - time.monotonic_ns()
    return round((time.time_ns() + ahead_ns) / 1e6 + after_s * 1e3)


async def _open_sale(session: aiohttp.ClientSession, url: str, terms: SaleTerms) -> int:
    query = {
        "productId": terms.product_id,
        "stock": terms.stock,
        "limit": terms.limit,
        "quantity": terms.quantity,
        "startsAt": terms.starts_ms,
    }
    parameters = {name: str(value) for name, value in query.items() if value is not None}
    try:
        async with session.post(f"{url}/purchase/init", params=parameters) as answer:
            body = await answer.read()
            if answer.status in (401, 403):
                raise EngineError(
                    f"{url} does not let us open a sale ({answer.status}): give its --admin-token"
                )
            if answer.status != 200:
                raise EngineError(f"{url} answers {answer.status} when a sale is opened: {body[:200]!r}")
            return int(msgspec.json.decode(body)["saleId"])
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(f"{url} can't be reached: {error or 'no answer in time'}") from None
    except (msgspec.DecodeError, KeyError, TypeError, ValueError):
        raise EngineError(f"{url}/purchase/init does not answer like Flashgrid: {body[:200]!r}") from None


async def check_ownership(services: Services, sales: Sequence[Sale], shards: int) -> None:
    """Raises EngineError unless these services hold the sales that the engine has just opened: a final state
    read from the services of another engine would judge the wrong one."""
    try:
        found = {
            "Redis": await _at_gate(services, sales, shards),
            "PostgreSQL": await _in_ledger(services, sales),
        }
    except (RedisError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise EngineError(f"the engine's services can't be read: {error or type(error).__name__}") from None
    for name, sale_ids in found.items():
        if sale_ids != [sale.sale_id for sale in sales]:
            raise EngineError(f"the {name} given is not this engine's: it lacks a sale that was just opened")


async def _at_gate(services: Services, sales: Sequence[Sale], shards: int) -> list[int]:
    async with (
        connect_redis(services.redis_url, round(TIMEOUT_S * 1000)) as redis,
        redis.pipeline(transaction=False) as pipe,
    ):
        for sale in sales:
            product = sale.terms.product_id
            pipe.hget(ShardKeys(shard_of(product, shards)).sale(product), "sale_id")
        return [int(sale_id or 0) for sale_id in await pipe.execute()]


async def _in_ledger(services: Services, sales: Sequence[Sale]) -> list[int]:
    connection = await asyncpg.connect(services.postgres_url, timeout=TIMEOUT_S)
    try:
        rows = await connection.fetch(_NEW_SALES, [sale.sale_id for sale in sales])
    finally:
        await connection.close()
    found = {(sale_id, product_id) for sale_id, product_id in rows}
    return [sale.sale_id for sale in sales if (sale.sale_id, sale.terms.product_id) in found]
