"""Checks of a whole scenario: what the types of its single keys can't say."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Final

from engine.errors import SettingsError
from engine.settings import read_settings
from simulation.scenario.arrivals import Trace, expected_requests
from simulation.scenario.condition import parse_abort, parse_condition
from simulation.scenario.fault import (
    COMMAND,
    INSTANT,
    MACHINES,
    NODES,
    SERVICES,
    STRENGTH_OF,
    Fault,
    list_targets,
    overlap,
    split_command,
)
from simulation.scenario.schema import MAX_ID, Scenario

MAX_REQUESTS = 50_000_000
"""Most requests of a scenario: its plan and history are held in memory."""

_CONDITIONS: Final = {"abort_when": parse_abort, "thresholds": parse_condition}
_OF_TOPOLOGY = {"gate_shards": "topology.shards", "gate_copies": "topology.copies"}
"""Settings of the engine that the topology decides."""


def check_scenario(scenario: Scenario) -> None:
    """Raise ValueError, with a line that names each key at fault, for a scenario that can't be run."""
    duration_s = scenario.duration_s()
    reads = scenario.population.reads
    expected = expected_requests(scenario.arrivals) * (1 + (reads.stock_share if reads else 0))
    if not 1 <= expected <= MAX_REQUESTS:
        raise ValueError(f"arrivals: {expected:,.0f} requests; must be 1 to {MAX_REQUESTS:,}")
    _check_sales(scenario, duration_s)
    population = scenario.population
    if population.bots and population.users + population.bots.users > MAX_ID:
        raise ValueError(f"population.bots.users: there are not so many ids, got {population.bots.users}")
    if scenario.chaos and scenario.faults:
        raise ValueError("chaos: draws all faults; leave either it or faults out")
    check_faults(scenario.timeline(), duration_s, scenario.topology.machines)
    if scenario.topology.copies > scenario.topology.machines:
        raise ValueError(
            f"topology.copies: {scenario.topology.copies} need as many machines, got"
            f" {scenario.topology.machines} (topology.machines)"
        )
    engines = {f"engine-{number}" for number in range(1, scenario.topology.front_doors + 1)}
    for number, fault in enumerate(scenario.timeline()):
        if fault.of_nodes and fault.on.startswith("engine") and fault.on not in engines:
            raise ValueError(f"faults.{number}.on: there is no {fault.on}: see topology.front_doors")
    for name, key in _OF_TOPOLOGY.items():
        if name in scenario.engine:
            raise ValueError(f"engine.{name}: is {key}")
    conditions = {key: getattr(scenario, key) for key in _CONDITIONS}
    if wrong := list_bad_conditions(conditions, scenario.spans()):
        raise ValueError("\n".join(wrong))
    for name, value in scenario.engine.items():
        try:
            read_settings({}, **{name: value})
        except SettingsError as error:
            raise ValueError(f"engine.{name}: {str(error).partition(': ')[2]}") from None


def list_bad_conditions(
    raw: Mapping[str, Any], spans: Mapping[str, tuple[float, float]] | None = None
) -> list[str]:
    """Return what is wrong with the conditions in a tree; of their windows only with the scenario's spans."""
    wrong = []
    for key, parse in _CONDITIONS.items():
        for number, text in enumerate(given if isinstance(given := raw.get(key), list) else []):
            try:
                if isinstance(text, str) and (window := parse(text).window) and spans is not None:
                    window.find(spans, inf)
            except ValueError as error:
                wrong.append(f"{key}.{number}: {text!r}: {error}")
    return wrong


def check_faults(faults: Sequence[Fault], duration_s: float, machines: int = 1) -> None:
    """Raise ValueError, in one line that names the key at fault, for a timeline that can't be done."""
    for number, fault in enumerate(faults):
        key = f"faults.{number}"
        _check_time(f"{key}.at_s", fault.at_s, duration_s)
        if not fault.seconds and fault.kind not in INSTANT:
            raise ValueError(f"{key}.seconds: {fault.kind} needs a length greater than 0")
        if fault.kind == COMMAND:
            if not fault.begin and not fault.end:
                raise ValueError(f"{key}.begin: a command needs a begin or an end")
            for name in ("begin", "end"):
                _check_command(f"{key}.{name}", getattr(fault, name))
        elif fault.begin or fault.end:
            raise ValueError(f"{key}.begin: is for {COMMAND}, not for {fault.kind}")
        elif problem := _find_problem(fault, machines):
            raise ValueError(f"{key}.on: {problem}")
        for name, kind in STRENGTH_OF.items():
            if getattr(fault, name) is not None and fault.kind != kind:
                raise ValueError(f"{key}.{name}: is for {kind}, not for {fault.kind}")
        for earlier in faults[:number]:
            if overlap(earlier, fault):
                same = ", ".join(name for name in fault.hits if name in earlier.hits)
                raise ValueError(f"{key}.at_s: {same} has another fault until {earlier.end_s:g} s")


def _find_problem(fault: Fault, machines: int) -> str:
    """Return what is wrong with the fault's target; nothing if it can be done to that one."""
    if fault.of_nodes and machines == 1:
        return f"there is no {fault.on}: the topology has one machine (topology.machines)"
    if machines > 1 and fault.on in SERVICES:
        return f"{fault.on} is several nodes on {machines} machines: name one of them"
    if fault.kind not in (targets := list_targets(machines)):
        return f"{fault.kind} is not for {machines} machine{'s' * (machines > 1)}"
    named = (*NODES, *MACHINES) if machines > 1 and fault.kind != "switchover" else ()
    if fault.on in (*targets[fault.kind], *named):
        return ""
    way = "the way to " if fault.of_network else ""
    return f"{fault.kind} is for {way}{', '.join((*targets[fault.kind], *named))}, got {fault.on!r}"


def _check_sales(scenario: Scenario, duration_s: float) -> None:
    known: set[int] = set()
    for number, offer in enumerate(scenario.sales):
        _check_time(f"sales.{number}.starts_in_s", offer.starts_in_s or 0, duration_s)
        if offer.ends_in_s is not None and offer.ends_in_s <= (offer.starts_in_s or 0):
            raise ValueError(f"sales.{number}.ends_in_s: must be after its start, got {offer.ends_in_s:g}")
        for sale in offer.each():
            if sale.product_id in known:
                raise ValueError(f"sales.{number}.product_id: {sale.product_id} is on sale already")
            known.add(sale.product_id)
    for number, segment in enumerate(scenario.arrivals):
        named = segment.products if isinstance(segment, Trace) else []
        if strange := set(named) - known:
            raise ValueError(f"arrivals.{number}.products: {min(strange)} is not on sale")
        if named and scenario.population.bots:
            raise ValueError(f"population.bots: there are none where arrivals.{number} names the buyers")
    for number, restock in enumerate(scenario.restocks):
        if restock.product_id not in known:
            raise ValueError(f"restocks.{number}.product_id: {restock.product_id} is not on sale before")
        _check_time(f"restocks.{number}.at_s", restock.at_s, duration_s)


def _check_command(key: str, command: str) -> None:
    try:
        split_command(command or "true")
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _check_time(key: str, at_s: float, duration_s: float) -> None:
    if at_s >= duration_s:
        raise ValueError(f"{key}: the load lasts {duration_s:g} s, got {at_s:g}")
