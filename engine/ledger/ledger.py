"""The ledger: PostgreSQL, the source of truth of what was sold."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, Final, NamedTuple, Self

import asyncpg
import msgspec

from engine.errors import LedgerLocked, LedgerUnavailable, OutcomeUnknown, SettingsError
from engine.ledger.hosts import Hosts
from engine.ledger.migrating import Schema, apply_migrations, read_schema
from engine.ledger.queries import Connections
from engine.ledger.settling import Settlement, settle_lots
from engine.model.lot import Lot
from engine.model.order import Order
from engine.model.order_id import make_bound
from engine.model.sale import Sale, SaleTerms
from engine.settings import PREFIX

_UNLOCK_S: Final = 5.0
"""Longest wait for a lock to be freed; after that the connection is closed, which frees it as well."""

_DAY_S: Final = 86_400
_CLOCKS_DIFFER_MS: Final = 3_600_000
"""By how much the clocks of two machines may differ."""


class Balance(NamedTuple):
    """A product's current sale, and how many of its units are confirmed."""

    sale: Sale
    sold: int


class Offer(NamedTuple):
    """A sale that the gate offers or should offer, in units."""

    product_id: int
    sale_id: int
    stock: int
    sold: int
    quantity: int
    """Units of each purchase."""
    is_over: bool
    """Whether it ended so long ago that the gate may forget it."""
    offered: bool
    """Whether the gate is known to have taken it."""


class Pruned(NamedTuple):
    """What one step of pruning did."""

    last: str | None
    """The last order id that it looked at; None if there was none left."""
    gone: int
    kept: int


class KeyedOrder(NamedTuple):
    """An order that was accepted under an Idempotency-Key."""

    order_id: str
    product_id: int
    user_id: int
    key: str
    age_s: float
    """Time since it was accepted."""


