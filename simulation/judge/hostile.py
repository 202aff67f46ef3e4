"""What a barrage of hostile requests did to the engine, as fuzz.json records it, and its checks. Pure."""

from typing import Final

import pandas as pd

from simulation.judge.thresholds import measure_front_door
from simulation.judge.verdict import Check
from simulation.model.hostile import Siege, Stock

WARM_UP: Final = 0.25
"""The part of the run after which the front door has met every kind, and should grow no more."""
GROWTH_MIB: Final = 48.0
"""Most memory that the front doors may take beyond what they took while they warmed up."""


def judge_siege(siege: Siege, timeline: pd.DataFrame) -> list[Check]:
    """The checks of a siege, in the words that the report shows."""
    return [
        _judge_answers(siege),
        _judge_processes(siege),
        _judge_connections(siege),
        _judge_memory(timeline),
        _judge_decoy(siege.decoy),
        _judge_canary(siege.canary),
    ]


def _judge_answers(siege: Siege) -> Check:
    barrage = siege.barrage
    answers: dict[str, int] = {}
    for tally in barrage.kinds.values():
        for word, count in tally.answers.items():
            answers[word] = answers.get(word, 0) + count
    said = ", ".join(f"{answers[word]:,} {word}" for word in sorted(answers))
    sent = sum(tally.sent for tally in barrage.kinds.values())
    detail = f"{sent:,} requests of {len(barrage.kinds)} kinds in {barrage.seconds:.0f} s: {said}"
    if barrage.findings:
        first = barrage.findings[0]
        detail += f"; the first fault is number {first.number}, {first.kind}: {first.fault}"
    meaning = (
        "No hostile request made the front door answer 5xx other than 503 or anything that is not HTTP, keep"
        " a connection for ever, or leave a whole request without an answer. fuzz.json has the bytes of"
        " those that did."
    )
    return _check("hostile requests are answered", barrage.faults, detail, meaning)


def _judge_processes(siege: Siege) -> Check:
    before, after = set(siege.processes_before.items()), set(siege.processes_after.items())
    meaning = "Every process of the engine is the same at the end, and none of them wrote a traceback."
    detail = f"{len(before)} processes, {len(before - after)} ended, {siege.tracebacks} tracebacks"
    return _check("no process dies of them", len(before - after) + siege.tracebacks, detail, meaning)


def _judge_connections(siege: Siege) -> Check:
    slow, left = siege.barrage.longest_s, siege.connections_left
    meaning = (
        "Clients that are slow to ask are dropped within the time that keepalive_s and client_timeout_ms give"
        " them, and no connection is left when all have gone."
    )
    detail = f"the slowest was kept for {slow:.1f} s of {siege.bound_s:g}, {left} connections left"
    return _check("slow clients are dropped", int(slow > siege.bound_s) + left, detail, meaning)


def _judge_memory(timeline: pd.DataFrame) -> Check:
    name = "the front door's memory is bounded"
    meaning = f"Once it has met every kind, the front doors grow by at most {GROWTH_MIB:g} MiB."
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
        "Those that bought by chance did so from a sale of their own: each that was accepted is settled in"
        " the ledger, and no unit of that sale is missing or sold twice."
    )
    if decoy is None:
        return Check(name, None, 0, "gate or ledger could not be read", meaning)
    off = abs(decoy.units - decoy.remaining - decoy.confirmed) + abs(decoy.sold - decoy.confirmed)
    detail = (
        f"{decoy.confirmed:,} confirmed, {decoy.kept:,} of {decoy.promised:,} that were heard to be accepted"
    )
    return _check(name, off + decoy.promised - decoy.kept, detail, meaning)


def _judge_canary(canary: Stock | None) -> Check:
    name = "nothing smuggled is bought"
    meaning = (
        "No request that was hidden in another one was carried out: the sale that they name is untouched."
    )
    if canary is None:
        return Check(name, None, 0, "gate or ledger could not be read", meaning)
    bought = canary.units - canary.remaining
    detail = f"{bought:,} of {canary.units:,} units gone, {canary.orders:,} orders"
    return _check(name, max(bought, canary.orders), detail, meaning)


def _check(name: str, violations: int, detail: str, meaning: str) -> Check:
    return Check(name, violations == 0, violations, detail, meaning)
