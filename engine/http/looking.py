"""Looking: the stock and orders, read at once for all that ask at the moment.

While one read of a store is under way, the looks that arrive wait, and share the next one: each look shares
only a read that began after it asked. So a crowd costs one round trip at a time, on a connection that nobody
else uses.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, Generic, TypeVar

import msgspec

from engine.errors import GateUnavailable, InputError, LedgerUnavailable
from engine.gate.looks.reads import Confirmed, GateReads, Stock
from engine.http.answers import PRUNED, Answer, answer_input_error, answer_purchase, make_problem
from engine.ledger.ledger import Ledger
from engine.model.order import Order, OrderStatus
from engine.model.order_id import read_time_ms
from engine.model.purchase import Outcome
from engine.settings import Settings

log = logging.getLogger(__name__)

LOOK_SHARE: Final = 0.9
"""Of look_timeout_ms, for the stores; the rest is for the answer."""
_MOST: Final = 512
"""Most products or orders in one read."""
_REMEMBERED: Final = 32_768
"""Most settled orders that a worker remembers, about 600 bytes each."""
_UNPRUNED_S: Final = 43_200.0
"""No order is pruned that is younger, on whatever machine's clock; `flashgrid prune` keeps twice as much."""

_GATE_UNAVAILABLE: Final = answer_purchase(Outcome.GATE_UNAVAILABLE, None)
_UNKNOWN_PRODUCT: Final = answer_purchase(Outcome.UNKNOWN_PRODUCT, None)
_LEDGER_UNAVAILABLE: Final = make_problem(
    503, "Ledger unavailable", "try again", "LEDGER_UNAVAILABLE", retry=True
)
_UNKNOWN_ORDER: Final = answer_input_error(InputError("orderId", "this order was never accepted", 404))
_NOT_KNOWN_YET: Final = make_problem(
    503,
    "Not known yet",
    "it is not known yet whether this order was accepted; try again",
    "GATE_UNAVAILABLE",
    retry=True,
)

Reply = Callable[[Answer], None]
"""Called once with the answer to a look."""
Look = tuple[Reply, float]
"""A look that waits, and until when, on the loop's clock."""
Question = TypeVar("Question")
Found = TypeVar("Found")
OrderQuestion = tuple[str, bool | None]
"""An order, and whether it is pending; None where the gate does not know."""


class Looking:
    """The looks of a front-door worker."""

    def __init__(self, settings: Settings, reads: GateReads, ledger: Ledger) -> None:
        self._reads = reads
        self._ledger = ledger
        self._now_s = asyncio.get_running_loop().time
        self._look_s = settings.look_timeout_ms / 1000 * LOOK_SHARE
        least_s = self._look_s / 6
        self._stocks = _Line(reads.read_stocks, self._give_stocks, least_s)
        self._accepted = _Line(reads.read_orders, self._give_accepted, least_s)
        self._settled = _Line(self._find_settled, self._give_settled, least_s)
        self._known: dict[str, tuple[Answer, float]] = {}
        self._known_longer: dict[str, tuple[Answer, float]] = {}
        """Answers about settled orders, which never change, and until when on the loop's clock they can't be
        pruned; those that are known longer are given up together."""

    def show(self, what: int | str, reply: Reply) -> None:
        """Reply with the stock of a product, or the status of an order."""
        self._show_stock(what, reply) if isinstance(what, int) else self._show_order(what, reply)

    def _show_stock(self, product_id: int, reply: Reply) -> None:
        """Reply with the units of a product's current sale, as the gate counts them."""
        self._stocks.join(product_id, [(reply, self._now_s() + self._look_s)])

    def _show_order(self, order_id: str, reply: Reply) -> None:
        """Reply with the status of an order.

        Ask the gate before the ledger: an order leaves the gate's pending set only after the ledger has
        committed it, so at least one of them knows an order that was accepted. A gate that was away may hear
        later of what the ledger has shown meanwhile: then what is pending is asked of the ledger, too.
        """
        known = self._known.get(order_id) or self._known_longer.get(order_id)
        if known is not None and self._now_s() < known[1]:
            reply(known[0])
        else:
            # A gate that does not answer leaves half of the time for the ledger.
            self._accepted.join(order_id, [(reply, self._now_s() + self._look_s / 2)])

    def _give_stocks(self, looks: dict[int, list[Look]], stocks: dict[int, Stock | None] | None) -> None:
        for product_id, waiting in looks.items():
            if stocks is None or product_id not in stocks:
                answer = _GATE_UNAVAILABLE
            elif (stock := stocks[product_id]) is None:
                answer = _UNKNOWN_PRODUCT
            else:
                answer = _answer_stock(product_id, stock)
            _reply_all(waiting, answer)

    def _give_accepted(self, looks: dict[str, list[Look]], found: dict[str, bool | Confirmed] | None) -> None:
        if found is None:
            self._reads.away_at = time.monotonic()
        is_late = self._reads.is_late
        for order_id, waiting in looks.items():
            seen = found.get(order_id) if found else None
            if isinstance(seen, Confirmed) and _unpruned_s(order_id) <= 0:
                seen = False
            if isinstance(seen, Confirmed):
                _reply_all(waiting, self._remember(order_id, OrderStatus.CONFIRMED, *seen))
            elif seen and not is_late:
                _reply_all(waiting, _answer_pending(order_id))
            else:
                longer = [(reply, until_s + self._look_s / 2) for reply, until_s in waiting]
                self._settled.join((order_id, seen), longer)

    async def _find_settled(self, looks: list[OrderQuestion]) -> tuple[dict[str, Order], set[str]]:
        """Return the settled ones among these orders, and of the others those that may have been pruned."""
        order_ids = {order_id for order_id, _ in looks}
        orders = {order.order_id: order for order in await self._ledger.find_orders(order_ids)}
        missing = order_ids - orders.keys()
        return orders, await self._ledger.find_pruned(missing) if missing else set()

    def _give_settled(
        self, looks: dict[OrderQuestion, list[Look]], found: tuple[dict[str, Order], set[str]] | None
    ) -> None:
        orders, pruned = found or ({}, set())
        for (order_id, is_pending), waiting in looks.items():
            if found is None:
                answer = _LEDGER_UNAVAILABLE
            elif order := orders.get(order_id):
                answer = self._remember(
                    order_id, order.status, order.product_id, order.quantity, order.reason
                )
            elif is_pending:
                answer = _answer_pending(order_id)
            elif order_id in pruned:
                answer = PRUNED
            else:
                answer = _NOT_KNOWN_YET if is_pending is None else _UNKNOWN_ORDER
            _reply_all(waiting, answer)

    def _remember(
        self, order_id: str, status: OrderStatus, product_id: int, quantity: int, reason: str | None = None
    ) -> Answer:
        """Return the answer about a settled order, and keep it."""
        fields = {"orderId": order_id, "status": status, "productId": product_id, "quantity": quantity}
        if reason:
            fields["reason"] = reason
        answer = Answer(200, msgspec.json.encode(fields))
        if len(self._known) >= _REMEMBERED // 2:
            self._known, self._known_longer = {}, self._known
        self._known[order_id] = answer, self._now_s() + _unpruned_s(order_id)
        return answer


