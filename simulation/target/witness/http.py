"""The witness of an engine of which nothing is known but its HTTP contract: it is asked for what it told.

It can't know of orders that no client was told of.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp
import pandas as pd
import pyarrow as pa

from engine.model.sale import Sale
from simulation.errors import EngineError
from simulation.model.contract import Contract, OrderRead, StockRead
from simulation.model.state import ORDER_TYPES, FinalState
from simulation.target.opening import connect, send
from simulation.target.stores import Store
from simulation.target.witness.doubts import Doubts, doubt_words
from simulation.target.witness.trial import Trial

POLL_S: Final = 0.2


@dataclass(frozen=True)
class HttpWitness:
    """Asks for each accepted order and for the stock."""

    contract: Contract
    url: str
    ca: str | None
    tokens: Mapping[int, str] = field(default_factory=dict)
    """The token of each user, if orders are asked for with one."""

    async def check(self, sales: Sequence[Sale]) -> None:
        """Raise EngineError unless the engine shows the stock, if its contract says that it does."""
        if self.contract.stock:
            async with connect(self.ca) as session:
                await self._read_stock(session, self.contract.stock, sales)

    async def shows(self, trial: Trial) -> str | None:
        """Return the state in which the order of a trial has ended, as the engine shows it; None where it
        shows no orders."""
        return await self._make_doubts(trial).shows_order()

    async def shows_stock(self, trial: Trial) -> bool | None:
        """Return None: the run looks for it at the engine in any case."""
        return None

    def open_stores(self, sales: Sequence[Sale]) -> list[Store]:
        """Return nothing: the probes would be a load of their own."""
        return []

    async def read(
        self,
        sales: Sequence[Sale],
        accepted: pd.DataFrame,
        drain_s: float,
        steady_s: float,
        trial: Trial | None = None,
    ) -> FinalState:
        """Ask until no accepted order is PENDING, and then for the stock."""
        state: dict[str, Any] = {}
        unread: dict[str, str] = {}
        started = time.monotonic()
        async with connect(self.ca) as session:
            try:
                if self.contract.order and self.contract.buy.order_id:
                    bought = accepted.sort_values("done_ns").drop_duplicates("order_id")
                    state["orders"], state["drained_s"] = await self._read_orders(
                        session, self.contract.order, bought, sales, started, drain_s
                    )
                    waiting = state["orders"]["status"] == "PENDING"
                    state["pending"] = frozenset(state["orders"].loc[waiting, "order_id"])
                    if "orders" not in (trial.fitting if trial else ()):
                        state["misfits"] = await self._doubt(state["orders"], bought, trial)
                    state["unseen"] = frozenset(("accepted_us", "settled_us", "idempotency_key", "reason"))
                else:
                    unread["ledger"] = "the contract names no orders that can be asked for"
                if self.contract.stock:
                    state |= self._make_sales(
                        await self._read_stock(session, self.contract.stock, sales), state.get("orders")
                    )
                else:
                    unread["stock"] = "the contract shows no stock"
                    if "orders" in state:
                        state["sales"] = _count_sales(state["orders"], sales)
            except EngineError as error:
                unread["ledger"] = str(error)
        return FinalState(**state, bus=False, unread=unread, without=frozenset(("outbox",)), partial=True)

    async def _read_orders(
        self,
        session: aiohttp.ClientSession,
        request: OrderRead,
        bought: pd.DataFrame,
        sales: Sequence[Sale],
        started: float,
        drain_s: float,
    ) -> tuple[pd.DataFrame, float | None]:
        """Return the orders that the engine shows, and the seconds until none of them was PENDING."""
        buyers = dict(zip(bought["order_id"], bought["user_id"], strict=True))
        status: dict[str, str | None] = dict.fromkeys(buyers, "PENDING")
        drained_s = None
        while True:
            waiting = [order_id for order_id, word in status.items() if word in ("PENDING", None)]
            words = await asyncio.gather(
                *(self._ask(session, request, order_id, int(buyers[order_id])) for order_id in waiting)
            )
            status |= dict(zip(waiting, words, strict=True))
            now = time.monotonic()
            if not any(word in ("PENDING", None) for word in status.values()):
                drained_s = now - started
            if drained_s is not None or now - started >= drain_s:
                break
            await asyncio.sleep(POLL_S)
        newest = {sale.terms.product_id: sale for sale in sales}
        shown = bought[bought["order_id"].map(status).notna()]
        product = shown["product_id"]
        given = {
            "order_id": shown["order_id"],
            "sale_id": product.map({key: sale.sale_id for key, sale in newest.items()}),
            "product_id": product,
            "user_id": shown["user_id"],
            "quantity": product.map({key: sale.terms.quantity for key, sale in newest.items()}),
            "status": shown["order_id"].map(status),
        }
        frame = pd.DataFrame(given, columns=list(ORDER_TYPES)).reset_index(drop=True)
        whole = {name: "Int64" for name, kind in ORDER_TYPES.items() if kind == pa.int64()}
        return frame.astype(whole), drained_s

    def _make_doubts(self, trial: Trial | None) -> Doubts:
        return Doubts(self.contract, self.url.rstrip("/"), self.ca, self.tokens, trial)

    async def _doubt(self, orders: pd.DataFrame, bought: pd.DataFrame, trial: Trial | None) -> dict[str, str]:
        """Return what speaks against the description of orders, where none of those bought is shown, or none
        with a status that it knows."""
        if len(orders):
            words = doubt_words(orders["status"])
            return {"orders": words} if words else {}
        told = list(zip(bought["order_id"].tolist(), bought["user_id"].tolist(), strict=True))
        words = await self._make_doubts(trial).doubt_orders(told)
        return {"orders": words} if words else {}

    async def _ask(
        self, session: aiohttp.ClientSession, request: OrderRead, order_id: str, user_id: int
    ) -> str | None:
        """Return the status of an order, as its buyer asks for it; None if the engine does not show it."""
        values = {"order_id": order_id, "user_id": user_id, "token": self.tokens.get(user_id)}
        status, body, head = await send(session, self.url.rstrip("/"), request, **values)
        return self.contract.classify_order(status, body, order_id, head)[1]

    async def _read_stock(
        self, session: aiohttp.ClientSession, request: StockRead, sales: Sequence[Sale]
    ) -> list[dict[str, int | None]]:
        rows = []
        for sale in {sale.terms.product_id: sale for sale in sales}.values():
            product = sale.terms.product_id
            status, body, head = await send(session, self.url.rstrip("/"), request, product_id=product)
            _, stock = self.contract.classify_stock(status, body, product, head)
            if stock is None:
                raise EngineError(f"{self.url} does not show the stock of {product}: {status} {body[:100]!r}")
            rows.append(
                {
                    "product_id": product,
                    "sale_id": sale.sale_id,
                    "stock": stock.initial,
                    "sold": stock.sold,
                    "remaining": stock.remaining,
                }
            )
        return rows

    def _make_sales(
        self, rows: list[dict[str, int | None]], orders: pd.DataFrame | None
    ) -> dict[str, pd.DataFrame]:
        """Return the sales and what is for sale; where no sold units are shown, those of the orders count."""
        frame = pd.DataFrame(rows).astype("Int64")
        if frame["sold"].isna().all():
            units = pd.Series(dtype="Int64") if orders is None else _sum_confirmed(orders)
            frame["sold"] = frame["sale_id"].map(units).fillna(0)
        gate = frame[["product_id", "sale_id", "remaining"]].astype("int64")
        sales = frame[["sale_id", "product_id", "sold"]]
        if frame["stock"].notna().all():
            sales = sales.assign(stock=frame["stock"])
        return {"sales": sales, "gate": gate}


def _count_sales(orders: pd.DataFrame, sales: Sequence[Sale]) -> pd.DataFrame:
    """Return the sales with the units of their confirmed orders."""
    rows = [(sale.sale_id, sale.terms.product_id) for sale in sales]
    frame = pd.DataFrame(rows, columns=["sale_id", "product_id"])
    return frame.assign(sold=frame["sale_id"].map(_sum_confirmed(orders)).fillna(0)).astype("Int64")


def _sum_confirmed(orders: pd.DataFrame) -> "pd.Series[int]":
    return orders[orders["status"] == "CONFIRMED"].groupby("sale_id")["quantity"].sum()


async def read_over_http(
    contract: Contract, url: str, ca: str | None, products: Sequence[int]
) -> dict[int, int]:
    """Return what is still for sale of each product, as the engine shows it. Raises EngineError."""
    found = {}
    if contract.stock is None:
        return {}
    async with connect(ca) as session:
        for product in products:
            status, body, head = await send(session, url.rstrip("/"), contract.stock, product_id=product)
            _, stock = contract.classify_stock(status, body, product, head)
            if stock is None:
                raise EngineError(
                    f"{url} does not show the stock of product {product}: {status} {body[:100]!r}"
                )
            found[product] = stock.remaining
    return found
