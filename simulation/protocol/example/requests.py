"""What users and operators ask for in an example, and what they are told. Times count events."""

from collections.abc import Iterable
from itertools import count
from typing import Any, cast

import msgspec

from engine.errors import FlashgridError, OutcomeUnknown
from engine.model.purchase import Outcome
from engine.model.sale import SaleTerms
from simulation.protocol.example.losses import Losses
from simulation.protocol.example.processes import FrontDoor, Process
from simulation.protocol.steps import Clock, Step, StepLoop


class Purchase(msgspec.Struct):
    """A request to buy."""

    user_id: int
    product_id: int
    key: str | None
    sent: int
    front_door: Any
    done: int | None = None
    outcome: Outcome | None = None
    order_id: str | None = None
    is_doubtful: bool = False
    """Whether a loss may have made its refusal untrue: it was told before, or until gate and ledger agree."""


class Opening(msgspec.Struct):
    """A sale that an operator opens, perhaps several times, under one key."""

    terms: SaleTerms
    key: str
    asked: int
    opened: int | None = None
    sale_id: int | None = None
    unsure: int = 0
    """Requests that are under way, or that were not told that they opened nothing."""


class Requests:
    """All requests of one example, and how they are made."""

    loop: StepLoop
    clock: Clock
    losses: Losses
    processes: list[Process]

    def __init__(self) -> None:
        self.purchases: list[Purchase] = []
        self.openings: dict[str, Opening] = {}
        self.trace: list[str] = []
        self._events = count(1)
        self.asleep: FrontDoor | None = None
        """The front door that stands still; clients ask the other one."""
        self._opens_ms = 0
        """When an operator last asked for a sale."""

    def buy(self, number: int, product_id: int, buyers: Iterable[tuple[int, str | None]]) -> None:
        """Send purchases to a front door at the same time."""
        front_door = self._door(number)
        for user_id, key in buyers:
            purchase = Purchase(user_id, product_id, key, next(self._events), front_door)
            purchase.is_doubtful = self.losses.is_doubtful
            self.purchases.append(purchase)
            self._say(f"user {user_id} asks {front_door.name} for product {product_id}, key {key}")

            def reply(outcome: Outcome, order_id: str | None, purchase: Purchase = purchase) -> None:
                purchase.done, purchase.outcome, purchase.order_id = next(self._events), outcome, order_id
                self._say(f"user {purchase.user_id} is told {outcome} {order_id or ''}")

            front_door.gate.submit((b"%d" % user_id, b"%d" % product_id, key, reply))
        self.loop.run_until_idle()

    def buy_again(self, number: int, choice: int) -> None:
        """Have a user who asked under a key ask again."""
        if keyed := [each for each in self.purchases if each.key is not None]:
            purchase = keyed[choice % len(keyed)]
            self.buy(number, purchase.product_id, [(purchase.user_id, purchase.key)])

    def open_sale(self, number: int, terms: SaleTerms, key: str, at_once: bool = False) -> None:
        """Have a front door open a sale; again under the same key, it asks for the same."""
        front_door = self._door(number)
        self._opens_ms = self.clock.now_ms
        opening = self.openings.setdefault(key, Opening(terms, key, next(self._events)))
        self._say(f"an operator asks {front_door.name} for sale {key}: {opening.terms}")

        async def work() -> None:
            opening.unsure += 1
            try:
                sale = await front_door.open_sale(opening.terms, key)
            except OutcomeUnknown:
                return
            except FlashgridError:
                opening.unsure -= 1
                return
            opening.sale_id = sale.sale_id
            opening.opened = opening.opened or next(self._events)

        task = front_door.start(work())
        self.loop.run_until_idle()
        while at_once and not task.done():
            self.run(front_door, next(step for step in front_door.waiting if step.task is task), 1)

    def run(self, process: Process, step: Step, most: int) -> None:
        """Let the task that waits take so many steps at most."""
        raise NotImplementedError

    def _door(self, number: int) -> FrontDoor:
        other = 1 - number
        return cast(FrontDoor, self.processes[other if self.processes[number] is self.asleep else number])

    def _say(self, what: str) -> None:
        self.trace.append(what)
