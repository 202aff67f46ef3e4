"""What a crowd needs: how many processes of each role, and which of them is full first."""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from simulation.capacity.fit import IDLE, Costs, Draws, interval
from simulation.capacity.observations import ROLES

BUSY: Final = 0.7
"""Of its core, for each process: above, a queue grows long whenever purchases come at once. An M/D/1 queue
waits 1.2 service times at 70 % load, and 4.5 at 90 % (Pollaczek and Khinchine)."""
NAMES: Final = {
    "front-door": "front doors",
    "redis": "shards",
    "relay": "relays",
    "rabbitmq": "RabbitMQ, cores",
    "fulfilment": "fulfilments",
    "postgres": "PostgreSQL, cores",
}
"""What there is one more of, with each core."""
MOST_PEOPLE: Final = 1e12
"""A crowd that never comes."""


class Crowd(NamedTuple):
    """People who come evenly over some seconds, each with one purchase, and the units that they can have."""

    people: float
    seconds: float
    stock: float
    wait_s: float = 1.0
    """Longest time until a purchase is answered, at the end of the rush as well."""
    settle_s: float = 60.0
    """From the last purchase until all is settled."""


class Need(NamedTuple):
    """What a crowd needs of one role."""

    role: str
    needed: int
    low: int
    high: int
    """The interval of what is needed."""
    most_people: float
    """The largest crowd, in as many seconds and for as many units, for which one is enough; inf: any."""


def plan(costs: Costs, crowd: Crowd) -> dict[str, Need]:
    """Return what is needed of each role."""
    needs = {}
    for role in ROLES:
        draws = np.maximum(1, np.ceil(share_out(costs[role], crowd)))
        low, high = interval(draws)
        most = _find_most_people(costs[role], crowd)
        needs[role] = Need(role, int(draws[0]), math.floor(low), math.ceil(high), most)
    return needs


def find_bound(needs: Mapping[str, Need]) -> Need:
    """Return the role of which one is full first as the crowd grows."""
    return min(needs.values(), key=lambda need: need.most_people)


def share_out(cost: Mapping[str, Draws], crowd: Crowd) -> Draws:
    """Return by how many processes of a role the work for a crowd can be done, each BUSY at most.

    Units are taken at the rate at which people come, until none is left: a front door and a shard have that
    time, and `wait_s`, for the purchases that are accepted, and all of the time for all of them.
    """
    free = np.maximum(BUSY - cost[IDLE], 1e-9)
    accepted = min(crowd.stock, crowd.people)
    if "settled" in cost:
        return accepted * cost["settled"] / (crowd.seconds + crowd.settle_s) / free
    taking = accepted * cost["accepted"]
    rush_s = crowd.seconds * accepted / crowd.people + crowd.wait_s
    refusing = (crowd.people - accepted) * cost["refused"]
    return np.maximum(taking / rush_s, (taking + refusing) / (crowd.seconds + crowd.wait_s)) / free


def _find_most_people(cost: Mapping[str, Draws], crowd: Crowd) -> float:
    """Return the largest crowd for which one process is enough, by bisection: more people never need less."""
    value = {name: draws[:1] for name, draws in cost.items()}

    def is_enough(people: float) -> bool:
        return bool(share_out(value, crowd._replace(people=people))[0] <= 1)

    low, high = 0.0, math.log(MOST_PEOPLE)
    if is_enough(MOST_PEOPLE):
        return math.inf
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if is_enough(math.exp(middle)) else (low, middle)
    return math.exp(low)
