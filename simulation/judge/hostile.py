"""The checks of what hostile requests did to the engine. Pure."""

from collections import Counter
from typing import Final

import pandas as pd

from simulation.judge.thresholds import measure_front_door
from simulation.judge.verdict import Check
from simulation.model.hostile import HostileRecord, Stock

WARM_UP: Final = 0.25
"""The part of the run after which the front door has met every kind, and should grow no more."""
GROWTH_MIB: Final = 48.0
"""Most memory that the front doors may take beyond what they took while they warmed up."""


def judge_hostile(record: HostileRecord, timeline: pd.DataFrame) -> list[Check]:
    """Return the checks of hostile requests, in the words that the report shows."""
    return [
        _judge_answers(record),
        _judge_processes(record),
        _judge_connections(record),
        _judge_memory(timeline),
        _judge_decoy(record.decoy),
        _judge_smuggled(record.smuggled),
    ]


def _judge_answers(record: HostileRecord) -> Check:
    clients = record.clients
    answers = sum((Counter(kind.answers) for kind in clients.kinds.values()), Counter[str]())
    said = ", ".join(f"{count:,} {word}" for word, count in sorted(answers.items()))
    sent = sum(kind.sent for kind in clients.kinds.values())
    detail = f"{sent:,} requests of {len(clients.kinds)} kinds in {clients.seconds:.0f} s: {said}"
    if clients.findings:
        first = clients.findings[0]
        detail += f"; the first fault is number {first.number}, {first.kind}: {first.fault}"
    meaning = (
        "No hostile request made the front door answer 5xx other than 503 or anything that is not HTTP, keep"
        " a connection beyond its time, or leave a whole request without an answer. fuzz.json has the bytes"
        " of those that did."
    )
    return _check("hostile requests are answered", clients.faults, detail, meaning)


def _judge_processes(record: HostileRecord) -> Check:
    before, after = set(record.processes_before.items()), set(record.processes_after.items())
    meaning = "Every process of the engine is the same at the end, and none of them wrote a traceback."
    detail = f"{len(before)} processes, {len(before - after)} ended, {record.tracebacks} tracebacks"
    return _check("no process dies of them", len(before - after) + record.tracebacks, detail, meaning)


def _judge_connections(record: HostileRecord) -> Check:
    slow, left = record.clients.longest_s, record.connections_left
    meaning = (
        "The front door drops slow clients within the time that keepalive_s and client_timeout_ms give them,"
        " and no connection is left when all have gone."
    )
    detail = f"the slowest was kept for {slow:.1f} s of {record.bound_s:g}, {left} connections left"
    return _check("slow clients are dropped", int(slow > record.bound_s) + left, detail, meaning)


def _judge_memory(timeline: pd.DataFrame) -> Check:
    name = "the front door's memory is bounded"
    meaning = f"Once they have met every kind, the front doors grow by at most {GROWTH_MIB:g} MiB."
    memory = measure_front_door(timeline)
    warm = timeline["t_s"] <= WARM_UP * timeline["t_s"].max()
    first, later = memory[warm].max(), memory[~warm].max()
    if pd.isna(first) or pd.isna(later):
        return Check(name, None, 0, "it was not measured", meaning)
    detail = f"{first:.0f} MiB after the warm-up, at most {later:.0f} MiB later: {later - first:+.1f} MiB"
    return _check(name, int(later - first > GROWTH_MIB), detail, meaning)


def _judge_decoy(decoy: Stock | None) -> Check:
    name = "hostile purchases add up"
    meaning = (
        "Hostile requests that were valid by chance bought from a sale of their own: the ledger has settled"
        " every purchase that was accepted, and no unit of that sale is missing or sold twice."
    )
    if decoy is None:
        return Check(name, None, 0, "gate or ledger could not be read", meaning)
    off = abs(decoy.units - decoy.remaining - decoy.confirmed) + abs(decoy.sold - decoy.confirmed)
    detail = f"{decoy.confirmed:,} confirmed, {decoy.kept:,} of {decoy.promised:,} accepted ones settled"
    return _check(name, off + decoy.promised - decoy.kept, detail, meaning)


def _judge_smuggled(smuggled: Stock | None) -> Check:
    name = "nothing smuggled is bought"
    meaning = "No request that was hidden in another one was carried out: its sale is untouched."
    if smuggled is None:
        return Check(name, None, 0, "gate or ledger could not be read", meaning)
    bought = smuggled.units - smuggled.remaining
    detail = f"{bought:,} of {smuggled.units:,} units gone, {smuggled.orders:,} orders"
    return _check(name, max(bought, smuggled.orders), detail, meaning)


def _check(name: str, violations: int, detail: str, meaning: str) -> Check:
    return Check(name, violations == 0, violations, detail, meaning)
