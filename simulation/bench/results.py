"""What the benchmark found: the fields of bench.json. Rates are per second; names tell the unit of times."""

import math
from collections.abc import Iterable
from datetime import datetime
from statistics import median
from typing import Self

import msgspec


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the result."""


class Spread(Result, frozen=True):
    """One measurement of each round."""

    median: float
    low: float
    high: float
    values: list[float]
    """In the order of the rounds."""

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Return the spread of at least one value."""
        found = [float(f"{value:.6g}") for value in values]
        return cls(median=median(found), low=min(found), high=max(found), values=found)

    def over(self, other: "Spread") -> "Spread":
        """Return the ratio to another measurement, round by round."""
        return Spread.of(mine / theirs for mine, theirs in zip(self.values, other.values, strict=True))

    def interval(self) -> tuple[float, float] | None:
        """Return the 95 % confidence interval of the median; None for fewer than six rounds, which give none.

        The number of values below the median is binomial, whatever their distribution: the interval lies
        between two order statistics (Conover, Practical Nonparametric Statistics, 3rd edition, section 3.2).
        """
        size, cut, outside = len(self.values), 0, 0.5 ** len(self.values)
        while outside <= 0.025:
            cut += 1
            outside += math.comb(size, cut) / 2**size
        ordered = sorted(self.values)
        return (ordered[cut - 1], ordered[-cut]) if cut else None


class Sample(Result, frozen=True):
    """One measurement of an HTTP server under wrk's closed loop."""

    requests: int
    rps: float
    refused: int
    """Answers of 400 and above."""
    socket_errors: int
    p50_ms: float
    p99_ms: float
    """By wrk: each connection waits for its answer before it asks again, so stalls are under-counted."""
    fault: str = ""
    """Why it did not measure what it was meant to; empty if it did."""
    cpu: dict[str, float] = {}
    """Processor time by process during the load, in cores."""
    cpu_s: dict[str, float] = {}
    """Processor time by process, in seconds, from the load's start until the ledger had everything."""
    accepted: int = 0
    backlog: int = 0
    """Purchases accepted and not yet settled in the ledger when the load ended."""
    drain_s: float | None = None
    """From the end of the load until the ledger had all of them."""

    def cpu_us(self, *names: str) -> float:
        """Return the processor time of these processes per answer."""
        return 1e6 * sum(self.cpu_s.get(name, 0.0) for name in names) / self.requests


class FrontDoor(Result, frozen=True):
    """One HTTP server at one number of connections."""

    subject: str
    connections: int
    rps: Spread
    samples: list[Sample]


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
    """This checkout's engine beside that of another one, measured in turn."""

    commit: str
    """Of the other checkout."""
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
    load_before: float
    """The system's load average of the last minute when the run began."""
    rounds: int
    seconds: float
    growth_seconds: float
    took_s: float = 0.0
    notes: list[str] = []
    against: Against | None = None
    front_door: list[FrontDoor] = []
    ratios: list[Ratio] = []
    persisted: list[Persisted] = []
    ledger: LedgerRates | None = None
    driver: DriverRates | None = None
    disk: Disk | None = None
    capacities: list[Capacity] = []
    responses: list[Responses] = []
    growth: list[Curve] = []
    memory: Memory | None = None
    idle: list[IdleConnections] = []
