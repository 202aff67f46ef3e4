"""Answers per second of all HTTP servers, in turn and over again, so that a slow minute meets all alike."""

from collections.abc import Sequence
from typing import Final

from simulation.bench.options import Say
from simulation.bench.results import FrontDoor, Persisted, Ratio, Sample, Spread
from simulation.bench.subjects import HttpSubject

CONNECTIONS: Final = (64, 256)
WARM_S: Final = 1
RATIOS: Final = (
    ("engine, sold out", "nginx"),
    ("engine, sold out", "aiohttp, bare"),
    ("engine, sold out", "textbook, sold out"),
    ("engine, accepting", "nginx"),
    ("engine, accepting", "textbook, accepting"),
)


async def compare(
    subjects: Sequence[HttpSubject], rounds: int, seconds: float, say: Say
) -> tuple[list[FrontDoor], list[Ratio], list[Persisted]]:
    """Measure all subjects at all numbers of connections, in turn."""
    samples: dict[tuple[str, int], list[Sample]] = {}
    for subject in subjects:
        await subject.measure(CONNECTIONS[0], WARM_S)
    for number in range(1, rounds + 1):
        for connections in CONNECTIONS:
            for subject in subjects:
                sample = await subject.measure(connections, seconds)
                samples.setdefault((subject.name, connections), []).append(sample)
                say(
                    f"round {number}/{rounds}, {connections} connections:"
                    f" {subject.name} {sample.rps:,.0f}/s{f' ({sample.fault})' if sample.fault else ''}"
                )
    rows = [
        FrontDoor(subject=name, connections=connections, rps=_rps(found), samples=found)
        for (name, connections), found in samples.items()
    ]
    return rows, _compare_rates(rows), _describe_persistence(rows, seconds)


def _rps(samples: Sequence[Sample]) -> Spread:
    return Spread.of(sample.rps for sample in samples)


def _compare_rates(rows: Sequence[FrontDoor]) -> list[Ratio]:
    rates = {(row.subject, row.connections): row.rps for row in rows}
    return [
        Ratio(
            name=f"{mine} / {theirs}",
            connections=connections,
            ratio=rates[mine, connections].over(rates[theirs, connections]),
        )
        for mine, theirs in RATIOS
        for connections in CONNECTIONS
        if (mine, connections) in rates and (theirs, connections) in rates
    ]


def _describe_persistence(rows: Sequence[FrontDoor], seconds: float) -> list[Persisted]:
    found = []
    for row in rows:
        drained = [sample for sample in row.samples if sample.drain_s is not None]
        if not drained:
            continue
        found.append(
            Persisted(
                connections=row.connections,
                accepted_rps=Spread.of(sample.accepted / seconds for sample in drained),
                during_rps=Spread.of((sample.accepted - sample.backlog) / seconds for sample in drained),
                backlog=Spread.of(sample.backlog for sample in drained),
                drain_s=Spread.of(sample.drain_s or 0.0 for sample in drained),
                drain_rps=Spread.of(sample.backlog / max(sample.drain_s or 0.0, 0.001) for sample in drained),
            )
        )
    return found
