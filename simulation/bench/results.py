"""What the benchmark found: the fields of bench.json. Rates are per second; names tell the unit of times."""

from datetime import datetime
from typing import Final

import msgspec

from simulation.bench.samples import Cost, Sample, Spread


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the result."""


class FrontDoor(Result, frozen=True):
    """One HTTP server at one number of connections."""

    subject: str
    connections: int
    rps: Spread
    samples: list[Sample]


class Compared(Result, frozen=True):
    """Requests of one kind to the engine, and the very same to nginx, in turn."""

    subject: str
    connections: int
    nginx_rps: Spread
    engine_rps: Spread
    ratio: Spread
    """Engine over nginx, round by round."""
    nginx_us: Spread
    engine_us: Spread
    """Processor time of a request on the server's side."""
    faults: list[str] = []


class Ratio(Result, frozen=True):
    """One measurement over another one, each round by itself."""

    name: str
    connections: int
    ratio: Spread
    interval: tuple[float, float] | None = None
    """95 % confidence interval of the median, where one was asked for and the rounds suffice."""


class ProcessCost(Result, frozen=True):
    """Processor time of one process per accepted purchase, of this checkout's engine and of the other's."""

    process: str
    this_us: Spread
    other_us: Spread


class Against(Result, frozen=True):
    """This checkout's engine beside that of another one, of that commit, measured in turn."""

    commit: str
    front_door: list[FrontDoor]
    ratios: list[Ratio]
    """This over other."""
    processes: list[ProcessCost]


class Persisted(Result, frozen=True):
    """What relay, bus, fulfilment and ledger did while the front door accepted, and afterwards."""

    connections: int
    accepted_rps: Spread
    during_rps: Spread
    """Orders settled per second while purchases came in."""
    backlog: Spread
    drain_s: Spread
    drain_rps: Spread
    """Orders settled per second after the load, until none was left."""


class LedgerRates(Result, frozen=True):
    """Orders settled per second, by the ledger alone."""

    batch: int
    in_flight: int
    batched_rps: Spread
    one_by_one_rps: Spread | None


class DriverLag(Result, frozen=True):
    """The lag (sent − intended) of the driver at one rate, with one pacer."""

    pacer: str
    offered_rps: float
    p50_ms: Spread
    p99_ms: Spread
    cores: Spread
    """Processor time of the driver per second of the load, its start included."""
    faults: list[str]
    """Why the loop was not open; empty if it was."""


class DriverRates(Result, frozen=True):
    """The open-loop driver, one process, against nginx."""

    connections: int
    capacity_rps: Spread
    """Requests answered per second when far more are due."""
    offered_rps: float
    """Half of the capacity's median."""
    lag_p99_ms: Spread
    """p99 of sent − intended at that rate."""
    lags: list[DriverLag] = []


class Disk(Result, frozen=True):
    """How long an appended write takes to be on disk (fdatasync), while nothing else writes."""

    write_bytes: int
    p50_ms: Spread
    p99_ms: Spread
    longest_ms: Spread


class Responses(Result, frozen=True):
    """Response times (done − intended) of an open loop at one rate."""

    subject: str
    share: float | None
    """The rate as a share of the capacity; None where the rate is fixed."""
    offered_rps: float
    answered_rps: Spread
    ms: dict[str, Spread]
    """By percentile."""
    lag_p99_ms: Spread
    lost: int
    """Requests without the answer that the subject names, all rounds together."""
    doubtful: list[str] = []
    """The percentiles that the driver's own lag may have made, in any round."""
    faults: list[str] = []
    """Why the loop was not open; empty if it was."""


