"""The ledger: PostgreSQL, the source of truth of what was sold."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final, NamedTuple, Self

import asyncpg
import msgspec

from engine.errors import LedgerUnavailable
from engine.metrics import LEDGER_BATCH, LEDGER_SECONDS, ORDERS
from engine.reservation import Order, OrderStatus, Poison, Reservation
from engine.sale import Sale, SaleTerms

log = logging.getLogger(__name__)

_SCHEMA: Final = files("engine").joinpath("schema.sql").read_text()
_QUERIES: Final = dict(
    re.findall(r"^-- name: (\w+)\n(.+?);$", files("engine").joinpath("queries.sql").read_text(), re.M | re.S)
)
_STATUSES: Final = {status.value: status for status in OrderStatus}

# The record is at fault, and would be again.
_RECORD_ERRORS: Final = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, ValueError)
# Everything else: the connection, the server, or a statement that it gave up on. The client calls it an
# internal error if the server says goodbye at a bad moment.
_SERVER_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class Settlement(msgspec.Struct, frozen=True):
    """What became of a batch."""

    settled: list[Order] = []
    """Orders that this call wrote."""
    repeated: list[Order] = []
    """Orders that were settled before, as they stand."""
    poison: list[Poison] = []
    """Records that the ledger can't take."""


class Balance(NamedTuple):
    """A product's current sale, and how many of its units are confirmed."""

    sale: Sale
    sold: int


class Answered(NamedTuple):
    """An order that was accepted under an Idempotency-Key."""

    order_id: str
    product_id: int
    user_id: int
    key: str
    age_s: float
    """Since it was accepted."""


