"""How far a load is: each process counts what has ended (Tally), and the driver adds it up (Gauge)."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from simulation.drive.plan import Integers
from simulation.drive.schedule import Schedule
from simulation.model.history import BUY
from simulation.model.outcome import OUTCOMES, classify

SNAPSHOT_S: Final = 0.25
RESPONSE_EDGES_MS: Final = np.geomspace(0.01, 100_000, 141)
"""Edges of the buckets that response times are counted in: 20 a decade, so 12 % wide."""
BUCKETS: Final = len(RESPONSE_EDGES_MS) + 1


class Snapshot(msgspec.Struct, frozen=True):
    """How far a process is. Every count is of purchases, from the start, and retries count like any
    purchase."""

    intended: int
    sent: int
    outcomes: list[int]
    """Requests that ended, with a response or without: counts in the order of OUTCOMES. Each 200 counts as
    ACCEPTED."""
    responses: list[int]
    """Response times (done − intended): counts below each of RESPONSE_EDGES_MS, and last those above."""
    retries: int = 0
    """Retries that clients have decided on so far."""
    reads: int = 0
    """Reads that ended, with a response or without."""


class Tally:
    """Counts what has ended in one process, in bulk, a few times a second."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.seen = 0
        """How many of the ended requests were counted, and of them the purchases."""
        self.bought = 0
        self.unsent = 0
        self.outcomes = np.zeros(len(OUTCOMES), np.int64)
        self.responses = np.zeros(BUCKETS, np.int64)

    def count(self) -> None:
        """Count what has ended since the last time."""
        schedule = self.schedule
        ended = schedule.ended[self.seen :]
        self.seen += len(ended)
        ended = [op for op in ended if schedule.kind[op] == BUY]
        ops = np.array(ended, np.int64)
        self.bought += len(ops)
        # No view of an array may outlive the count: the schedule could not append a request to it.
        sent_ns = np.frombuffer(schedule.sent_ns, np.int64)[ops]
        done_ns = np.frombuffer(schedule.done_ns, np.int64)[ops]
        intended_ns = np.array([schedule.intended_ns[op] for op in ended], np.int64)
        self.unsent += int(np.count_nonzero(sent_ns < 0))
        self.outcomes += np.bincount(find_outcomes(schedule, ops), minlength=len(OUTCOMES))
        response_ms = (done_ns - intended_ns)[done_ns >= 0] / 1e6
        buckets = np.searchsorted(RESPONSE_EDGES_MS, response_ms, side="right")
        self.responses += np.bincount(buckets, minlength=BUCKETS)

    def read(self) -> Snapshot:
        """Return the counts as of now."""
        self.count()
        schedule = self.schedule
        intended, started = schedule.count_buys(time.monotonic_ns() - schedule.t0_ns)
        return Snapshot(
            intended=intended,
            sent=started - self.unsent,
            outcomes=self.outcomes.tolist(),
            responses=self.responses.tolist(),
            retries=schedule.kind.count(BUY, schedule.planned),
            reads=self.seen - self.bought,
        )


def find_outcomes(schedule: Schedule, ops: Integers) -> npt.NDArray[np.int8]:
    """Return indices into OUTCOMES of purchases that ended; a 200 counts as ACCEPTED without a look at its
    body."""
    status = np.frombuffer(schedule.status, np.int16)[ops]  # 0 without a response, which is UNKNOWN
    found = np.empty(len(ops), np.int8)
    for value in np.unique(status).tolist():
        outcome = "ACCEPTED" if value == 200 else classify(value, b"")[0]
        found[status == value] = OUTCOMES.index(outcome)
    for place in np.flatnonzero(status == 503).tolist():
        found[place] = OUTCOMES.index(classify(503, schedule.bodies[int(ops[place])])[0])
    found[np.frombuffer(schedule.sent_ns, np.int64)[ops] < 0] = OUTCOMES.index("UNAVAILABLE")
    return found


class Progress(NamedTuple):
    """How far a run is, all processes together. Requests are purchases; reads are counted apart."""

    t0_ns: int
    """The run's start on time.monotonic_ns()."""
    t_s: float
    """Seconds from then to the moment of the counts; below 0 before the start."""
    planned: int
    """Requests of the plan, and the retries that clients have decided on so far."""
    intended: int
    """Requests whose intended start has passed."""
    sent: int
    done: int
    """Requests that ended, with a response or without."""
    outcomes: dict[str, int]
    recent_responses: npt.NDArray[np.int64]
    """Response times of the last second: counts below each of RESPONSE_EDGES_MS, and last those above."""
    reads: int = 0
    """Reads that ended, with a response or without."""

    def response_ms(self, share: float) -> float | None:
        """Return the response time that `share` of the last second's responses stayed below, to 12 %; None
        without responses."""
        below = np.cumsum(self.recent_responses)
        if below[-1] == 0:
            return None
        bucket = int(np.searchsorted(below, share * below[-1]))
        return float(RESPONSE_EDGES_MS[min(bucket, len(RESPONSE_EDGES_MS) - 1)])


def add_up(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Return how far all processes are together."""
    counts = zip(*map(msgspec.structs.astuple, snapshots), strict=True)
    return Snapshot(*(np.sum(each, axis=0).tolist() for each in counts))


class Gauge:
    """Adds up the snapshots of all processes."""

    def __init__(self, processes: int, planned: int, t0_ns: int) -> None:
        self.planned = planned
        self.t0_ns = t0_ns
        self.snapshots = [Snapshot(0, 0, [0] * len(OUTCOMES), [0] * BUCKETS)] * processes
        self.heard_ns: dict[int, int] = {}
        """When the latest snapshot of each process came."""
        self.earlier = deque([np.zeros(BUCKETS, np.int64)], maxlen=round(1 / SNAPSHOT_S))
        """The responses of each of the snapshots of the last second."""

    def hear(self, number: int, line: bytes) -> None:
        """Take a snapshot of a process."""
        self.snapshots[number] = msgspec.json.decode(line, type=Snapshot)
        self.heard_ns[number] = time.monotonic_ns()

    def read(self) -> Progress:
        """Return the progress as the latest snapshots have it."""
        # A rate is taken over the time between snapshots, not between looks at them.
        heard_ns = [*self.heard_ns.values()] or [time.monotonic_ns()]
        total = add_up(self.snapshots)
        responses = np.array(total.responses, np.int64)
        recent = responses - self.earlier[0]
        self.earlier.append(responses)
        return Progress(
            t0_ns=self.t0_ns,
            t_s=(sum(heard_ns) / len(heard_ns) - self.t0_ns) / 1e9,
            planned=self.planned + total.retries,
            intended=total.intended,
            sent=total.sent,
            done=sum(total.outcomes),
            outcomes=dict(zip(OUTCOMES, total.outcomes, strict=True)),
            recent_responses=recent,
            reads=total.reads,
        )
