"""Whether an engine is at fault, or its description, where a witness finds none of the accepted orders.

Both look the same at first. Asked here is what tells them apart: whether the order is shown elsewhere, a
table took as many rows, a path exists, or another part of the answer is the id.
"""

import asyncio
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import randbelow, token_hex
from typing import Any, Final

import aiohttp
import pandas as pd

from simulation.errors import EngineError
from simulation.model.contract import Contract, OrderRead, Request, StockRead
from simulation.model.outcome import TERMINAL
from simulation.model.places import HEADER, decode, find_field
from simulation.model.requests import fill
from simulation.scenario.schema import SaleOffer
from simulation.target.opening import Answer, connect, open_sales, send
from simulation.target.stores import connect_ledger

WAIT_S: Final = 5.0
"""Longest time until an order that was bought just now is shown."""
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
_OF_HTTP: Final = {"content-length", "content-type", "date", "server", "connection", "keep-alive", "vary"}


@dataclass(frozen=True)
class Doubts:
    """Asks an engine once more, over HTTP."""

    contract: Contract
    url: str
    ca: str | None
    tokens: Mapping[int, str] = field(default_factory=dict)

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
            return await self._find_other_id(session, request, told[0][1])

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
        """Return whether a path that surely does not exist is answered in the same way."""
        nowhere = Request(path=f"/{token_hex(8)}", method=request.method, headers=request.headers)
        other = await send(session, self.url, nowhere, **values)
        asked = fill(request, **values)[0]
        return other.status == answer.status and _blur(other.body, nowhere.path) == _blur(answer.body, asked)

    async def _find_other_id(
        self, session: aiohttp.ClientSession, request: OrderRead, user_id: int
    ) -> str | None:
        """Buy one unit of a sale of its own, and look whether its order is shown under another part of the
        answer than the contract names."""
        product_id = 900_000_000 + randbelow(99_999_999)
        offer = SaleOffer(product_id=product_id, stock=1)
        contract, place = self.contract, self.contract.buy.order_id
        try:
            await open_sales((self.url,), [offer], None, contract=contract, ca=self.ca)
            values: dict[str, Any] = {"user_id": user_id, "product_id": product_id, "key": token_hex(8)}
            values["token"] = self.tokens.get(user_id)
            answer = await send(session, self.url, contract.buy, **values)
        except EngineError:
            return None
        outcome, order_id = contract.classify(answer.status, answer.body, answer.head)
        if outcome != "ACCEPTED" or order_id is None:
            return None
        others = [(where, value) for where, value in _list_parts(answer) if value != order_id]
        until_s = time.monotonic() + WAIT_S
        while time.monotonic() < until_s:
            if (await self._look(session, request, order_id, user_id))[1]:
                return None
            for where, value in others:
                if (await self._look(session, request, value, user_id))[1]:
                    return f"an order is shown under what its answer says at {where}, and not at {place}"
            await asyncio.sleep(POLL_S)
        return None


async def doubt_reads(doubts: Doubts, reads: pd.DataFrame) -> dict[str, str]:
    """Return what speaks against the description of each kind of reads of which none was shown."""
    found: dict[str, str] = {}
    answered = reads[reads["done_ns"].notna()]
    for kind, mine in answered.groupby("kind", observed=True):
        if (mine["outcome"] != "SHOWN").all():
            last = mine.iloc[-1]
            words = await (
                doubts.doubt_orders([(last["order_id"], int(last["user_id"]))])
                if kind == "order"
                else doubts.doubt_stock(int(last["product_id"]))
            )
            found |= {f"reads of {kind}": words} if words else {}
    return found


async def count_rows(postgres_url: str) -> dict[str, int]:
    """Return the rows of every table of the database."""
    async with connect_ledger(postgres_url) as connection:
        return {row["name"]: row["rows"] for row in await connection.fetch(_ROW_COUNTS)}


async def doubt_tables(postgres_url: str, before: Mapping[str, int], accepted: int) -> str | None:
    """Return which table took about as many rows as purchases were accepted; None if none did."""
    until_s = time.monotonic() + REPORT_S
    while True:
        now = await count_rows(postgres_url)
        grown = {name: rows - before.get(name, 0) for name, rows in now.items()}
        most = max(grown, key=lambda name: grown[name], default=None)
        if most and grown[most] >= max(SHARE * accepted, 1):
            words = f"sql.orders shows none of {accepted:,} accepted orders, but the table {most} has"
            return f"{words} at least {grown[most]:,} rows more: does the statement read what it should?"
        if time.monotonic() >= until_s:
            return None
        await asyncio.sleep(POLL_S)


def _list_parts(answer: Answer) -> list[tuple[str, str]]:
    """Return the texts and whole numbers of an answer by their places."""
    found: list[tuple[str, str]] = []

    def walk(part: Any, where: str) -> None:
        if isinstance(part, dict | list):
            pairs = part.items() if isinstance(part, dict) else enumerate(part)
            for name, each in pairs:
                walk(each, f"{where}.{name}" if where else str(name))
        elif isinstance(part, str | int) and not isinstance(part, bool):
            found.append((where, str(part)))

    walk(decode(answer.body), "")
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
