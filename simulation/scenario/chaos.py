"""Chaos: a timeline of faults drawn from a seed. The same table and seed give the same timeline."""

import random
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from simulation.scenario.fault import Fault, list_targets, overlap

APART_S: Final = 0.5
"""Time between two faults of the same target, so that it is up again before the next one."""
MACHINES_APART_S: Final = 8.0
"""Time between two faults of machines, so that each cluster is whole again before the next one."""


class Chaos(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[chaos]` table of a scenario."""

    faults: Annotated[int, Meta(ge=1, le=1_000)]
    """Most faults of a timeline; each number from 1 on is equally likely."""
    longest_s: Annotated[float, Meta(gt=0.1, le=600)] = 2.0
    """Longest fault."""
    quiet_s: Annotated[float, Meta(ge=0, le=600)] = 1.0
    """Time without faults at the start of the load, and at its end."""


def draw_faults(chaos: Chaos, seed: int, duration_s: float, machines: int = 1) -> list[Fault]:
    """Return the timeline of a seed for a load of `duration_s`, in the order of the faults' starts.

    Faults may overlap, except two that hit the same processes or the same way, and a loss of memory and a
    fault on the way to Redis: if the way loses the last answer before the loss, nobody can know of the write.
    So a loss has front door, fulfilment, Redis and its way for itself, while others may hit relay, RabbitMQ,
    PostgreSQL and their ways. Of several machines only one fails at a time. Raises ValueError if the load is
    too short.
    """
    latest_s = duration_s - chaos.quiet_s - chaos.longest_s
    if latest_s < chaos.quiet_s:
        raise ValueError(f"chaos.longest_s: {chaos.longest_s:g} s do not fit into {duration_s:g} s of load")
    random_ = random.Random(f"chaos {seed}")
    targets = list_targets(machines)
    found: list[Fault] = []
    for _ in range(random_.randint(1, chaos.faults)):
        for _ in range(100):  # places to try before the load counts as full
            kind = random_.choice(list(targets))
            fault = Fault(
                kind=kind,
                on=random_.choice(targets[kind]),
                at_s=round(random_.uniform(chaos.quiet_s, latest_s), 2),
                seconds=round(random_.uniform(0.1, chaos.longest_s), 2),
            )
            if not any(_exclude(fault, other) for other in found):
                found.append(fault)
                break
    return sorted(found, key=lambda fault: (fault.at_s, fault.on, fault.kind))


def _exclude(one: Fault, other: Fault) -> bool:
    """Return whether one of two faults can't be in the other's timeline."""
    lossy = one.of_memory != other.of_memory and one.on == other.on
    at_once = one.at_s <= other.end_s + APART_S and other.at_s <= one.end_s + APART_S
    apart_s = MACHINES_APART_S if one.of_nodes and other.of_nodes else APART_S
    return overlap(one, other, apart_s) or (lossy and at_once)
