"""Whether an engine is at fault, or its description, where a witness finds none of the accepted orders, and
found none of a purchase before the load either (simulation.target.witness.trial).

Both look the same at first. Asked here is what tells them apart: whether the order is shown elsewhere, a
table took as many rows, a path exists, or another part of the answer is the id.
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, Final

import aiohttp
import asyncpg
import msgspec
import pandas as pd

from simulation.errors import EngineError
from simulation.model.contract import Contract, OrderRead, Request, StockRead
from simulation.model.outcome import TERMINAL
from simulation.model.places import HEADER, decode, find_field, write_path
from simulation.model.requests import fill
from simulation.target.opening import Answer, connect, send
from simulation.target.stores import connect_ledger
from simulation.target.witness.rows import count_purchases
from simulation.target.witness.trial import Trial, check_status, check_stock

REPORT_S: Final = 12.0
"""Longest time until PostgreSQL tells how many rows a session has written that rests since."""
POLL_S: Final = 0.2
NOWHERE: Final = "answers as a path that does not exist"
SOME: Final = 3
"""Orders that are asked for once more."""
SHARE: Final = 0.5
"""Of the accepted purchases; a table that took as many rows may be where the orders are."""
SHOWN: Final = 120
"""Bytes of an answer that are quoted."""
_ROW_COUNTS: Final = Path(__file__).with_name("row_counts.sql").read_text()
_NAMING_ROWS: Final = Path(__file__).with_name("naming_rows.sql").read_text()
_OF_HTTP: Final = {"content-length", "content-type", "date", "server", "connection", "keep-alive", "vary"}


@dataclass(frozen=True)
class Doubts:
    """Asks an engine once more, over HTTP."""

    contract: Contract
    url: str
    ca: str | None
    tokens: Mapping[int, str] = field(default_factory=dict)
    trial: Trial | None = None
    """A purchase that was accepted before the load."""

    async def shows_order(self) -> str | None:
        """Return the state in which the order of the trial has ended, as the engine shows it; "" while it
        shows none, None where it never does. Raises Misread where what it shows is no state."""
        request, trial = self.contract.order, self.trial
        if request is None or trial is None or trial.order_id is None:
            return None
        async with connect(self.ca) as session:
            _, status = await self._look(session, request, trial.order_id, trial.user_id)
        if status is not None:
            check_status("order.status", status, ": does order.words lack what it means?")
        return status if status in TERMINAL else ""

    async def shows_stock(self) -> bool | None:
        """Return whether the engine shows the stock of the trial's product; None where it shows no stock.
        Raises Misread where it shows another stock."""
        if self.contract.stock is None or self.trial is None:
            return None
        product_id = self.trial.sale.terms.product_id
        async with connect(self.ca) as session:
            answer = await send(session, self.url, self.contract.stock, product_id=product_id)
        _, stock = self.contract.classify_stock(answer.status, answer.body, product_id, answer.head)
        if stock is not None:
            read = {place.lower() for place in self.contract.places}
            others = {place: text for place, text in _list_parts(answer) if place.lower() not in read}
            check_stock(self.trial, "stock", msgspec.structs.asdict(stock), others)
        return stock is not None

    async def find_shown(self, told: Sequence[tuple[str, int]]) -> tuple[str, str] | None:
        """Return the first of some orders that the engine shows as settled, and its status; None without."""
        if self.contract.order is None:
            return None
        async with connect(self.ca) as session:
            for order_id, user_id in told[:SOME]:
                _, status = await self._look(session, self.contract.order, order_id, user_id)
                if status in TERMINAL:
                    return order_id, status
        return None

    async def denies(self, told: Sequence[tuple[str, int]]) -> bool:
        """Return whether the engine itself says that it has no order of which a user was told."""
        if self.contract.order is None or not told:
            return False
        async with connect(self.ca) as session:
            answer, _ = await self._look(session, self.contract.order, *told[0])
        return answer.status == 404 and await self.doubt_orders(told) is None

    async def doubt_orders(self, told: Sequence[tuple[str, int]]) -> str | None:
        """Return what speaks against the description of orders, where none that these users were told of was
        shown; None where it seems to fit."""
        request = self.contract.order
        if request is None or not told:
            return None
        async with connect(self.ca) as session:
            answer, status = await self._look(session, request, *told[0])
            if status is not None or answer.status >= 500:
                return None
            if answer.status != 404:
                return f"no order is shown: {request.path} {_quote(answer)}; look at [order]"
            values = self._values(*told[0])
            if await self._has_no_path(session, request, answer, values):
                return f"no order is shown: {request.path} {NOWHERE} ({_quote(answer)})"
            return await self._find_other_id(session, request)

    async def doubt_stock(self, product_id: int) -> str | None:
        """Return what speaks against the description of the stock, where no read was shown it."""
        request = self.contract.stock
        if request is None:
            return None
        async with connect(self.ca) as session:
            answer = await send(session, self.url, request, product_id=product_id)
            name, _ = self.contract.classify_stock(answer.status, answer.body, product_id, answer.head)
            if name == "SHOWN" or answer.status >= 500:
                return None
            if answer.status != 404:
                return f"no stock is shown: {request.path} {_quote(answer)}; look at [stock]"
            if await self._has_no_path(session, request, answer, {"product_id": product_id}):
                return f"no stock is shown: {request.path} {NOWHERE} ({_quote(answer)})"
        return None

    def _values(self, order_id: str, user_id: int) -> dict[str, Any]:
        return {"order_id": order_id, "user_id": user_id, "token": self.tokens.get(user_id)}

    async def _look(
        self, session: aiohttp.ClientSession, request: OrderRead, order_id: str, user_id: int
    ) -> tuple[Answer, str | None]:
        answer = await send(session, self.url, request, **self._values(order_id, user_id))
        return answer, self.contract.classify_order(answer.status, answer.body, order_id, answer.head)[1]

    async def _has_no_path(
        self,
        session: aiohttp.ClientSession,
        request: OrderRead | StockRead,
        answer: Answer,
        values: Mapping[str, Any],
    ) -> bool:
        """Return whether a path that surely does not exist is answered in the same way, also to OPTIONS: an
        order that is missing may have the same answer as a path that does not exist."""
        asked, nowhere = fill(request, **values)[0], f"/{token_hex(8)}"
        other = await send(session, self.url, msgspec.structs.replace(request, path=nowhere), **values)
        if other.status != answer.status or _blur(other.body, nowhere) != _blur(answer.body, asked):
            return False
        try:
            there, gone = [
                await send(session, self.url, Request(path=path, method="OPTIONS"))
                for path in (asked, nowhere)
            ]
        except EngineError:
            return True
        return there.status == gone.status and _blur(there.body, asked) == _blur(gone.body, nowhere)

    async def _find_other_id(self, session: aiohttp.ClientSession, request: OrderRead) -> str | None:
        """Look whether the order of the trial is shown under another part of its answer than the contract
        names."""
        if self.trial is None or self.trial.answer is None:
            return None
        for where, value in _list_parts(self.trial.answer):
            if (
                value != self.trial.order_id
                and (await self._look(session, request, value, self.trial.user_id))[1]
            ):
                place = self.contract.buy.order_id
                return f"an order is shown under what its answer says at {where}, and not at {place}"
        return None


async def doubt_reads(doubts: Doubts, reads: pd.DataFrame) -> dict[str, str]:
    """Return what speaks against the description of each kind of reads of which none was shown."""
    found: dict[str, str] = {}
    answered = reads[reads["done_ns"].notna()]
    for kind, mine in answered.groupby("kind", observed=True):
        if kind == "order" and (words := doubt_words(mine["order_status"].dropna())):
            found["reads of order"] = words
        elif (mine["outcome"] != "SHOWN").all():
            last = mine.iloc[-1]
            words = await (
                doubts.doubt_orders([(last["order_id"], int(last["user_id"]))])
                if kind == "order"
                else doubts.doubt_stock(int(last["product_id"]))
            )
            found |= {f"reads of {kind}": words} if words else {}
    return found


def doubt_words(statuses: "pd.Series[str]") -> str | None:
    """Return what speaks against order.words, where none of the statuses that were shown is an end, and some
    are none at all."""
    strange = statuses[~statuses.isin([*TERMINAL, "PENDING"])]
    if strange.empty or statuses.isin(TERMINAL).any():
        return None
    return f"the status of an order is {strange.iloc[0]!r}: does order.words lack what it means?"


async def count_rows(postgres_url: str) -> dict[str, int]:
    """Return the rows of every table of the database."""
    async with connect_ledger(postgres_url) as connection:
        return {row["name"]: row["rows"] for row in await connection.fetch(_ROW_COUNTS)}


async def doubt_statement(
    doubts: Doubts, postgres_url: str, before: Mapping[str, int], orders: pd.DataFrame, accepted: pd.DataFrame
) -> dict[str, str]:
    """Return what speaks against sql.orders, where it shows none of the accepted purchases.

    `orders` are what it shows, `before` are the rows of every table before the load.
    """
    purchases, new = count_purchases(accepted), len(orders)
    told = accepted[["order_id", "user_id", "product_id"]].dropna().drop_duplicates("order_id")
    if not purchases or (orders["order_id"].isin(told["order_id"]).any() if len(told) else new > 0):
        return {}
    if len(told) and new > 0:
        pair = f"one was told {told['order_id'].iloc[0]!r}, it shows {orders['order_id'].iloc[-1]!r}"
        words = f"sql.orders shows {new:,} new orders, and none by an id that a buyer was told"
        return {"orders": f"{words} ({pair}): do sql.orders and buy.order_id name the same?"}
    pairs = list(zip(told["order_id"].tolist(), told["user_id"].tolist(), strict=True))
    with suppress(EngineError):
        if shown := await doubts.find_shown(pairs):
            words = f"sql.orders shows none of {purchases:,} accepted orders, but the engine shows"
            return {"orders": f"{words} {shown[0]} as {shown[1]}: does the statement read what it should?"}
        if await doubts.denies(pairs):
            return {}
    some = told.head(SOME).astype("str").to_numpy().tolist()
    found = await _doubt_tables(postgres_url, before, purchases, some)
    return {"orders": found} if found else {}


async def _doubt_tables(
    postgres_url: str, before: Mapping[str, int], accepted: int, told: Sequence[Sequence[str]]
) -> str | None:
    """Return which table took about as many rows as purchases were accepted, and may hold some of the orders,
    which are given by id, user and product; None if none did."""
    until_s = time.monotonic() + REPORT_S
    while True:
        now = await count_rows(postgres_url)
        grown = {name: rows - before.get(name, 0) for name, rows in now.items()}
        for name in sorted(grown, key=lambda name: -grown[name]):
            if grown[name] >= max(SHARE * accepted, 1) and await _holds(postgres_url, name, told):
                words = f"sql.orders shows none of {accepted:,} accepted orders, but the table {name} has"
                return f"{words} at least {grown[name]:,} rows more: does the statement read what it should?"
        if time.monotonic() >= until_s:
            return None
        await asyncio.sleep(POLL_S)


async def _holds(postgres_url: str, table: str, told: Sequence[Sequence[str]]) -> bool:
    """Return whether a table may hold each of these orders; without any, or if it can't be read, it may."""
    query = _NAMING_ROWS.replace("TABLE_NAME", table)
    async with connect_ledger(postgres_url) as connection:
        try:
            return all([await connection.fetchval(query, *each) for each in told])
        except asyncpg.InsufficientPrivilegeError:
            return True