class Mixed(Result, frozen=True):
    """Response times of one kind of request in an open loop of purchases and looks."""

    state: str
    priorities: str
    kind: str
    offered_rps: float
    """Of this kind."""
    ms: dict[str, Spread]
    """By percentile."""
    calm_p99_ms: Spread | None
    """The p99 of the rounds of which less than CALM_PERCENT was stolen; None without any."""
    over_disk_ms: Spread | None
    """What of the p99 is above that of a bare fsync beside two other logs, in those rounds."""
    lag_p99_ms: Spread
    stolen_percent: Spread
    cpu_pressure_percent: Spread
    io_pressure_percent: Spread
    lost: int
    """Requests without the answer that was expected, all rounds together."""
    faults: list[str] = []


class Capacity(Result, frozen=True):
    """The rate that driver and engine reach together when far more requests are due."""

    subject: str
    connections: int
    rps: Spread


class Growth(Result, frozen=True):
    """One point of a curve: what a request costs at one size."""

    size: int
    rps: Spread
    cost_us: Spread
    """Time per request at saturation: 1 / rps."""
    times_smallest: Spread
    """Cost over that of the smallest size, round by round."""
    times_cheapest: float
    """Median cost over the lowest median of the curve."""
    cpu_us: float | None = None
    """Processor time of front door and Redis per request."""


class Curve(Result, frozen=True):
    """How a cost grows."""

    axis: str
    subject: str
    points: list[Growth]
    note: str = ""
    costs: list[Cost] = []


DOORS: Final = "front doors"
SHARDS: Final = "shards"


class ScaledRound(Sample, frozen=True, kw_only=True):
    """A measurement of machines that are throttled, beside processes that are not."""

    cores: float
    """Processor time of all processes of the machine per second of the load, whoever they belong to."""
    throttled: float
    """Share of the periods in which a loaded machine had used its share and waited, on average."""
    seconds: float
    """From the load's start until the ledger had everything: the time of `cpu_s`."""


class ScaledPoint(Result, frozen=True):
    """What so many machines give."""

    size: int
    rps: Spread
    efficiency: Spread
    """Rate over that of linear growth from the fewest machines, round by round."""
    cores: Spread
    throttled: Spread
    doubt: str
    """Why it does not count; empty if it does."""
    rounds: list[ScaledRound]


class Scaling(Result, frozen=True):
    """How the rate grows with machines of one kind, each of which has a share of a core."""

    machines: str
    """DOORS or SHARDS."""
    state: str
    share: float
    """Of a core, for each machine."""
    points: list[ScaledPoint]
    idle: list[ScaledRound]
    """The same without load."""


class Copied(Result, frozen=True):
    """What is accepted where one machine holds it and where two do, and two over one, round by round."""

    what: str
    waiting: int
    """Purchases under way at a time."""
    one: Spread
    two: Spread
    ratio: Spread


class Memory(Result, frozen=True):
    """Resident memory of the front door, MiB."""

    requests: list[int]
    """Sold-out purchases answered so far."""
    rss_mib: list[float]
    """The memory then."""


class IdleConnections(Result, frozen=True):
    """Memory of connections that were used once and stay open."""

    connections: int
    bytes_each: float


class Bench(msgspec.Struct, kw_only=True):
    """A whole run of the benchmark."""

    started_at: datetime
    command: str
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    load_before: float  # of the last minute when the run began
    rounds: int
    seconds: float
    growth_seconds: float
    took_s: float = 0.0
    notes: list[str] = []
    against: Against | None = None
    front_door: list[FrontDoor] = []
    ratios: list[Ratio] = []
    costs: list[Cost] = []
    persisted: list[Persisted] = []
    clients: list[Compared] = []
    looks: list[Compared] = []
    mix: list[Mixed] = []
    mix_disk_p99_ms: Spread | None = None
    ledger: LedgerRates | None = None
    driver: DriverRates | None = None
    disk: Disk | None = None
    capacities: list[Capacity] = []
    responses: list[Responses] = []
    growth: list[Curve] = []
    scaling: list[Scaling] = []
    copies: list[Copied] = []
    memory: Memory | None = None
    idle: list[IdleConnections] = []
