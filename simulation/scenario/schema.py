"""The schema of a scenario: what is sold, who buys and when, and how the load is driven."""

import math
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from simulation.scenario.arrivals import Segment
from simulation.scenario.chaos import Chaos, draw_faults
from simulation.scenario.condition import Span
from simulation.scenario.fault import Fault
from simulation.scenario.patience import Patience
from simulation.scenario.reads import Reads

MAX_ID = 2**63 - 1
"""Largest id of a user or a product."""
MAX_STOCK = 10**12
"""Largest stock of a sale."""
Id = Annotated[int, Meta(ge=1, le=MAX_ID)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the scenario; a key that it does not know is an error."""


class SaleOffer(Part, frozen=True):
    """A sale that the run opens before the load."""

    product_id: Id
    stock: Annotated[int, Meta(ge=0, le=MAX_STOCK)]
    limit: Annotated[int, Meta(ge=1, le=MAX_STOCK)] | None = None
    """Most units that one user may buy; None is no limit."""
    quantity: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    """Units that one purchase takes."""
    products: Annotated[int, Meta(ge=1, le=100_000)] = 1
    """Number of products, from `product_id` on, each in its own sale."""
    starts_in_s: Annotated[float, Meta(ge=0, le=7 * 86_400)] | None = None
    """When it opens, from the run's start, by the gate's clock; None: it is open from the start."""
    ends_in_s: Annotated[float, Meta(gt=0, le=7 * 86_400)] | None = None
    """When it ends, from the run's start, by the gate's clock; None: never."""

    def each(self) -> list["SaleOffer"]:
        """Return one offer for each product."""
        ids = range(self.product_id, self.product_id + self.products)
        return [msgspec.structs.replace(self, product_id=product_id, products=1) for product_id in ids]


class Restock(Part, frozen=True):
    """A further sale of a product during the load, on the terms of the sale that it replaces."""

    at_s: Annotated[float, Meta(gt=0)]
    """When it is opened, from the run's start."""
    product_id: Id
    stock: Annotated[int, Meta(ge=0, le=MAX_STOCK)]


class Bots(Part, frozen=True):
    """Programs among the people: each sends many requests without a key and ignores the answers."""

    users: Annotated[int, Meta(ge=1, le=MAX_ID)]
    """Number of bots, all equally likely."""
    share: Annotated[float, Meta(gt=0, lt=1)]
    """Their share of the requests."""


class Population(Part, frozen=True):
    """Who buys: user ids 1 to `users`, all equally likely."""

    users: Annotated[int, Meta(ge=1, le=MAX_ID)]
    keyed_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of the requests that carry an Idempotency-Key."""
    zipf: Annotated[float, Meta(ge=0, le=10)] = 0.0
    """Exponent s of the products' popularity: the share of the k-th sale in the requests is proportional to
    1/k^s (Zipf's law); 0 makes all equally popular."""
    patience: Patience | None = None
    """Which clients try again; None: nobody does."""
    bots: Bots | None = None
    reads: Reads | None = None
    """Who looks at the stock and at orders; None: nobody does."""


class DriverOptions(Part, frozen=True):
    """How the load is driven."""

    processes: Annotated[int, Meta(ge=1, le=64)] = 1
    connections: Annotated[int, Meta(ge=1, le=50_000)] = 1_000
    """Most connections of one process."""
    connection_per_request: bool = False
    """Whether every request opens its own connection, as a crowd of strangers does."""
    timeout_ms: Annotated[int, Meta(ge=10, le=600_000)] = 5_000
    """Longest wait for an answer, and longest wait of a request for a connection."""
    late_p99_ms: Annotated[float, Meta(gt=0, le=60_000)] = 50.0
    """Largest p99 of the lag (sent − intended) with which a run is valid."""
    connections_may_run_out: bool = False
    """Whether a run stays valid if requests had to wait for a free connection."""
    may_give_up: bool = False
    """Whether a run stays valid if requests were never sent, because they waited for the whole timeout."""


class Topology(Part, frozen=True):
    """The machines that the run's own engine and its services take, all of them on this one.

    Three machines have a Redis Cluster of three primaries with two replicas each, three nodes of RabbitMQ,
    and PostgreSQL with two synchronous standbys.
    """

    machines: Literal[1, 3] = 1
    front_doors: Annotated[int, Meta(ge=1, le=64)] = 1
    """Engines beside each other, each with all stages and an address of its own."""
    shards: Annotated[int, Meta(ge=1, le=1_024)] = 1
    """Parts of the gate, over which the products are spread; of an engine at --target as well."""
    copies: Annotated[int, Meta(ge=1, le=3)] = 1
    """Machines that hold an accepted purchase before it is answered."""


class TargetChoice(Part, frozen=True):
    """The engine under test, where it is not a private Flashgrid; options of the command line go before."""

    engine: str | None = None
    """The name of a description, or its TOML file."""
    url: str | None = None
    witness: Literal["flashgrid", "sql", "http"] | None = None


class Scenario(Part, frozen=True):
    """A scenario. The same scenario gives the same plan."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)")]
    text: str
    """What it simulates, in a few words."""
    seed: Annotated[int, Meta(ge=0, le=MAX_ID)]
    sales: Annotated[list[SaleOffer], Meta(min_length=1)]
    arrivals: Annotated[list[Segment], Meta(min_length=1)]
    population: Population
    restocks: list[Restock] = []
    driver: DriverOptions = DriverOptions()
    target: TargetChoice = TargetChoice()
    topology: Topology = Topology()
    engine: dict[str, str | int | float | bool] = {}
    """The engine's settings, if the run starts a private engine."""
    faults: list[Fault] = []
    """What is done to the private engine and its services during the load."""
    chaos: Chaos | None = None
    """How faults are drawn from the seed, if they are not given one by one."""
    thresholds: list[str] = []
    """What the run must reach besides correctness: conditions (simulation.scenario.condition)."""
    abort_when: list[str] = []
    """When the load stops early because it is hopeless: conditions on what the driver has seen so far."""
    drain_s: Annotated[float, Meta(ge=0, le=86_400)] = 60.0
    """Longest wait after the load until every accepted purchase is settled."""
    recover_s: Annotated[float, Meta(gt=0, le=3_600)] = 10.0
    """Longest time from a fault's end until the engine works as before."""

    def duration_s(self) -> float:
        """Return the length of the arrival curve, in seconds."""
        return math.fsum(segment.seconds for segment in self.arrivals)

    def timeline(self) -> list[Fault]:
        """Return the given faults, or those that chaos draws from the seed. Raises ValueError."""
        if self.chaos is None:
            return self.faults
        return draw_faults(self.chaos, self.seed, self.duration_s(), self.topology.machines)

    def phases(self) -> list[tuple[str, float, float]]:
        """Return name, start and end of each segment, in seconds from the run's start."""
        found, start = [], 0.0
        for number, segment in enumerate(self.arrivals, 1):
            found.append((segment.name or f"segment {number}", start, start + segment.seconds))
            start += segment.seconds
        return found

    def spans(self) -> dict[str, Span]:
        """Return the phases and the faults (as "stop front-door") by name.

        A name that occurs more than once spans from its first start to its last end.
        """
        found: dict[str, Span] = {}
        faults = [(f"{fault.kind} {fault.on}", fault.at_s, fault.end_s) for fault in self.faults]
        for name, start, end in self.phases() + faults:
            found[name] = (found.get(name, (start, end))[0], end)
        return found
