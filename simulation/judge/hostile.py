"""The checks of what hostile requests did to the engine. Pure."""

from collections import Counter
from typing import Final

import pandas as pd

from simulation.judge.thresholds import measure_front_door
from simulation.judge.verdict import Check, make_check
from simulation.model.hostile import HostileRecord, Stock

WARM_UP: Final = 0.25
"""The part of the run after which the front door has met every kind, and should grow no more."""
GROWTH_MIB: Final = 48.0
"""Most memory that the front doors may take beyond what they took while they warmed up."""


_UNREAD: Final = "gate or ledger could not be read"
_MEANINGS: Final = {
    "hostile requests are answered": "No hostile request made the front door answer 5xx other than 503 or"
    " anything that is not HTTP, keep a connection beyond its time, or leave a whole request without an"
    " answer. fuzz.json has the bytes of those that did.",
    "no process dies of them": "Every process of the engine is the same at the end, and none of them wrote a"
    " traceback.",
    "slow clients are dropped": "The front door drops slow clients within the time that keepalive_s and"
    " client_timeout_ms give them, and no connection is left when all have gone.",
    "the front door's memory is bounded": "Once they have met every kind, the front doors grow by at most"
    f" {GROWTH_MIB:g} MiB.",
    "hostile purchases add up": "Hostile requests that were valid by chance bought from a sale of their own:"
    " the ledger has settled every purchase that was accepted, and no unit of that sale is missing or sold"
    " twice.",
    "nothing smuggled is bought": "No request that was hidden in another one was carried out: its sale is"
    " untouched.",
}
"""What each check means, in the words that the report shows."""


def judge_hostile(record: HostileRecord, timeline: pd.DataFrame) -> list[Check]:
    """Return the checks of hostile requests."""
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
    return _check("hostile requests are answered", clients.faults, detail, sent)


def _judge_processes(record: HostileRecord) -> Check:
    before, tracebacks = record.processes_before, record.tracebacks
    ended = len(before.items() - record.processes_after.items())
    detail = f"{len(before)} processes, {ended} ended, {tracebacks} tracebacks"
    return _check("no process dies of them", ended + tracebacks, detail)


def _judge_connections(record: HostileRecord) -> Check:
    slow, left = record.clients.longest_s, record.connections_left
    detail = f"the slowest was kept for {slow:.1f} s of {record.bound_s:g}, {left} connections left"
    return _check("slow clients are dropped", int(slow > record.bound_s) + left, detail)


def _judge_memory(timeline: pd.DataFrame) -> Check:
    name = "the front door's memory is bounded"
    memory = measure_front_door(timeline)
    warm = timeline["t_s"] <= WARM_UP * timeline["t_s"].max()
    first, later = memory[warm].max(), memory[~warm].max()
    if pd.isna(first) or pd.isna(later):
        return _check(name, None, "it was not measured")
    detail = f"{first:.0f} MiB after the warm-up, at most {later:.0f} MiB later: {later - first:+.1f} MiB"
    return _check(name, int(later - first > GROWTH_MIB), detail)


def _judge_decoy(decoy: Stock | None) -> Check:
    if decoy is None:
        return _check("hostile purchases add up", None, _UNREAD)
    off = abs(decoy.units - decoy.remaining - decoy.confirmed) + abs(decoy.sold - decoy.confirmed)
    detail = f"{decoy.confirmed:,} confirmed, {decoy.kept:,} of {decoy.promised:,} accepted ones settled"
    return _check("hostile purchases add up", off + decoy.promised - decoy.kept, detail)


def _judge_smuggled(smuggled: Stock | None) -> Check:
    if smuggled is None:
        return _check("nothing smuggled is bought", None, _UNREAD)
    bought = smuggled.units - smuggled.remaining
    detail = f"{bought:,} of {smuggled.units:,} units gone, {smuggled.orders:,} orders"
    return _check("nothing smuggled is bought", max(bought, smuggled.orders), detail)


def _check(name: str, violations: int | None, detail: str, chances: int = 1) -> Check:
    return make_check(name, violations, detail, _MEANINGS[name], chances)
