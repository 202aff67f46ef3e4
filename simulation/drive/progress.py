"""How far a load is, all processes together."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from simulation.drive.child import Child
from simulation.drive.job import RESPONSE_EDGES_MS, SNAPSHOT_S
from simulation.model.outcome import OUTCOMES

RECENT: Final = round(1 / SNAPSHOT_S)
"""Snapshots that "recent" spans: a second."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is, all processes together."""

    t0_ns: int
    """The run's start on time.monotonic_ns()."""
    t_s: float
    """Seconds from then to the moment of which the counts are; below 0 before the start."""
    planned: int
    """Requests of the plan, and the retries that clients have decided on so far."""
    intended: int
    """Requests whose intended start has passed."""
    sent: int
    done: int
    """Requests that ended, with an answer or without."""
    outcomes: dict[str, int]
    recent_responses: npt.NDArray[np.int64]
    """Response times of the last second: counts below each of RESPONSE_EDGES_MS, and at the end those
    above."""

    def response_ms(self, share: float) -> float | None:
        """The response time that `share` of the last second's answers stayed below, to 12 %; None without
        answers."""
        below = np.cumsum(self.recent_responses)
        if below[-1] == 0:
            return None
        bucket = int(np.searchsorted(below, share * below[-1]))
        return float(RESPONSE_EDGES_MS[min(bucket, len(RESPONSE_EDGES_MS) - 1)])


class Gauge:
    """Merges the snapshots of the children."""

    def __init__(self, children: list[Child], planned: int, t0_ns: int) -> None:
        self.children = children
        self.planned = planned
        self.t0_ns = t0_ns
        zero = np.zeros(len(RESPONSE_EDGES_MS) + 1, np.int64)
        self.earlier = deque([zero], maxlen=RECENT)

    def read(self) -> Progress:
        """Return the progress as the latest snapshots have it."""
        snapshots = [child.snapshot for child in self.children]
        # A rate is taken over the time between snapshots, however late they are looked at.
        heard_ns = [child.heard_ns for child in self.children if child.heard_ns is not None]
        at_ns = sum(heard_ns) / len(heard_ns) if heard_ns else time.monotonic_ns()
        responses = np.array([snapshot.responses for snapshot in snapshots], np.int64).sum(axis=0)
        counts = np.array([snapshot.outcomes for snapshot in snapshots]).sum(axis=0).tolist()
        recent = responses - self.earlier[0]
        self.earlier.append(responses)
        return Progress(
            t0_ns=self.t0_ns,
            t_s=(at_ns - self.t0_ns) / 1e9,
            planned=self.planned + sum(snapshot.retries for snapshot in snapshots),
            intended=sum(snapshot.intended for snapshot in snapshots),
            sent=sum(snapshot.sent for snapshot in snapshots),
            done=sum(snapshot.done for snapshot in snapshots),
            outcomes=dict(zip(OUTCOMES, counts, strict=True)),
            recent_responses=recent,
        )

    async def report(self, on_progress: Callable[[Progress], None], stop: asyncio.Event | None) -> None:
        """Calls `on_progress` until it is cancelled, and stops the children once `stop` is set."""
        stopped = False
        while True:
            on_progress(self.read())
            if stop is not None and stop.is_set() and not stopped:
                stopped = True
                await asyncio.gather(*(child.stop() for child in self.children))
            await asyncio.sleep(SNAPSHOT_S)
