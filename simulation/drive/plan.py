"""The plan: every request of a run, decided before the run starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from simulation.model.history import BUY, STOCK
from simulation.scenario.arrivals import Nanoseconds, Trace, draw_arrivals, draw_segments
from simulation.scenario.patience import Patience, draw_pauses
from simulation.scenario.reads import Reads
from simulation.scenario.schema import Scenario

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """The requests of a run, purchases and looks at the stock; the number of a request, its op, is its
    index."""

    intended_ns: Integers
    """Intended starts, sorted, ns from the run's start."""
    kind: npt.NDArray[np.uint8]
    """BUY or STOCK."""
    user_id: Integers
    """0 for a look at the stock."""
    product_id: Integers
    key: list[str | None]
    """Idempotency keys; None where the request carries none."""
    token: list[str] | None = None
    """The token of each buyer; None for an engine that takes none."""
    patience: Patience | None = None
    """After which outcomes, and how often, clients retry; None: none of them does."""
    pause_ns: Integers | None = None
    """The pause of each client before it retries, 0 where it never does; None without patience."""
    reads: Reads | None = None
    """How often buyers look at their orders; None: none of them does."""
    poll_ns: Integers | None = None
    """The pause of each buyer before a look at the order, 0 where it never looks; None without reads."""

    def __len__(self) -> int:
        return len(self.intended_ns)


def build_plan(scenario: Scenario, key_prefix: str = "") -> Plan:
    """Return the plan of a scenario: the same scenario gives the same plan.

    Arrivals, users, products, keys, bots, pauses and reads draw from streams of their own, so that a change
    to one leaves the others as they are. Bots have the user ids after those of the people; they send no key,
    never retry and never look, since they ignore the responses.

    `key_prefix` goes before each Idempotency-Key. An engine that outlives a run remembers its keys; with a
    prefix of its own, the next run is not answered with the orders of this one.
    """
    population = scenario.population
    streams = np.random.SeedSequence(scenario.seed).spawn(8)
    segments_ns = draw_segments(scenario.arrivals, streams[0])
    intended_ns = np.concatenate(segments_ns)
    users, products, keys, bots = (np.random.Generator(np.random.PCG64(stream)) for stream in streams[1:5])
    size = len(intended_ns)
    user_id = users.integers(1, population.users, size, endpoint=True)
    is_bot = np.zeros(size, np.bool_)
    if population.bots:
        is_bot = bots.random(size) < population.bots.share
        number = bots.integers(1, population.bots.users, size, endpoint=True)
        user_id = np.where(is_bot, population.users + number, user_id)
    pause_ns = None
    if population.patience:
        patience = population.patience
        drawn = draw_pauses(patience.pause_ms, patience.jitter, patience.share, size, streams[5])
        pause_ns = np.where(is_bot, 0, drawn)
    poll_ns = None
    if reads := population.reads:
        drawn = draw_pauses(reads.pause_ms, reads.jitter, reads.order_share, size, streams[6])
        poll_ns = np.where(is_bot, 0, drawn)
    on_sale = np.array([sale.product_id for sale in scenario.sales], np.int64)
    prefix = f"{key_prefix}{scenario.seed}-"
    product_id = on_sale[_draw_ranks(products, len(on_sale), population.zipf, size)]
    _replay_buyers(scenario, segments_ns, user_id, product_id)
    keyed = (keys.random(size) < population.keyed_share) & ~is_bot
    plan = Plan(
        intended_ns=intended_ns,
        kind=np.full(size, BUY, np.uint8),
        user_id=user_id,
        product_id=product_id,
        key=[f"{prefix}{op}" if has_key else None for op, has_key in enumerate(keyed.tolist())],
        patience=population.patience,
        pause_ns=pause_ns,
        reads=reads,
        poll_ns=poll_ns,
    )
    return _add_looks(plan, scenario, on_sale, reads.stock_share, streams[7]) if reads else plan


def _replay_buyers(
    scenario: Scenario, segments_ns: Sequence[Nanoseconds], user_id: Integers, product_id: Integers
) -> None:
    """Set user and product of each request in a trace that names them."""
    first = 0
    for segment, starts_ns in zip(scenario.arrivals, segments_ns, strict=True):
        mine = slice(first, first := first + len(starts_ns))
        if isinstance(segment, Trace) and segment.users:
            user_id[mine], product_id[mine] = segment.find_buyers(len(starts_ns))


def give_tokens(plan: Plan, tokens: Mapping[int, str]) -> Plan:
    """Return the plan in which each buyer has the token of that user."""
    return replace(plan, token=[tokens.get(user, "") for user in plan.user_id.tolist()])


def _add_looks(
    plan: Plan, scenario: Scenario, on_sale: Integers, share: float, stream: np.random.SeedSequence
) -> Plan:
    """Return the plan with looks at the stock: a `share` of a second crowd on the same arrival curve, as
    interested in each product as the first one."""
    arrivals, *streams = stream.spawn(3)
    chosen, products = (np.random.Generator(np.random.PCG64(each)) for each in streams)
    look_ns = draw_arrivals(scenario.arrivals, arrivals)
    look_ns = look_ns[chosen.random(len(look_ns)) < share]
    looks = len(look_ns)
    product_id = on_sale[_draw_ranks(products, len(on_sale), scenario.population.zipf, looks)]
    intended_ns = np.concatenate([plan.intended_ns, look_ns])
    order = np.argsort(intended_ns, kind="stable")

    def merge(bought: npt.NDArray[Any], looked: Any = 0) -> npt.NDArray[Any]:
        return np.concatenate([bought, np.broadcast_to(np.asarray(looked, bought.dtype), looks)])[order]

    return replace(
        plan,
        intended_ns=intended_ns[order],
        kind=merge(plan.kind, STOCK),
        user_id=merge(plan.user_id),
        product_id=merge(plan.product_id, product_id),
        key=merge(np.array(plan.key, object), None).tolist(),
        pause_ns=None if plan.pause_ns is None else merge(plan.pause_ns),
        poll_ns=None if plan.poll_ns is None else merge(plan.poll_ns),
    )


def _draw_ranks(random: np.random.Generator, ranks: int, zipf: float, size: int) -> Integers:
    """Return `size` ranks from 0, rank k with a probability proportional to 1 / (k + 1)^zipf."""
    if not zipf:
        return random.integers(0, ranks, size)
    share = np.cumsum(np.arange(1, ranks + 1, dtype=np.float64) ** -zipf)
    ranks_drawn: Integers = np.searchsorted(share, random.random(size) * share[-1], side="right")
    return ranks_drawn
