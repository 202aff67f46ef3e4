"""Answers per second of all HTTP servers, in turn, so that a slow minute meets all of them alike."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from simulation.bench.results import FrontDoor, Persisted, Ratio
from simulation.bench.rounds import Rounds
from simulation.bench.samples import Sample, Spread

CONNECTIONS: Final = (64, 256)
RATIOS: Final = (
    ("engine, sold out", "nginx"),
    ("engine, sold out", "aiohttp, bare"),
    ("engine, sold out", "textbook, sold out"),
    ("engine, accepting", "nginx"),
    ("engine, accepting", "textbook, accepting"),
)

Measure = Callable[[int, float], Awaitable[Sample]]
"""Load a server in one state, from so many connections for so many seconds."""
Servers = dict[str, Measure]


async def measure_servers(
    servers: Servers, rounds: Rounds, sizes: Sequence[int] = CONNECTIONS
) -> list[FrontDoor]:
    """Measure all servers at all numbers of connections."""
    for measure in servers.values():
        await measure(sizes[0], 1)  # to warm it up
    rows = [(name, size) for size in sizes for name in servers]
    found = await rounds.repeat(
        {f"{name}, {size} connections": partial(servers[name], size, rounds.seconds) for name, size in rows}
    )
    return [
        FrontDoor(
            subject=name,
            connections=size,
            rps=Spread.of(sample.rps for sample in samples),
            samples=samples,
        )
        for (name, size), samples in zip(rows, found, strict=True)
    ]


def compare_rates(rows: Sequence[FrontDoor]) -> list[Ratio]:
    """Return the ratios of RATIOS, as far as both sides were measured."""
    rates = {(row.subject, row.connections): row.rps for row in rows}
    return [
        Ratio(name=f"{mine} / {theirs}", connections=size, ratio=rates[mine, size].over(rates[theirs, size]))
        for mine, theirs in RATIOS
        for size in CONNECTIONS
        if (mine, size) in rates and (theirs, size) in rates
    ]


def describe_persistence(rows: Sequence[FrontDoor]) -> list[Persisted]:
    """Return how the ledger kept up, for each row of an engine that accepted."""
    found = []
    for row in rows:
        drained = [
            (sample, sample.requests / sample.rps, sample.drain_s)
            for sample in row.samples
            if sample.drain_s is not None
        ]
        if drained:
            persisted = Persisted(
                connections=row.connections,
                accepted_rps=Spread.of(sample.accepted / took_s for sample, took_s, _ in drained),
                during_rps=Spread.of(
                    (sample.accepted - sample.backlog) / took_s for sample, took_s, _ in drained
                ),
                backlog=Spread.of(sample.backlog for sample, _, _ in drained),
                drain_s=Spread.of(drain_s for _, _, drain_s in drained),
                drain_rps=Spread.of(sample.backlog / max(drain_s, 0.001) for sample, _, drain_s in drained),
            )
            found.append(persisted)
    return found
