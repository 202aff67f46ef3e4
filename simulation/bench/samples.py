"""What is measured once, what the rounds make of it, and what it cost."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Final, Self

import msgspec

PROCESSES: Final = {
    "door": ("front-door 1", "nginx", "bare", "textbook"),
    "Redis": ("redis",),
    "relay": ("relay",),
    "bus": ("rabbitmq",),
    "fulfilment": ("fulfilment",),
    "PostgreSQL": ("postgres",),
    "load": ("wrk", "driver"),
}
"""Whose processor time is shown, and the processes that it is of; what is left is of others."""
_NOT_SHOWN: Final = ("flashsim",)
"""The benchmark's own process, which waits meanwhile."""


class Spread(msgspec.Struct, frozen=True, kw_only=True):
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


class Sample(msgspec.Struct, frozen=True, kw_only=True):
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
    """Processor time by process, in seconds, from the load's start until the ledger had everything; wrk's own
    among them."""
    accepted: int = 0
    backlog: int = 0
    """Purchases accepted and not yet settled in the ledger when the load ended."""
    drain_s: float | None = None
    """From the end of the load until the ledger had all of them."""

    def cpu_us(self, *names: str) -> float:
        """Return the processor time of these processes per answer."""
        return 1e6 * sum(self.cpu_s.get(name, 0.0) for name in names) / self.requests


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """The processor time of every process that a request takes, in microseconds."""

    subject: str
    connections: int
    us: dict[str, Spread]
    """By PROCESSES, "others" and "sum"."""

    @classmethod
    def of(cls, subject: str, connections: int, rounds: Sequence[tuple[Mapping[str, float], int]]) -> Self:
        """Return what each round's processor time, in seconds by process, is for one of its requests."""
        shares = [_share_out(cpu_s, requests) for cpu_s, requests in rounds]
        us = {name: Spread.of(share[name] for share in shares) for name in shares[0]}
        return cls(subject=subject, connections=connections, us=us)

    @classmethod
    def of_samples(cls, subject: str, connections: int, samples: Sequence[Sample]) -> Self:
        """Return what a request of the samples took."""
        return cls.of(subject, connections, [(sample.cpu_s, sample.requests) for sample in samples])

    def without_load(self) -> Spread:
        """Return what a request takes on the server's side."""
        pairs = zip(self.us["sum"].values, self.us["load"].values, strict=True)
        return Spread.of(whole - load for whole, load in pairs)


def _share_out(cpu_s: Mapping[str, float], requests: int) -> dict[str, float]:
    us = {name: 1e6 * spent / requests for name, spent in cpu_s.items() if name not in _NOT_SHOWN}
    found = {shown: sum(us.pop(name, 0.0) for name in names) for shown, names in PROCESSES.items()}
    found["others"] = sum(us.values())
    return found | {"sum": sum(found.values())}
