"""Counts of what has ended, in bulk, a few times a second."""

import time
from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from simulation.drive.job import RESPONSE_EDGES_MS, Snapshot
from simulation.drive.open_loop import OpenLoop
from simulation.model.outcome import OUTCOMES, classify

Integers = npt.NDArray[np.int64]


class Tally:
    """Counts what has ended, in bulk, a few times a second."""

    def __init__(self, load: OpenLoop) -> None:
        self.load = load
        self.seen = 0
        self.unsent = 0
        self.outcomes = np.zeros(len(OUTCOMES), np.int64)
        self.responses = np.zeros(len(RESPONSE_EDGES_MS) + 1, np.int64)

    def count(self) -> None:
        """Counts what has ended since the last time."""
        load = self.load
        ended = load.ended[self.seen :]
        ops = np.array(ended, np.int64)
        # No view of an array may outlive the update: the load could not append a retry to it.
        sent_ns = np.frombuffer(load.sent_ns, np.int64)[ops]
        done_ns = np.frombuffer(load.done_ns, np.int64)[ops]
        intended_ns = np.array([load.intended_ns[op] for op in ended], np.int64)
        self.seen += len(ops)
        self.unsent += int(np.count_nonzero(sent_ns < 0))
        self.outcomes += np.bincount(outcomes_of(load, ops), minlength=len(OUTCOMES))
        response_ms = (done_ns - intended_ns)[done_ns >= 0] / 1e6
        buckets = np.searchsorted(RESPONSE_EDGES_MS, response_ms, side="right")
        self.responses += np.bincount(buckets, minlength=len(self.responses))

    def update(self) -> Snapshot:
        """The state as of now."""
        self.count()
        load = self.load
        now = time.monotonic_ns() - load.t0_ns
        due = len(load.repeats) - len(load.pausing)
        return Snapshot(
            intended=bisect_right(load.intended_ns, now, 0, load.planned) + due,
            sent=load.next + due - len(load.late) - self.unsent - len(load.withdrawn),
            done=self.seen,
            outcomes=self.outcomes.tolist(),
            responses=self.responses.tolist(),
            retries=len(load.repeats),
        )


def outcomes_of(load: OpenLoop, ops: Integers) -> npt.NDArray[np.int8]:
    """Indices into OUTCOMES of requests that ended; a 200 is taken for ACCEPTED without a look at its
    body."""
    status = np.frombuffer(load.status, np.int16)[ops]  # 0 without an answer, which is UNKNOWN
    found = np.empty(len(ops), np.int8)
    for value in np.unique(status).tolist():
        outcome = "ACCEPTED" if value == 200 else classify(value, b"")[0]
        found[status == value] = OUTCOMES.index(outcome)
    for place in np.flatnonzero(status == 503).tolist():
        found[place] = OUTCOMES.index(classify(503, load.bodies[int(ops[place])])[0])
    found[np.frombuffer(load.sent_ns, np.int64)[ops] < 0] = OUTCOMES.index("UNAVAILABLE")
    return found
