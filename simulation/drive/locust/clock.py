"""How far the clocks of two machines are apart."""

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Exchange(NamedTuple):
    """A question to another clock: when it was asked and answered here, and what the other clock showed."""

    asked_ns: int
    answered_ns: int
    there_ns: int


def compare_clocks(exchanges: Sequence[Exchange]) -> tuple[int, int]:
    """Return how far this clock is ahead of the other one, and by how much that may be wrong, in ns.

    The other clock was read at some moment of an exchange, so the quickest one tells most (Cristian,
    Probabilistic clock synchronization, 1989).
    """
    best = min(exchanges, key=lambda each: each.answered_ns - each.asked_ns)
    half = (best.answered_ns - best.asked_ns + 1) // 2
    return best.asked_ns + half - best.there_ns, half


def name_clock() -> str:
    """Return a name of this machine's monotonic clock, which counts from its start for all processes."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()