class Ledger(AbstractAsyncContextManager["Ledger"]):
    """Sales and settled orders. Every method raises LedgerUnavailable while PostgreSQL can't do its work."""

    def __init__(self, connections: Connections, hosts: Hosts, beside: "Ledger | None") -> None:
        self._connections = connections
        self._hosts = hosts
        self._beside = beside

    @classmethod
    async def connect(
        cls,
        url: str | None,
        connections: int = 4,
        timeout_ms: int = 10_000,
        beside: "Ledger | None" = None,
    ) -> Self:
        """Return a ledger at a postgresql:// URL that connects when it is first needed.

        It makes at most `connections`, and only to the server in charge. `timeout_ms` bounds the wait for a
        connection, and every statement. The connections of ledgers beside each other are replaced together.
        Raises SettingsError without a URL.
        """
        if url is None:
            raise SettingsError(f"{PREFIX}POSTGRES_URL is not set")
        timeout_s = timeout_ms / 1000
        hosts = beside._hosts if beside else Hosts(url)
        pool = await hosts.make_pool(connections, timeout_s)
        return cls(Connections(pool, timeout_s, beside._connections if beside else None), hosts, beside)

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections, also those in use."""
        try:
            await asyncio.wait_for(self._connections.pool.close(), 1)
        except TimeoutError:
            self._connections.pool.terminate()
        if self._beside is None:
            await self._hosts.close()

    async def read_schema(self) -> Schema:
        """Compare the schema with what this engine knows; to read is all that it takes."""
        return await read_schema(self._connections)

    async def migrate(self) -> list[str]:
        """Apply the migrations that are missing, and return their names; many processes may do so at once."""
        return await apply_migrations(self._connections)

    async def open_sale(self, terms: SaleTerms, key: str | None = None, within_s: float = 10.0) -> Sale:
        """Write a new sale and give it its number; return the sale that was written under this key before.

        Raises OutcomeUnknown if the sale may be written, LedgerUnavailable if it surely is not.
        """
        committing = False
        try:
            async with asyncio.timeout(within_s), self._connections.borrow() as connection:
                # A server that is frozen when it is asked must not write the sale once it goes on.
                transaction = connection.transaction()
                await transaction.start()
                rows = await self._connections.fetch_on(
                    connection,
                    "open_sale",
                    terms.product_id,
                    terms.stock,
                    terms.limit,
                    terms.quantity,
                    terms.starts_ms,
                    terms.ends_ms,
                    key,
                )
                committing = True
                await transaction.commit()
        except (LedgerUnavailable, TimeoutError) as error:
            # A lock that it waited for may be that of a sale which another process opens under this key.
            may_be_written = committing or isinstance(error, LedgerLocked)
            lost = OutcomeUnknown if may_be_written else LedgerUnavailable
            raise lost(str(error) or "no answer in time") from error
        return _read_sale(rows[0])

    async def find_unoffered(self, age_s: float) -> list[Balance]:
        """Return the sales older than `age_s` that the gate is not known to have taken."""
        rows = await self._fetch("find_unoffered", age_s)
        return [Balance(_read_sale(row), row["sold"]) for row in rows]

    async def note_offered(self, *sale_ids: int) -> list[int]:
        """Note that the gate has taken sales; return them without those that another session holds, or has
        noted."""
        return [row["sale_id"] for row in await self._fetch("note_offered", sale_ids)]

    async def settle(
        self, lots: Sequence[Lot], declines: Mapping[str, str], remember_s: int = _DAY_S
    ) -> Settlement:
        """Settle a batch of lots in one transaction and one round trip; settling it again changes nothing.

        `declines` holds the reason for each order id whose payment was declined: it is FAILED. Any other
        order is CONFIRMED while its sale has units left, and REJECTED after that. It is REJECTED, too, if its
        Idempotency-Key has bought another order that was accepted less than `remember_s` before or after it:
        the gate has forgotten one of the two. A batch with two such orders, or one whose data PostgreSQL
        refuses, is halved, each half a transaction of its own, until they are apart. Raises LedgerLocked if
        another session holds one of the sales.
        """
        return await settle_lots(self._connections, lots, declines, remember_s)

    async def find_locked(self, sale_ids: Iterable[int]) -> set[int]:
        """Return those of these sales that another session holds just now; this waits for none."""
        return {row["sale_id"] for row in await self._fetch("find_locked", list(sale_ids))}

    async def find_orders(self, order_ids: Iterable[str]) -> list[Order]:
        """Return the settled orders among these ids, in any order."""
        rows = await self._fetch("find_orders", list(order_ids))
        return [msgspec.convert(dict(row), Order) for row in rows]

    async def read_generation(self) -> int:
        """Return the gate's latest generation; 0 if it has never been open."""
        return (await self._fetch("read_generation"))[0]["generation"] or 0

    async def next_generation(self, latest: int = 0, shards: int = 1) -> int:
        """Return a new generation, greater than all before and than the latest one that the gate knows of.

        Raises SettingsError if the gate has another number of shards.
        """
        rows = await self._fetch("next_generation", latest, shards)
        if not rows:
            raise SettingsError(f"{PREFIX}GATE_SHARDS is {shards}, and the gate has another number of shards")
        return int(rows[0]["generation"])

    async def claim_shards(self, shards: int | None) -> int | None:
        """Return how many shards the gate has: as many as the first process said that told a number."""
        row = (await self._fetch("claim_shards", shards))[0]
        return row["shards"]  # type: ignore[no-any-return]

    async def read_identity(self) -> str:
        """Return which ledger this is; a restored one, and a standby that was promoted, are the same."""
        return str((await self._fetch("read_identity"))[0]["identity"])

    async def find_unsafe(self) -> list[str]:
        """Return the settings of PostgreSQL that are off and may lose what it confirmed."""
        return [row["name"] for row in await self._fetch("find_unsafe")]

    async def change_shards(self, shards: int) -> int:
        """Give a closed gate, to which nothing is under way, so many shards; return its new generation."""
        return int((await self._fetch("change_shards", shards))[0]["generation"])

    async def find_current_sales(self) -> list[Balance]:
        """Return the newest sale of every product that is on offer."""
        return [Balance(_read_sale(row), row["sold"]) for row in await self._fetch("find_current_sales")]

    async def find_offers(self, keep_s: float) -> list[Offer]:
        """Return the sales on offer, the newest one of each product first; some may have been replaced.

        A sale with an end is over `keep_s` after it.
        """
        return list(map(Offer._make, await self._fetch("find_offers", keep_s)))

    async def retire_sales(self, sale_ids: Iterable[int]) -> None:
        """Take sales off the offers: no rebuild and no audit looks at them any more."""
        await self._fetch("retire_sales", list(sale_ids))

    async def count_bought(self, sale_ids: Sequence[int]) -> AsyncGenerator[list[tuple[int, int, int]], None]:
        """Yield sale, user and units for each user with confirmed orders in one of these sales, in pages."""
        async with aclosing(self._connections.stream("count_bought", sale_ids)) as pages:
            async for page in pages:
                yield [tuple(row) for row in page]

    async def find_keys(self, max_age_s: float) -> AsyncIterator[list[KeyedOrder]]:
        """Yield the orders accepted under a key within `max_age_s`, oldest first, in pages."""
        # The bound is by the clock of front doors, the age by that of the gate.
        last = make_bound(int((time.time() - max_age_s) * 1000) - _CLOCKS_DIFFER_MS)
        while rows := await self._fetch("find_keys", last, max_age_s):
            page = [KeyedOrder(str(row["order_id"]), *row[1:]) for row in rows]
            yield page
            last = page[-1].order_id

    async def find_newest(self) -> dict[int, int]:
        """Return when each product's newest order was accepted, Unix milliseconds, if not long ago."""
        return dict(map(tuple, await self._fetch("find_newest")))

    async def find_accepted(self, after_ms: int, before_ms: int) -> list[int]:
        """Return the products of orders accepted between the two, Unix milliseconds of the gate's clock."""
        bounds = make_bound(after_ms - _CLOCKS_DIFFER_MS), make_bound(before_ms + _CLOCKS_DIFFER_MS)
        rows = await self._fetch("find_accepted", *bounds, after_ms, before_ms)
        return [row["product_id"] for row in rows]

    async def begin_pruning(self, before: str) -> None:
        """Note that orders with ids below `before` may be pruned: from now on none of them can be settled."""
        await self._fetch("begin_pruning", before)

    async def prune(self, after: str, before: str, most: int) -> Pruned:
        """Delete the orders among the next `most` ids between the two; keep what a limit still needs."""
        return Pruned(*(await self._fetch("prune", after, before, most))[0])

    async def find_pruned(self, order_ids: Iterable[str]) -> set[str]:
        """Return those of these orders that may have been pruned if they were not found before."""
        return {row["order_id"] for row in await self._fetch("find_pruned", list(order_ids))}

    @asynccontextmanager
    async def try_lock(self) -> AsyncIterator[bool]:
        """Hold the lock of the process that rebuilds the gate; yield False if another process holds it.

        PostgreSQL frees the lock when the connection is lost, which is not noticed here.
        """
        async with self._connections.borrow() as connection:
            mine = (await self._connections.fetch_on(connection, "try_lock"))[0]["mine"]
            try:
                yield mine
            except BaseException:
                connection.terminate()
                raise
            if mine:
                async with asyncio.timeout(_UNLOCK_S):
                    await self._connections.fetch_on(connection, "unlock")

    async def _fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        return await self._connections.fetch(query, *arguments)


def _read_sale(row: asyncpg.Record) -> Sale:
    terms = SaleTerms(
        product_id=row["product_id"],
        stock=row["stock"],
        limit=row["user_limit"],
        quantity=row["quantity"],
        starts_ms=row["starts_ms"],
        ends_ms=row["ends_ms"],
    )
    return Sale(sale_id=row["sale_id"], terms=terms, offered=row["offered"])
