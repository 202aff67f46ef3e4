"""What the processes of a Locust load are told, and what they work out from it; free of gevent and Locust.

Each process reads its job, a line of JSON, from standard input. The one that leads says where it listens
(Listening), "ready", and then, several times a second, a Snapshot, each as a line of JSON; it is told the
start (time.monotonic_ns) in between, as a process of the open-loop driver is. When standard input ends, its
parent is gone and so is the process.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from simulation.drive.job import Job, Snapshot

MOST_USERS: Final = 100
"""Most users on Locust's page: Locust starts and stops them while it sends, and each takes its time."""


class Lead(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Leads a load: alone, or as the master of workers."""

    parts: list[Job]
    """The load, dealt."""
    url: str
    """The engine, as Locust's page shows it."""
    is_master: bool
    """Whether workers send the parts, one each; else it sends the only one itself."""
    bind: str
    port: int
    """Where the workers find it; 0 is a free one."""
    web_port: int | None
    """Of Locust's page, on loopback; 0 is a free one, None: no page."""
    wait_s: float
    """Longest wait for the workers."""


class Follow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sends what a master deals it."""

    host: str
    port: int
    wait_s: float
    """Longest wait for the master."""


class Listening(msgspec.Struct, frozen=True):
    """Where the process that leads is to be found."""

    port: int | None = None
    web_port: int | None = None


class Exchange(msgspec.Struct, frozen=True):
    """A question to another clock: when it was asked and answered here, and what the other clock showed."""

    asked_ns: int
    answered_ns: int
    there_ns: int


def compare_clocks(exchanges: Sequence[Exchange]) -> tuple[int, int]:
    """How far this clock is ahead of the other one, and by how much that may be wrong, in ns.

    The other clock was read at some moment of an exchange, so the quickest one tells most (Cristian,
    Probabilistic clock synchronization, 1989).
    """
    best = min(exchanges, key=lambda each: each.answered_ns - each.asked_ns)
    half = (best.answered_ns - best.asked_ns + 1) // 2
    return best.asked_ns + half - best.there_ns, half


def rps_of_user(peak_rps: float) -> int:
    """Requests a second that one user on Locust's page stands for: 1, 2 or 5 times a power of ten, so that
    there are at most MOST_USERS."""
    unit = 1
    while peak_rps > unit * MOST_USERS:
        unit = unit * 5 // 2 if str(unit)[0] == "2" else unit * 2
    return unit


def count_users(intended_ns: npt.NDArray[np.int64]) -> tuple[list[int], int]:
    """Users on Locust's page in each second of a load, and how many requests a second each stands for."""
    arrivals = np.bincount(intended_ns // 1_000_000_000)
    unit_rps = rps_of_user(int(arrivals.max(initial=0)))
    return np.maximum(np.rint(arrivals / unit_rps), 1).astype(int).tolist(), unit_rps


def add_up(snapshots: Sequence[Snapshot]) -> Snapshot:
    """How far all processes are together."""
    counts = zip(*map(msgspec.structs.astuple, snapshots), strict=True)
    return Snapshot(*(np.sum(each, axis=0).tolist() for each in counts))
