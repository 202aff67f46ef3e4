"""Restocks: further sales of a product, opened while the load goes on."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence

from engine.model.sale import Sale
from simulation.model.events import Restocked
from simulation.scenario.schema import Restock, SaleOffer
from simulation.target.background import Background


class Restocker(Background):
    """Opens the restocks of a run, each at its time and on the terms of the sale that it replaces."""

    def __init__(
        self,
        restocks: Sequence[Restock],
        sales: list[Sale],
        open_offers: Callable[[list[SaleOffer]], Awaitable[list[Sale]]],
    ) -> None:
        """`sales` are those that are open; a restock joins them. `open_offers` opens sales at the engine."""
        super().__init__()
        self._restocks = sorted(restocks, key=lambda restock: restock.at_s)
        self._sales = sales
        self._open = open_offers
        self._done: list[Restocked] = []
        self._over = asyncio.Event()

    async def finish(self) -> list[Restocked]:
        """Open no more, wait for a restock under way, and return those that were done. Raises EngineError."""
        self._over.set()
        await self._task
        return self._done

    async def _run(self) -> None:
        await self._begun.wait()
        for restock in self._restocks:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), restock.at_s - self._seconds())
                return
            at_s = self._seconds()
            terms = next(sale.terms for sale in self._sales if sale.terms.product_id == restock.product_id)
            offer = SaleOffer(
                product_id=restock.product_id,
                stock=restock.stock,
                limit=terms.limit,
                quantity=terms.quantity,
            )
            self._sales += (opened := await self._open([offer]))
            self._done.append(
                Restocked(
                    at_s=round(at_s, 3),
                    opened_s=round(self._seconds(), 3),
                    product_id=restock.product_id,
                    stock=restock.stock,
                    sale_id=opened[0].sale_id,
                )
            )
