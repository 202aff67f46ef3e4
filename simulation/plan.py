"""The plan: every request of a run, decided before the run starts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simulation.arrivals import draw_arrivals
from simulation.scenario import Scenario

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """One row for each request; its number, the op, is its index."""

    intended_ns: Integers
    """Intended starts, sorted, ns from the run's start."""
    user_id: Integers
    product_id: Integers
    key: list[str | None]
    """Idempotency keys; None where the request carries none."""

    def __len__(self) -> int:
        return len(self.intended_ns)


def build_plan(scenario: Scenario, key_prefix: str = "") -> Plan:
    """The requests of a scenario: the same scenario gives the same plan.

    Arrivals, users, products and keys draw from streams of their own, so that a change to one leaves the
    others as they are. `key_prefix` goes before each Idempotency-Key: an engine that outlives a run remembers
    its keys, and a prefix of the run's own keeps the next run from being answered with this one's orders.
    """
    streams = np.random.SeedSequence(scenario.seed).spawn(4)
    intended_ns = draw_arrivals(scenario.arrivals, streams[0])
    users, products, keys = (np.random.Generator(np.random.PCG64(stream)) for stream in streams[1:])
    size = len(intended_ns)
    on_sale = np.array([sale.product_id for sale in scenario.sales], np.int64)
    prefix = f"{key_prefix}{scenario.seed}-"
    keyed = keys.random(size) < scenario.population.keyed_share
    return Plan(
        intended_ns=intended_ns,
        user_id=users.integers(1, scenario.population.users, size, endpoint=True),
        product_id=on_sale[_draw_ranks(products, len(on_sale), scenario.population.zipf, size)],
        key=[f"{prefix}{op}" if has_key else None for op, has_key in enumerate(keyed.tolist())],
    )


def _draw_ranks(random: np.random.Generator, ranks: int, zipf: float, size: int) -> Integers:
    """As many ranks from 0, rank k with a probability proportional to 1 / (k + 1)^zipf."""
    if not zipf:
        return random.integers(0, ranks, size)
    share = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -zipf)
    ranks_drawn: Integers = np.searchsorted(share, random.random(size) * share[-1], side="right")
    return ranks_drawn
