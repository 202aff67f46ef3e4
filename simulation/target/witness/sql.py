"""The witness of an engine with tables of its own: statements for its orders and its sales."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import pandas as pd
import pyarrow as pa

from engine.model.sale import Sale
from simulation.errors import EngineError, Misdone, Unreadable
from simulation.model.contract import Contract
from simulation.model.outcome import TERMINAL
from simulation.model.state import ORDER_TYPES, SALE_TYPES, FinalState
from simulation.target.cluster.postgres import connect_postgres
from simulation.target.stores import (
    TIMEOUT_S,
    BusStore,
    Counts,
    Store,
    close_stores,
    connect_ledger,
    read_stores,
    read_within,
)
from simulation.target.witness.doubts import Doubts, count_rows, doubt_statement
from simulation.target.witness.remaining import RemainingReader
from simulation.target.witness.rows import check_statement, count_purchases, fetch, make_frame, make_gate
from simulation.target.witness.tables import Tables
from simulation.target.witness.trial import Trial, check_order, check_stock

POLL_S: Final = 0.1
LOOK_S: Final = 5.0
"""Longest time of one look whether everything has settled."""
READ_S: Final = 120.0
"""Longest time to read the tables whole."""


@dataclass(frozen=True)
class SqlReader:
    """Reads tables and what is for sale, by the engine's description."""

    told: Tables
    contract: Contract
    url: str
    ca: str | None
    postgres_url: str
    redis_url: str | None
    amqp_url: str | None
    tokens: Mapping[int, str] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)
    """The rows of every table before the load."""
    old: set[str] = field(default_factory=set)
    """The orders that there were before the load: they are no affair of the run."""

    @property
    def remaining(self) -> RemainingReader | None:
        """Reads what is for sale, if the description says where that stands."""
        if self.told.remaining is None:
            return None
        return RemainingReader(
            self.told.remaining, self.contract, self.url, self.ca, self.postgres_url, self.redis_url
        )

    async def check(self, sales: Sequence[Sale]) -> None:
        """Raise EngineError unless the statements give what they must, and show these sales."""
        try:
            held = await read_within(self._check(sales), TIMEOUT_S)
            left = await read_within(self.remaining.read_shown(sales), TIMEOUT_S) if self.remaining else {}
        except Unreadable as error:
            if isinstance(error.__cause__, EngineError):
                raise error.__cause__ from None
            raise EngineError(f"what the engine holds can't be read: {error}") from None
        products = {sale.terms.product_id for sale in sales}
        if self.remaining and (missing := products - left.keys()):
            key = self.remaining.name_key(min(missing))
            raise EngineError(
                f"sql.remaining: does not show product {min(missing)}, which was opened just now"
                + (f": there is no key {key}" if key else "")
            )
        if missing := products - held:
            raise EngineError(
                f"sql.sales: does not show product {min(missing)}, which was opened just now:"
                " is this the engine's database?"
            )

    async def _check(self, sales: Sequence[Sale]) -> set[int]:
        async with connect_ledger(self.postgres_url) as connection:
            statements = {"orders": self.told.orders, "sales": self.told.sales}
            if self.told.remaining and self.told.remaining.sql is not None:
                statements["remaining.sql"] = self.told.remaining.sql
            for name, query in statements.items():
                await check_statement(connection, name, query)
            _, orders = await fetch(connection, self.told.orders, sales)
            _, rows = await fetch(connection, self.told.sales, sales)
        self.before.update(await count_rows(self.postgres_url))
        self.old.update(str(row["order_id"]) for row in orders)
        return {int(row["product_id"]) for row in rows}

    async def shows(self, trial: Trial) -> str:
        """Return the state in which the order of a trial has ended, as the statement for orders shows it."""
        rows = await read_within(self._fetch("orders", trial), TIMEOUT_S)
        product = trial.sale.terms.product_id
        if trial.order_id is None:
            mine = [row for row in rows if row["product_id"] == product]
        else:
            mine = [row for row in rows if str(row["order_id"]) == trial.order_id]
        if len(mine) > 1:
            raise Misdone(f"sql.orders: shows {len(mine)} rows for one purchase of product {product}")
        return check_order(trial, mine[0], self.contract) if mine else ""

    async def shows_stock(self, trial: Trial) -> bool:
        """Return whether the statement for sales and what is for sale show the sale of a trial."""
        rows = await read_within(self._fetch("sales", trial), TIMEOUT_S)
        product, sale_id = trial.sale.terms.product_id, trial.sale.sale_id
        mine = [row for row in rows if (row["product_id"], row.get("sale_id", sale_id)) == (product, sale_id)]
        if not mine:
            return False
        check_stock(trial, "sql.sales", {"stock": mine[0]["stock"], "sold": mine[0].get("sold")})
        if self.remaining:
            left = await read_within(self.remaining.read_shown([trial.sale]), TIMEOUT_S)
            if product not in left:
                return False
            check_stock(trial, "sql.remaining", {"remaining": left[product]})
        return True

    async def _fetch(self, name: str, trial: Trial) -> list[dict[str, Any]]:
        query = getattr(self.told, name)
        async with connect_ledger(self.postgres_url) as connection:
            await check_statement(connection, name, query)
            return [dict(row) for row in (await fetch(connection, query, [trial.sale]))[1]]

    def open_stores(self, sales: Sequence[Sale]) -> list[Store]:
        """Return what probes may read."""
        stores: list[Store] = [SqlStore(self, sales)]
        if self.told.queue and self.amqp_url:
            stores.append(BusStore(self.amqp_url, self.told.queue))
        return stores

    async def read(
        self,
        sales: Sequence[Sale],
        accepted: pd.DataFrame,
        drain_s: float,
        steady_s: float,
        trial: Trial | None = None,
    ) -> FinalState:
        """Wait until every accepted purchase has a row that has ended, and the queue is empty and at rest."""
        drained_s = await self._await_drain(
            sales, count_purchases(accepted), drain_s, max(steady_s, self.told.settle_s)
        )
        unread: dict[str, str] = {}
        state: dict[str, Any] = {"outbox": 0, "queue": 0, "bus": self.told.queue is not None}
        try:
            state |= await read_within(self._read_tables(sales), READ_S)
            if "orders" not in (trial.fitting if trial else ()):
                doubts = Doubts(self.contract, self.url.rstrip("/"), self.ca, self.tokens, trial)
                doubting = doubt_statement(doubts, self.postgres_url, self.before, state["orders"], accepted)
                state["misfits"] = await read_within(doubting, READ_S)
        except Unreadable as error:
            unread["ledger"] = str(error)
        without = {"dead letters", "outbox"}
        if self.remaining is None:
            without.add("gate")
        else:
            try:
                left = await read_within(self.remaining.read(sales), READ_S)
                state["gate"] = make_gate(sales, left)
            except (Unreadable, EngineError) as error:
                unread["stock"] = str(error)
        if self.told.queue and self.amqp_url:
            bus = BusStore(self.amqp_url, self.told.queue)
            try:
                state["queue"] = (await read_within(bus.read(), TIMEOUT_S))["queue_messages"]
            except Unreadable as error:
                state["queue"], unread["bus"] = None, str(error)
            finally:
                await close_stores([bus])
        elif "status" in state.get("unseen", ()):
            without.add("waiting")
        return FinalState(**state, dead=0, drained_s=drained_s, unread=unread, without=frozenset(without))

    async def _await_drain(
        self, sales: Sequence[Sale], accepted: int, timeout_s: float, steady_s: float
    ) -> float | None:
        """Return the seconds until everything had settled; None if that took longer than `timeout_s`.

        Orders that are still missing at the end, while nothing changes, will never come.
        """
        stores = self.open_stores(sales)[1:]
        started = now = time.monotonic()
        before: object = None
        steady_since = now
        try:
            while True:
                seen = None
                try:
                    rows, waiting = await read_within(self._count(sales), LOOK_S)
                    counts = await read_stores(stores, LOOK_S)
                    if not stores or "queue_messages" in counts:
                        seen = (rows, waiting, counts.get("queue_messages", 0))
                except Unreadable:
                    pass
                now = time.monotonic()
                if seen is None or seen != before:
                    before, steady_since = seen, now
                steady = seen is not None and now - steady_since >= steady_s
                idle = seen is not None and not seen[1] and not seen[2]
                if steady and idle and (seen or (0,))[0] >= accepted:
                    return steady_since - started
                if now - started >= timeout_s:
                    return steady_since - started if steady and idle else None
                await asyncio.sleep(POLL_S)
        finally:
            await close_stores(stores)

    async def _count(self, sales: Sequence[Sale]) -> tuple[int, int]:
        """Return the number of the run's orders, and of those that have not ended."""
        products = {sale.terms.product_id for sale in sales}
        async with connect_ledger(self.postgres_url) as connection:
            _, rows = await fetch(connection, self.told.orders, sales)
        rows = [
            each for each in rows if each["product_id"] in products and str(each["order_id"]) not in self.old
        ]
        return len(rows), sum(row.get("status") == "PENDING" for row in rows)

    async def _read_tables(self, sales: Sequence[Sale]) -> dict[str, Any]:
        async with (
            connect_ledger(self.postgres_url) as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            given, rows = await fetch(connection, self.told.orders, sales)
            orders, unseen = make_frame(given, rows, ORDER_TYPES), frozenset(ORDER_TYPES) - {*given}
            shown, rows = await fetch(connection, self.told.sales, sales)
            held = make_frame(shown, rows, SALE_TYPES)
        by_product = {sale.terms.product_id: sale for sale in sales}
        mine = orders["product_id"].isin(by_product) & ~orders["order_id"].isin(self.old)
        orders = orders[mine].reset_index(drop=True)
        held = held[held["product_id"].isin(by_product)].reset_index(drop=True)
        if "status" in unseen:
            orders["status"] = "CONFIRMED"
        if strange := set(orders["status"]) - {*TERMINAL, "PENDING"}:
            raise Unreadable(
                f"sql.orders: an order's status is {strange.pop()!r}, none of {', '.join(TERMINAL)}"
            )
        if "quantity" in unseen:
            orders["quantity"] = orders["product_id"].map(
                {p: s.terms.quantity for p, s in by_product.items()}
            )
        if "sale_id" in unseen:
            orders["sale_id"] = orders["product_id"].map({p: s.sale_id for p, s in by_product.items()})
        if "sale_id" not in shown:
            held["sale_id"] = held["product_id"].map({p: s.sale_id for p, s in by_product.items()})
        if "sold" not in shown:
            confirmed = orders[orders["status"] == "CONFIRMED"].groupby("sale_id")["quantity"].sum()
            held["sold"] = held["sale_id"].map(confirmed).fillna(0)
        whole = {name: "Int64" for name, kind in ORDER_TYPES.items() if kind == pa.int64()}
        shown = [*dict.fromkeys(("sale_id", "product_id", "sold", *shown))]
        return {
            "orders": orders.astype(whole),
            "sales": held[shown].astype("Int64"),
            "pending": frozenset(orders.loc[orders["status"] == "PENDING", "order_id"]),
            "unseen": unseen,
        }


class SqlStore:
    """Sold units by the engine's own count, and what is still for sale."""

    def __init__(self, reader: SqlReader, sales: Sequence[Sale]) -> None:
        self._reader = reader
        self._sales = sales
        self._connection: asyncpg.Connection | None = None

    async def read(self) -> Counts:
        """Return what is confirmed and what remains, as far as both are told."""
        if self._connection is None:
            self._connection = await connect_postgres(self._reader.postgres_url, TIMEOUT_S)
        quantities = {sale.terms.product_id: sale.terms.quantity for sale in self._sales}
        _, rows = await fetch(self._connection, self._reader.told.sales, self._sales)
        counts: Counts = {}
        mine = [row for row in rows if row["product_id"] in quantities]
        if mine and all(row.get("sold") is not None for row in mine):
            counts["ledger_confirmed"] = sum(
                int(row["sold"]) // quantities[row["product_id"]] for row in mine
            )
        if self._reader.remaining:
            counts["stock_remaining"] = sum((await self._reader.remaining.read(self._sales)).values())
        return counts

    async def close(self) -> None:
        """Disconnect; the next reading connects again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