class _Line(Generic[Question, Found]):
    """The looks that wait for a store, by what they ask, and the read that is under way."""

    def __init__(
        self,
        read: Callable[[list[Question]], Awaitable[Found]],
        give: Callable[[dict[Question, list[Look]], Found | None], None],
        least_s: float,
    ) -> None:
        """`give` takes looks and what was found for them, None if nothing.

        A look that has less than `least_s` left shares no read: where a store is silent the read may begin
        with a connect, which costs much, and would be broken off at once.
        """
        self._read = read
        self._give = give
        self._least_s = least_s
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Question, list[Look]] = {}
        self._reading: asyncio.Task[None] | None = None

    def join(self, question: Question, looks: list[Look]) -> None:
        """Let looks, in the order of their time, share the next read."""
        waiting = self._waiting.setdefault(question, looks)
        if waiting is not looks:
            waiting += looks
        if self._reading is None or self._reading.done():
            self._reading = self._loop.create_task(self._read_all(), name="looks")

    async def _read_all(self) -> None:
        while self._waiting:
            looks, found = self._take(), None
            until_s = min(waiting[0][1] for waiting in looks.values())
            if until_s < self._loop.time() + self._least_s:
                looks = self._give_up(looks, self._loop.time() + self._least_s)
                if not looks:
                    continue
                until_s = min(waiting[0][1] for waiting in looks.values())
            try:
                async with asyncio.timeout_at(until_s):
                    found = await self._read([*looks])
            except (GateUnavailable, LedgerUnavailable, TimeoutError) as error:
                log.debug("looks share a read that failed: %s", error)
            except Exception:
                # Nothing may end this task: the looks behind would wait forever.
                log.exception("what a store answered could not be used")
            # After the next read is begun: to write so many replies takes about as long.
            self._loop.call_soon(self._give, looks, found)
        self._reading = None

    def _take(self) -> dict[Question, list[Look]]:
        """Take the looks of the next read out of those that wait, the oldest first."""
        if len(self._waiting) <= _MOST:
            looks, self._waiting = self._waiting, {}
            return looks
        return {question: self._waiting.pop(question) for question in [*self._waiting][:_MOST]}

    def _give_up(self, looks: dict[Question, list[Look]], before_s: float) -> dict[Question, list[Look]]:
        """Give nothing to the looks that can't wait any longer; return the others."""
        late: dict[Question, list[Look]] = {}
        rest: dict[Question, list[Look]] = {}
        for question, waiting in looks.items():
            for look in waiting:
                (late if look[1] < before_s else rest).setdefault(question, []).append(look)
        self._give(late, None)
        return rest


def _unpruned_s(order_id: str) -> float:
    """Return for how long the order can't be pruned yet; it may have been if that is negative."""
    return _UNPRUNED_S - (time.time() - read_time_ms(order_id) / 1000)


def _reply_all(looks: Iterable[Look], answer: Answer) -> None:
    for reply, _ in looks:
        reply(answer)


def _answer_pending(order_id: str) -> Answer:
    return Answer(200, msgspec.json.encode({"orderId": order_id, "status": OrderStatus.PENDING}))


def _answer_stock(product_id: int, stock: Stock) -> Answer:
    fields = {
        "productId": product_id,
        "saleId": stock.sale_id,
        "initial": stock.initial,
        "remaining": stock.remaining,
        "sold": stock.initial - stock.remaining,
    }
    return Answer(200, msgspec.json.encode(fields))