class Ledger:
    """Sales and settled orders. Every method raises LedgerUnavailable while PostgreSQL can't do its work."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool

    @classmethod
    async def connect(cls, url: str, connections: int = 4, timeout_ms: int = 10_000) -> Self:
        """A ledger at a postgresql:// URL. Connections are made when they are needed, at most `connections`.

        `timeout_ms` bounds the connect and every statement.
        """
        timeout_s = timeout_ms / 1000
        return cls(
            await asyncpg.create_pool(
                url, min_size=0, max_size=connections, timeout=timeout_s, command_timeout=timeout_s
            )
        )

    async def close(self) -> None:
        """Close the connections, the busy ones too."""
        try:
            await asyncio.wait_for(self._pool.close(), 1)
        except TimeoutError:
            self._pool.terminate()

    async def create_schema(self) -> None:
        """Create what is missing of tables and functions; any number of processes may do so at once."""
        try:
            await self._pool.execute(_SCHEMA)
        except _SERVER_ERRORS as error:
            raise LedgerUnavailable(_describe(error)) from error

    async def ping(self) -> None:
        """Return if PostgreSQL answers."""
        await self._fetch("ping")

    async def open_sale(self, terms: SaleTerms) -> Sale:
        """Write a new sale and give it its number."""
        rows = await self._fetch(
            "open_sale",
            terms.product_id,
            terms.stock,
            terms.limit,
            terms.quantity,
            terms.starts_ms,
            terms.ends_ms,
        )
        return Sale(sale_id=rows[0]["sale_id"], terms=terms)

    async def find_order(self, order_id: str) -> Order | None:
        """The settled order of that id; None where the ledger has none."""
        return next(iter(await self.find_orders([order_id])), None)

    async def find_orders(self, order_ids: Iterable[str]) -> list[Order]:
        """The settled orders among these ids, in any order."""
        return [
            Order(
                order_id=str(row["order_id"]),
                user_id=row["user_id"],
                product_id=row["product_id"],
                sale_id=row["sale_id"],
                quantity=row["quantity"],
                status=_STATUSES[row["status"]],
                reason=row["reason"],
            )
            for row in await self._fetch("find_orders", list(order_ids))
        ]

    async def read_generation(self) -> int:
        """The gate's latest generation; 0 where it has never been open."""
        return (await self._fetch("read_generation"))[0]["generation"] or 0

    async def next_generation(self) -> int:
        """A generation that nobody has had, greater than all before."""
        return int((await self._fetch("next_generation"))[0]["generation"])

    async def find_current_sales(self) -> list[Balance]:
        """The newest sale of every product."""
        return [
            Balance(
                Sale(
                    sale_id=row["sale_id"],
                    terms=SaleTerms(
                        product_id=row["product_id"],
                        stock=row["stock"],
                        limit=row["user_limit"],
                        quantity=row["quantity"],
                        starts_ms=row["starts_ms"],
                        ends_ms=row["ends_ms"],
                    ),
                ),
                row["sold"],
            )
            for row in await self._fetch("find_current_sales")
        ]

    async def count_bought(self, sale_id: int) -> list[tuple[int, int]]:
        """Each user who has confirmed orders in a sale, and their units."""
        return [(row["user_id"], row["units"]) for row in await self._fetch("count_bought", sale_id)]

    async def find_keys(self, max_age_s: float) -> AsyncIterator[list[Answered]]:
        """Orders that were accepted under a key within `max_age_s`, oldest first, some thousand at a time."""
        last = "00000000-0000-0000-0000-000000000000"
        while rows := await self._fetch("find_keys", last, max_age_s):
            page = [Answered(str(row["order_id"]), *row[1:]) for row in rows]
            yield page
            last = page[-1].order_id

    async def find_newest(self) -> int:
        """When the newest order was accepted, Unix milliseconds of the gate's clock; 0 without any."""
        return (await self._fetch("find_newest"))[0]["accepted_ms"] or 0

    @asynccontextmanager
    async def try_lock(self) -> AsyncIterator[bool]:
        """Whether this process is the only one that rebuilds the gate, for as long as the context lasts.

        PostgreSQL lets go of the lock when the connection is lost, which is not noticed here.
        """
        try:
            async with self._pool.acquire() as connection:
                mine: bool = await connection.fetchval(_QUERIES["try_lock"])
                try:
                    yield mine
                finally:
                    if mine and not connection.is_closed():
                        await connection.execute(_QUERIES["unlock"])
        except _SERVER_ERRORS as error:
            raise LedgerUnavailable(_describe(error)) from error

    async def settle(self, batch: Sequence[Reservation], declines: Sequence[str | None]) -> Settlement:
        """Settle a batch in one transaction and one round trip; settling it again changes nothing.

        `declines[i]` is the reason why the payment of `batch[i]` was declined, or None where it was approved.
        An approved order is CONFIRMED while its sale has units left and REJECTED after that; a declined one
        is FAILED. Only where PostgreSQL refuses the data itself is the batch split in halves, each a
        transaction of its own, until the culprit stands alone.
        """
        distinct = {
            reservation.order_id: (reservation, decline)
            for reservation, decline in zip(batch, declines, strict=True)
        }
        if not distinct:
            return Settlement()
        columns = zip(
            *(
                (r.order_id, r.sale_id, r.product_id, r.user_id, r.quantity, r.key, r.accepted_ms, decline)
                for r, decline in distinct.values()
            ),
            strict=True,
        )
        started = time.perf_counter()
        try:
            rows = await self._fetch("settle_orders", *columns)
        except _RECORD_ERRORS as error:
            if len(distinct) == 1:
                return Settlement(
                    poison=[_poison(reservation, _describe(error)) for reservation, _ in distinct.values()]
                )
            reservations, reasons = zip(*distinct.values(), strict=True)
            middle = len(reservations) // 2
            left = await self.settle(reservations[:middle], reasons[:middle])
            right = await self.settle(reservations[middle:], reasons[middle:])
            return Settlement(
                left.settled + right.settled, left.repeated + right.repeated, left.poison + right.poison
            )
        LEDGER_SECONDS.observe(time.perf_counter() - started)
        LEDGER_BATCH.observe(len(distinct))
        settlement = Settlement()
        counts = dict.fromkeys(OrderStatus, 0)
        for order_id, status_name, reason, fresh in rows:
            reservation, _ = distinct.pop(str(order_id))
            status = _STATUSES[status_name]
            order = Order(
                order_id=reservation.order_id,
                user_id=reservation.user_id,
                product_id=reservation.product_id,
                sale_id=reservation.sale_id,
                quantity=reservation.quantity,
                status=status,
                reason=reason,
            )
            if fresh:
                settlement.settled.append(order)
                counts[status] += 1
            else:
                settlement.repeated.append(order)
        for status, count in counts.items():
            if count:
                ORDERS.labels(status.value).inc(count)
        settlement.poison.extend(_poison(reservation, "unknown sale") for reservation, _ in distinct.values())
        return settlement

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(_QUERIES[query], *arguments)
        except _RECORD_ERRORS:
            raise
        except _SERVER_ERRORS as error:
            raise LedgerUnavailable(_describe(error)) from error


def _poison(reservation: Reservation, reason: str) -> Poison:
    return Poison(msgspec.json.encode(reservation), reason)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