def _list_parts(answer: Answer) -> list[tuple[str, str]]:
    """Return the texts and whole numbers of an answer by their places."""
    found: list[tuple[str, str]] = []

    def walk(part: Any, names: tuple[str, ...]) -> None:
        if isinstance(part, dict | list):
            pairs = part.items() if isinstance(part, dict) else enumerate(part)
            for name, each in pairs:
                walk(each, (*names, str(name)))
        elif isinstance(part, str | int) and not isinstance(part, bool):
            found.append((write_path(names), str(part)))

    walk(decode(answer.body), ())
    names = [line.partition(b":")[0].decode("latin-1") for line in answer.head.split(b"\r\n") if line]
    fields = [name for name in names if name.lower() not in _OF_HTTP]
    return found + [(HEADER + name, find_field(name, answer.head) or "") for name in fields]


def _blur(body: bytes, path: str) -> str:
    """Return a body without what differs between two answers of the same kind: path, numbers and ids."""
    text = body.decode(errors="replace").replace(path, "").replace(path.lstrip("/"), "")
    return re.sub(r"[0-9a-fA-F-]{16,}|\d+", "#", text)


def _quote(answer: Answer) -> str:
    body = answer.body[:SHOWN].decode(errors="replace").strip()
    return f"answers {answer.status}" + (f" {body!r}" if body else "")
