"""Payments: batches are charged within a bound, and those whose payment fails are tried again apart.

Such a batch leaves the line. It is cut, and its pieces are charged again beside the other batches, later and
later, until an order that can't be paid stands alone. If the gateway goes on working for others, the order
ends as a dead letter.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from engine.errors import PaymentUnavailable
from engine.gate.looks.backlog import Illness
from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, count_orders, encode_lots
from engine.payment.gateway import PaymentGateway
from engine.settings import Settings
from engine.stages.batch import Batch, Trials
from engine.stages.lifecycle import Pause

log = logging.getLogger(__name__)

_MOST_ORDERS: Final = 20_000
"""Orders that are tried again apart from the others. Further ones hold up those behind them."""
_AT_A_TIME: Final = 16
_LONGEST_PAUSE_S: Final = 30.0
_ATTEMPTS_AT_A_STOP: Final = 5
"""A stop does not wait for a payment that has failed so often."""


class Payments:
    """Charges the batches of one fulfilment."""

    def __init__(self, gateway: PaymentGateway, pause: Pause, settings: Settings) -> None:
        self._gateway = gateway
        self._pause = pause
        self._timeout_s = settings.payment_timeout_ms / 1000
        self._attempts = settings.payment_attempts
        self._answers = 0
        """How often the gateway has answered."""
        self._apart: dict[Batch, Trials] = {}
        self._orders = 0
        """Orders in batches apart."""
        self._slots = asyncio.Semaphore(_AT_A_TIME)

    @property
    def waiting(self) -> bool:
        """Whether there are batches whose payment is tried again."""
        return bool(self._apart)

    def find_illnesses(self) -> dict[str, Illness]:
        """Return whether payments fail."""
        if not self._apart:
            return {}
        since = min(trials.since for trials in self._apart.values())
        return {"payment": Illness(time.monotonic() - since, f"the payment of {self._orders} orders fails")}

    async def charge(self, lots: Sequence[Lot]) -> Mapping[str, str]:
        """Return the declines. Raises PaymentUnavailable, whatever the gateway raises, or if it hangs."""
        if not lots:
            return {}
        try:
            async with asyncio.timeout(self._timeout_s):
                declines = await self._gateway.charge(lots)
        except Exception as error:
            text = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise PaymentUnavailable(f"payment failed: {text}") from error
        self._answers += 1
        return declines

    def set_apart(
        self, batch: Batch, lots: Sequence[Lot], error: PaymentUnavailable
    ) -> tuple[list[Batch], list[DeadLetter]]:
        """Take lots whose payment failed out of their batch.

        Return them as batches for `retry`, or as a dead letter what has failed too often. Raises the error if
        too many orders are apart already.
        """
        since, attempts, failures, answers = batch.trials or Trials(time.monotonic(), 0, 0, 0)
        orders = count_orders(lots)
        # A gate that is closed can't open before nothing is under way.
        failures += orders == 1 and (self._answers > answers or self._pause.wanted)
        if failures >= self._attempts:
            return [], [DeadLetter(encode_lots(lots), str(error))]
        if self._orders + orders > _MOST_ORDERS:
            raise error
        if not self._apart:
            log.warning("payments fail, and are tried again apart from others: %s", error)
        trials = Trials(since, attempts + 1, failures, self._answers)
        pieces = batch.take_out(lots, trials)
        self._apart |= dict.fromkeys(pieces, trials)
        self._orders += orders
        return pieces, []

    async def retry(
        self, batch: Batch, fulfil: Callable[[Batch], Awaitable[None]], stop: asyncio.Event
    ) -> None:
        """Fulfil a batch that was set apart, after a pause; leave it to the next start at a stop."""
        orders, attempts = count_orders(batch.lots), self._apart[batch].attempts
        try:
            pause_s = min(0.1 * 4 ** (attempts - 1), _LONGEST_PAUSE_S) * random.uniform(0.5, 1)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), pause_s)
            if stop.is_set():
                if attempts >= _ATTEMPTS_AT_A_STOP:
                    log.debug("%d orders are not paid; they are kept for the next start", orders)
                    return
                await asyncio.sleep(min(pause_s, 0.5))
            async with self._slots:
                await fulfil(batch)
        finally:
            del self._apart[batch]
            self._orders -= orders
            if not self._apart:
                log.info("no payment is left to try again")
