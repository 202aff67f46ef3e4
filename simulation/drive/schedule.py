"""The requests of an open loop: when each is to start, what became of it, and which clients retry.

A request has no task, future or timer of its own: its state is its number in a few arrays. A retry is a new
request, numbered after the planned ones.
"""

import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush

from simulation.drive.response import Response
from simulation.model.outcome import ENDS, classify
from simulation.scenario.patience import Patience

IDLE = -1
"""No request."""
NEVER = -1
ANSWERED, REFUSED, RESET, TIMEOUT, GARBAGE, NEVER_SENT = range(len(ENDS))
"""Places in ENDS."""
FAR = 1 << 62
"""A start that never comes."""


class Schedule:
    """Requests with their intended starts, in ns from the run's start, sorted.

    `sent_ns`, `done_ns` (NEVER: it was not), `status` and `ends` (places in ENDS) are filled as the run goes;
    `bodies` keeps those of 200 and 503. `ended` lists the requests in the order in which they ended, with a
    response or without. Retries are appended to all of these.
    """

    def __init__(
        self,
        requests: Sequence[bytes],
        intended_ns: Sequence[int],
        patience: Patience | None = None,
        pause_ns: Sequence[int] = (),
    ) -> None:
        self.requests = [*requests]
        self.intended_ns = [*intended_ns]
        self.patience = patience
        """Which clients retry; None: none of them."""
        self.pause_ns = pause_ns
        """The pause of each client before it retries; 0: it never does."""
        self.planned = len(requests)
        self.sent_ns = array("q", [NEVER]) * self.planned
        self.done_ns = array("q", [NEVER]) * self.planned
        self.status = array("h", [0]) * self.planned
        self.ends = array("b", [NEVER_SENT]) * self.planned
        self.bodies: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.next = 0
        """The first planned request that has not started: those before it are in flight or ended."""
        self.retries: list[tuple[int, int]] = []
        """Of each retry: the planned request that it repeats, and the number of the try, from 1."""
        self.pausing: list[tuple[int, int]] = []
        """A heap of the retries that are not due yet: intended start and number."""
        self.due: deque[int] = deque()
        """Retries that are due, in order."""
        self.withdrawn = 0
        """Requests that are never made because the load was stopped."""
        self.t0_ns = 0
        """The run's start on time.monotonic_ns()."""

    @property
    def is_over(self) -> bool:
        """Whether every request that is made has ended."""
        return len(self.ended) + self.withdrawn == len(self.requests)

    def stop(self) -> None:
        """Start no further request; those in flight go on."""
        self.patience = None
        self.withdrawn += self.planned - self.next + len(self.due) + len(self.pausing)
        self.next = self.planned
        self.due.clear()
        self.pausing.clear()

    def find_due(self, now: int) -> int:
        """Move the retries that are due to `due`; return the first planned request that is not due."""
        while self.pausing and self.pausing[0][0] <= now:
            self.due.append(heappop(self.pausing)[1])
        return bisect_right(self.intended_ns, now, self.next, self.planned)

    def next_start(self, now: int) -> int:
        """Return the earliest intended start after `now` that is known; FAR if there is none."""
        first = bisect_right(self.intended_ns, now, self.next, self.planned)
        planned_ns = self.intended_ns[first] if first < self.planned else FAR
        return min(planned_ns, self.pausing[0][0]) if self.pausing else planned_ns

    def take(self, by: int) -> int:
        """Take the earliest request whose intended start is not after `by`; IDLE if there is none."""
        op, due = self.next, self.due
        planned_ns = self.intended_ns[op] if op < self.planned else FAR
        if due and self.intended_ns[due[0]] <= min(by, planned_ns):
            return due.popleft()
        if planned_ns > by:
            return IDLE
        self.next = op + 1
        return op

    def end(self, op: int, response: Response, now: int) -> None:
        """End a request with its response."""
        self.done_ns[op] = now
        self.ends[op] = ANSWERED
        status = response.status
        self.status[op] = status
        if status == 200 or status == 503:
            self.bodies[op] = response.body
        self.ended.append(op)
        if self.patience:
            self._retry(self.patience, op, now)

    def lose(self, op: int, end: int) -> None:
        """End a request without a response; `end` is why, a place in ENDS."""
        self.ends[op] = end
        self.ended.append(op)
        if self.patience:
            self._retry(self.patience, op, time.monotonic_ns() - self.t0_ns)

    def outcome_of(self, op: int) -> str:
        """Return the outcome of a request that ended; a 200 counts as ACCEPTED without a look at its body."""
        if self.sent_ns[op] == NEVER:
            return "UNAVAILABLE"
        status = self.status[op]  # 0 without a response, which is UNKNOWN
        return "ACCEPTED" if status == 200 else classify(status, self.bodies.get(op, b""))[0]

    def _retry(self, patience: Patience, op: int, now: int) -> None:
        """Plan the retry of a request that has ended, if its client retries after its outcome."""
        first, attempt = (op, 0) if op < self.planned else self.retries[op - self.planned]
        pause_ns = self.pause_ns[first]
        if attempt >= patience.most or not pause_ns or self.outcome_of(op) not in patience.after:
            return
        heappush(self.pausing, (now + pause_ns, len(self.requests)))
        self.requests.append(self.requests[first])
        self.intended_ns.append(now + pause_ns)
        self.sent_ns.append(NEVER)
        self.done_ns.append(NEVER)
        self.status.append(0)
        self.ends.append(NEVER_SENT)
        self.retries.append((first, attempt + 1))
