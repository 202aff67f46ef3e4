"""What a run asks of a witness, and a witness that knows nothing."""

from collections.abc import Sequence
from typing import Protocol

import pandas as pd

from engine.model.sale import Sale
from simulation.model.state import FinalState
from simulation.target.stores import Store
from simulation.target.witness.trial import Trial


class Witness(Protocol):
    """Tells what the engine under test holds."""

    async def check(self, sales: Sequence[Sale]) -> None:
        """Raise EngineError unless it can tell of these sales, which were opened just now."""

    async def shows(self, trial: Trial) -> str | None:
        """Return the state in which the order of a purchase has ended; "" while it is not shown, None if it
        never is. Raises Misread if it is shown otherwise, EngineError or Unreadable."""

    async def shows_stock(self, trial: Trial) -> bool | None:
        """Return whether it shows the sale of a trial; None if it never does. Raises as `shows` does."""

    def open_stores(self, sales: Sequence[Sale]) -> list[Store]:
        """Return what probes may read while the run goes on; `sales` may grow meanwhile."""

    async def read(
        self,
        sales: Sequence[Sale],
        accepted: pd.DataFrame,
        drain_s: float,
        steady_s: float,
        trial: Trial | None = None,
    ) -> FinalState:
        """Wait at most `drain_s` until everything has settled, for `steady_s`, and return what is held then.

        `accepted` are the purchases that clients were told are accepted, with the history's columns.
        """


class NoWitness:
    """Knows nothing, so that the verdict is unknown."""

    async def check(self, sales: Sequence[Sale]) -> None:
        """Check nothing."""

    async def shows(self, trial: Trial) -> str | None:
        """Return None."""
        return None

    async def shows_stock(self, trial: Trial) -> bool | None:
        """Return None."""
        return None

    def open_stores(self, sales: Sequence[Sale]) -> list[Store]:
        """Return nothing."""
        return []

    async def read(
        self,
        sales: Sequence[Sale],
        accepted: pd.DataFrame,
        drain_s: float,
        steady_s: float,
        trial: Trial | None = None,
    ) -> FinalState:
        """Return a state of which nothing could be read."""
        reason = "the engine's services are not known: give --redis-url and --postgres-url"
        return FinalState(unread=dict.fromkeys(("gate", "bus", "ledger"), reason))
