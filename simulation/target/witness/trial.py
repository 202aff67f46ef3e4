"""A purchase before the load, of a sale of its own.

Where its answer is understood and its order found, the description fits, and what is not found later is lost.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from secrets import randbelow, token_hex
from typing import Any, Final

from engine.model.sale import Sale
from simulation.errors import EngineError, Unreadable
from simulation.model.contract import Contract
from simulation.scenario.schema import SaleOffer
from simulation.target.opening import Answer, connect, open_sales, send

WAIT_S: Final = 5.0
"""Longest time until an order that was bought just now is shown."""
POLL_S: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A purchase that was accepted."""

    sale: Sale
    user_id: int
    answer: Answer
    order_id: str | None
    """None where the engine names none."""
    fitting: frozenset[str] = frozenset()
    """What of the description it showed to fit, as in FinalState."""


async def make_trial(
    contract: Contract, url: str, ca: str | None, tokens: Mapping[int, str], admin_token: str | None
) -> Trial | None:
    """Open a sale of one unit, of a product that nobody else sells, and buy it; None if that was refused."""
    offer = SaleOffer(product_id=900_000_000 + randbelow(99_999_999), stock=1)
    user_id = min(tokens, default=1)
    values: dict[str, Any] = {"user_id": user_id, "product_id": offer.product_id, "key": token_hex(8)}
    values["token"] = tokens.get(user_id)
    try:
        [sale] = await open_sales((url,), [offer], admin_token, contract=contract, ca=ca)
        async with connect(ca) as session:
            answer = await send(session, url.rstrip("/"), contract.buy, **values)
    except EngineError:
        return None
    outcome, order_id = contract.classify(answer.status, answer.body, answer.head)
    if outcome != "ACCEPTED":
        return None
    return Trial(sale=sale, user_id=user_id, answer=answer, order_id=order_id)


async def is_found(look: Callable[[], Awaitable[bool | None]]) -> bool:
    """Return whether something that was bought just now is found, in WAIT_S; None says that it never will."""
    until_s = time.monotonic() + WAIT_S
    while True:
        try:
            if (found := await look()) is not False:
                return bool(found)
        except (EngineError, Unreadable):
            return False
        if time.monotonic() >= until_s:
            return False
        await asyncio.sleep(POLL_S)
