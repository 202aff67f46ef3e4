"""The witness of Flashgrid: its own stores, read past the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from engine.model.sale import Sale
from simulation.model.state import FinalState
from simulation.target.final_state import read_final_state
from simulation.target.opening import check_ownership
from simulation.target.services import Services
from simulation.target.stores import BusStore, GateStore, LedgerStore, Store
from simulation.target.witness.trial import Trial


@dataclass(frozen=True)
class FlashgridWitness:
    """Reads Redis, RabbitMQ and PostgreSQL of a Flashgrid engine."""

    services: Services
    shards: int

    async def check(self, sales: Sequence[Sale]) -> None:
        """Raise EngineError unless these services hold the sales."""
        await check_ownership(self.services, sales, self.shards)

    async def shows(self, trial: Trial) -> str | None:
        """Return None: these stores are laid out as this witness reads them, and need no trial."""
        return None

    async def shows_stock(self, trial: Trial) -> bool | None:
        """Return None, as `shows`."""
        return None

    def open_stores(self, sales: Sequence[Sale]) -> list[Store]:
        """Return gate, ledger and bus."""
        services = self.services
        stores: list[Store] = [
            GateStore(services.redis_url, sales, self.shards),
            LedgerStore(services.postgres_url, sales),
        ]
        return stores if services.amqp_url is None else [*stores, BusStore(services.amqp_url)]

    async def read(
        self,
        sales: Sequence[Sale],
        accepted: pd.DataFrame,
        drain_s: float,
        steady_s: float,
        trial: Trial | None = None,
    ) -> FinalState:
        """Wait for the drain and read every store."""
        return await read_final_state(
            self.services,
            self.shards,
            sale_ids=[sale.sale_id for sale in sales],
            drain_timeout_s=drain_s,
            steady_s=steady_s,
        )
