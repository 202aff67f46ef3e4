"""The ledger: PostgreSQL, the source of truth of what was sold."""

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any, Final, NamedTuple, Self

import asyncpg
import msgspec

from engine.errors import LedgerUnavailable
from engine.metrics import LEDGER_BATCH, LEDGER_SECONDS, ORDERS
from engine.model.dead_letter import Poison
from engine.model.delivery import encode_lines
from engine.model.lot import Reservation
from engine.model.order import Order, OrderStatus
from engine.model.sale import Sale, SaleTerms

log = logging.getLogger(__name__)

_SCHEMA: Final = files("engine.ledger").joinpath("schema.sql").read_text()
_QUERIES: Final = dict(
    re.findall(
        r"^-- name: (\w+)\n(.+?);$", files("engine.ledger").joinpath("queries.sql").read_text(), re.M | re.S
    )
)
_STATUSES: Final = {status.value: status for status in OrderStatus}
_CONFIRMED: Final = (OrderStatus.CONFIRMED.value, None, True)

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
                url,
                min_size=0,
                max_size=connections,
                timeout=timeout_s,
                command_timeout=timeout_s,
                reset=_keep,
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
                        await connection.reset()
        except _SERVER_ERRORS as error:
            raise LedgerUnavailable(_describe(error)) from error

    async def settle(self, batch: Sequence[Reservation], declines: Sequence[str | None]) -> Settlement:
        """Settle a batch in one transaction and one round trip; settling it again changes nothing.

        `declines[i]` is the reason why the payment of `batch[i]` was declined, or None where it was approved.
        An approved order is CONFIRMED while its sale has units left and REJECTED after that; a declined one
        is FAILED. Only where PostgreSQL refuses the data itself is the batch split in halves, each a
        transaction of its own, until the culprit stands alone.
        """
        started = time.perf_counter()
        if declines.count(None) == len(batch) and await self._settle_plain(batch):
            settlement = Settlement([_make_order(r, OrderStatus.CONFIRMED) for r in batch])
        else:
            settlement = await self._settle_any(batch, declines)
        LEDGER_SECONDS.observe(time.perf_counter() - started)
        LEDGER_BATCH.observe(len(batch))
        for status, count in Counter(order.status for order in settlement.settled).items():
            ORDERS.labels(status.value).inc(count)
        return settlement

    async def _settle_plain(self, batch: Sequence[Reservation]) -> bool:
        """Settle a batch of what is alike, if it is one and nothing is the matter with it."""
        kinds = {(r.sale_id, r.product_id, r.quantity) for r in batch}
        if len(kinds) != 1:
            return False
        [kind] = kinds
        keys = [r.key for r in batch]
        try:
            rows = await self._fetch(
                "settle_plain",
                *kind,
                _write_array([r.order_id for r in batch]),
                _write_array([r.user_id for r in batch]),
                _write_array([r.accepted_ms for r in batch]),
                None if keys.count(None) == len(keys) else keys,
            )
        except _RECORD_ERRORS:
            return False
        settled: bool = rows[0]["settled"]
        return settled

    async def _settle_any(self, batch: Sequence[Reservation], declines: Sequence[str | None]) -> Settlement:
        distinct = {
            reservation.order_id: (reservation, decline)
            for reservation, decline in zip(batch, declines, strict=True)
        }
        if not distinct:
            return Settlement()
        reservations, reasons = (
            [r for r, _ in distinct.values()],
            [decline for _, decline in distinct.values()],
        )
        try:
            rows = await self._fetch("settle_batch", *_columns(reservations, reasons))
        except _RECORD_ERRORS as error:
            if len(reservations) == 1:
                return Settlement(poison=[_poison(reservations[0], _describe(error))])
            middle = len(reservations) // 2
            left = await self._settle_any(reservations[:middle], reasons[:middle])
            right = await self._settle_any(reservations[middle:], reasons[middle:])
            return Settlement(
                left.settled + right.settled, left.repeated + right.repeated, left.poison + right.poison
            )
        return _read_settlement(reservations, rows)

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        try:
            return await self._pool.fetch(_QUERIES[query], *arguments)
        except _RECORD_ERRORS:
            raise
        except _SERVER_ERRORS as error:
            raise LedgerUnavailable(_describe(error)) from error


async def _keep(_: object) -> None:
    """Leaves a connection that comes back to the pool as it is.

    What the ledger runs changes nothing of it, and a reset is one more round trip for each batch.
    """


def _columns(reservations: Sequence[Reservation], reasons: Sequence[str | None]) -> list[Any]:
    """The arguments of `settle_batch`; a column of nothing but NULL is NULL itself."""
    keys = [r.key for r in reservations]
    return [
        _write_array([r.order_id for r in reservations]),
        _write_array([r.sale_id for r in reservations]),
        _write_array([r.product_id for r in reservations]),
        _write_array([r.user_id for r in reservations]),
        _write_array([r.quantity for r in reservations]),
        None if keys.count(None) == len(keys) else keys,
        _write_array([r.accepted_ms for r in reservations]),
        None if reasons.count(None) == len(reasons) else reasons,
    ]


def _write_array(values: Iterable[str | int]) -> str:
    """An array as text, which PostgreSQL reads faster than the client writes its binary form."""
    return "{" + ",".join(map(str, values)) + "}"


def _read_settlement(reservations: Sequence[Reservation], rows: Sequence[asyncpg.Record]) -> Settlement:
    """What became of the batch; an order without a row was CONFIRMED just now."""
    settlement = Settlement()
    told = {place - 1: (status, reason, fresh) for place, status, reason, fresh in rows}
    for place, reservation in enumerate(reservations):
        status_name, reason, fresh = told.get(place, _CONFIRMED)
        if status_name is None:
            settlement.poison.append(_poison(reservation, "unknown sale"))
            continue
        order = _make_order(reservation, _STATUSES[status_name], reason)
        (settlement.settled if fresh else settlement.repeated).append(order)
    return settlement


def _make_order(reservation: Reservation, status: OrderStatus, reason: str | None = None) -> Order:
    return Order(
        order_id=reservation.order_id,
        user_id=reservation.user_id,
        product_id=reservation.product_id,
        sale_id=reservation.sale_id,
        quantity=reservation.quantity,
        status=status,
        reason=reason,
    )


def _poison(reservation: Reservation, reason: str) -> Poison:
    return Poison(encode_lines([reservation]), reason)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
