"""A purchase before the load, of a sale of its own.

What it shows to fit of the description excuses nothing later: an order that is not found then is lost. What
the description reads otherwise than it was done is told before the load. Where all can be read, and only the
purchase is shown otherwise than it was answered, the engine is judged by that as well.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from secrets import randbelow, token_hex
from typing import Any, Final, TypeVar

from engine.model.sale import Sale
from engine.tasks import cancel
from simulation.errors import EngineError, Misdone, Misread, Unreadable
from simulation.model.contract import Contract
from simulation.model.outcome import TERMINAL
from simulation.scenario.schema import SaleOffer
from simulation.target.opening import Answer, connect, open_sales, send

STOCK: Final = 3
WAIT_S: Final = 5.0
"""Longest time until something that was done just now is shown."""
PATIENCE_S: Final = 20.0
"""Longest time in which it is shown otherwise: sold units may be counted late."""
POLL_S: Final = 0.2
CLOCKS_US: Final = 60_000_000
"""By how much the engine's clock may differ from this one; a wrong unit or zone is more."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A sale of a few units and, once `answer` is there, an accepted purchase of one."""

    sale: Sale
    user_id: int
    key: str
    """It was sent where the contract has one."""
    began_us: int
    """Unix µs."""
    answer: Answer | None = None
    order_id: str | None = None
    """None where the engine names none."""
    status: str | None = None
    """The state in which the order has ended; "" where that is not shown, None where none ever is."""
    fitting: frozenset[str] = frozenset()
    """What of the description it showed to fit, as in FinalState."""
    wrong: str | None = None
    """How the purchase is shown otherwise than it was answered, in words."""

    @property
    def sold(self) -> set[int]:
        """The numbers of units that may be sold by now."""
        if self.answer is None:
            return {0}
        return {1} if self.status in (None, "CONFIRMED") else {0, 1}


async def open_trial(
    contract: Contract, url: str, ca: str | None, tokens: Mapping[int, str], admin_token: str | None
) -> Trial:
    """Open a sale of a product that nobody else sells. Raises EngineError."""
    offer = SaleOffer(product_id=900_000_000 + randbelow(99_999_999), stock=STOCK)
    [sale] = await open_sales((url,), [offer], admin_token, contract=contract, ca=ca)
    return Trial(
        sale=sale, user_id=min(tokens, default=1), key=token_hex(8), began_us=time.time_ns() // 1_000
    )


async def buy_trial(
    trial: Trial, contract: Contract, url: str, ca: str | None, tokens: Mapping[int, str]
) -> Trial:
    """Buy one unit of the sale. Raises EngineError if that is not accepted."""
    values: dict[str, Any] = {"user_id": trial.user_id, "product_id": trial.sale.terms.product_id}
    values |= {"key": trial.key, "token": tokens.get(trial.user_id)}
    async with connect(ca) as session:
        answer = await send(session, url.rstrip("/"), contract.buy, **values)
    outcome, order_id = contract.classify(answer.status, answer.body, answer.head)
    if outcome != "ACCEPTED":
        raise EngineError(f"it is {outcome} by the answer {answer.status} {answer.body[:100]!r}")
    return replace(trial, answer=answer, order_id=order_id)


async def await_shown(look: Callable[[], Awaitable[T]]) -> T | None:
    """Return what is shown of something that was done just now, or what is in its place after WAIT_S.

    `look` returns a false value while it is not shown, None where it never is, and raises Misread where it is
    shown otherwise. Raises that error if it stays so.
    """
    started = time.monotonic()
    while True:
        found, wrong = None, None
        try:
            if (found := await look()) or found is None:
                return found
        except Misread as error:
            wrong = error
        except (EngineError, Unreadable):
            return None
        waited_s = time.monotonic() - started
        if wrong and waited_s >= PATIENCE_S:
            raise wrong
        if not wrong and waited_s >= WAIT_S:
            return found
        await asyncio.sleep(POLL_S)


async def await_all(*looks: Callable[[], Awaitable[T]]) -> list[T | None]:
    """Do several looks at the same time. Raises Misread."""
    tasks = [asyncio.create_task(await_shown(look)) for look in looks]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel(*tasks)


def check_stock(
    trial: Trial, where: str, shown: Mapping[str, int | None], others: Mapping[str, str] = {}
) -> None:
    """Raise Misread if the units that are shown are not those of the sale.

    After a purchase it is Misdone, unless one of the `others`, parts of the answer that the contract does not
    read, is the right number.
    """
    stock, sold = trial.sale.terms.stock, trial.sold
    when = "before any purchase" if trial.answer is None else "after a purchase of one"
    remaining = {stock - units for units in sold}
    wanted = {"stock": {stock}, "initial": {stock}, "remaining": remaining, "sold": sold}
    for name, number in shown.items():
        if number is not None and number not in wanted[name]:
            right = {str(units) for units in wanted[name]}
            other = next((f", as is {place}" for place, text in others.items() if text in right), "")
            raise (Misread if other or trial.answer is None else Misdone)(
                f"{where}: {name} is {number} {when}, of a sale of {stock} units;"
                f" it should be {' or '.join(sorted(right))}{other}"
            )


def check_order(trial: Trial, row: Mapping[str, Any], contract: Contract) -> str:
    """Return the state in which an order of a statement has ended, or "". Raises Misdone if it is not that of
    the trial, Misread if that can't be read."""
    wanted: dict[str, Any] = {"user_id": trial.user_id, "sale_id": trial.sale.sale_id, "quantity": 1}
    # A shop of one product is told of none.
    if "product_id" in contract.init.names | contract.buy.names:
        wanted["product_id"] = trial.sale.terms.product_id
    if contract.has_keys:
        wanted["idempotency_key"] = trial.key
    for name, value in wanted.items():
        if name in row and row[name] != value:
            raise Misdone(f"sql.orders: {name} is {row[name]!r} for a purchase just now with {value!r}")
    now_us = time.time_ns() // 1_000
    for name in ("accepted_us", "settled_us"):
        at_us = row.get(name)
        if at_us is not None and not trial.began_us - CLOCKS_US <= at_us <= now_us + CLOCKS_US:
            raise Misread(
                f"sql.orders: {name} is {at_us} for a purchase just now, at {now_us} µs of Unix time"
            )
    status = str(row.get("status", "CONFIRMED"))
    check_status("sql.orders: status", status)
    return status if status in TERMINAL else ""


def check_status(where: str, status: str, hint: str = "") -> None:
    """Raise Misread if a status is none."""
    if status not in (*TERMINAL, "PENDING"):
        raise Misread(f"{where} is {status!r}, none of PENDING, {', '.join(TERMINAL)}{hint}")
