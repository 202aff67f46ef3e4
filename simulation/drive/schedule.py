"""The requests of an open loop: when each is to start, what became of it, and which clients come again.

A request has no task, future or timer of its own: its state is its number in a few arrays. A retry, or a look
at an order, is a new request, numbered after the planned ones.
"""

import time
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

from simulation.drive.response import Response
from simulation.model.contract import FLASHGRID, Contract
from simulation.model.history import BUY, ORDER, STOCK
from simulation.model.outcome import ENDS, TERMINAL
from simulation.scenario.patience import Patience

IDLE = -1
"""No request."""
NEVER = -1
ANSWERED, REFUSED, RESET, TIMEOUT, GARBAGE, NEVER_SENT = range(len(ENDS))
"""Places in ENDS."""
FAR = 1 << 62
"""A start that never comes."""


class Polls(NamedTuple):
    """The looks of accepted buyers at their orders."""

    pause_ns: Sequence[int]
    """The pause of each client before a look; 0: it never looks."""
    most: int
    """Most looks of a client."""
    encode: Callable[[str, int, int], bytes]
    """Returns the request that reads the order of that id, for the buyer of that planned request, at a front
    door."""


class Schedule:
    """Requests with their intended starts, in ns from the run's start, sorted.

    `sent_ns`, `done_ns` (NEVER: it was not), `status` and `ends` (places in ENDS) are filled as the run goes;
    `bodies` keeps those that tell more than their status (Contract.kept), `heads` the heads of the same
    answers, where the contract reads them. `ended` lists the requests in the order in which they ended, with
    a response or without. Retries and looks at orders are appended to all.

    Planned requests go to the front doors in turn. So do those that follow one, from its front door on.
    """

    def __init__(
        self,
        requests: Sequence[bytes],
        intended_ns: Sequence[int],
        patience: Patience | None = None,
        pause_ns: Sequence[int] = (),
        looks: Mapping[int, int] = MappingProxyType({}),
        polls: Polls | None = None,
        contract: Contract = FLASHGRID,
        doors: int = 1,
        encode_again: Callable[[int, int], bytes] | None = None,
    ) -> None:
        """`encode_again` returns the planned request of that number as it goes to another front door; without
        it, it is the same everywhere."""
        self.contract = contract
        self.kept = contract.kept
        self.keeps_heads = contract.reads_heads
        self.judge_refusal = contract.judge_refusal
        self.requests = [*requests]
        self.intended_ns = [*intended_ns]
        self.patience = patience
        """Which clients retry; None: none of them."""
        self.pause_ns = pause_ns
        """The pause of each client before it retries; 0: it never does."""
        self.polls = polls
        """Which buyers look at their orders; None: none of them."""
        self.planned = len(requests)
        self.looks = looks
        """The product of each planned request that reads a stock."""
        self.kind = bytearray([BUY]) * self.planned
        """BUY, STOCK or ORDER."""
        for op in looks:
            self.kind[op] = STOCK
        self.order_ids: dict[int, str] = {}
        """The order of each look at one."""
        self.settled: set[int] = set()
        """The planned requests whose buyers have seen the final status of their order."""
        self.sent_ns = array("q", [NEVER]) * self.planned
        self.done_ns = array("q", [NEVER]) * self.planned
        self.status = array("h", [0]) * self.planned
        self.ends = array("b", [NEVER_SENT]) * self.planned
        self.bodies: dict[int, bytes] = {}
        self.heads: dict[int, bytes] = {}
        self.unread: set[int] = set()
        """Purchases that were refused in words which do not fit the status."""
        self.ended: list[int] = []
        self.encode_again = encode_again
        self.next = 0
        """The first planned request that is not due: those before it wait, are in flight or ended."""
        self.added: list[tuple[int, int]] = []
        """Of each retry or look at an order: the planned request that it follows, and the number of the try,
        or of the look, from 1."""
        self.pausing: list[tuple[int, int]] = []
        """A heap of those that are not due yet: intended start and number."""
        self.due: list[deque[int]] = [deque() for _ in range(doors)]
        """The requests that are due and wait for a connection to each front door, in order."""
        self.withdrawn = 0
        """Requests that are never made because the load was stopped, and of them the purchases."""
        self.withdrawn_buys = 0
        self.t0_ns = 0
        """The run's start on time.monotonic_ns()."""

    @property
    def is_over(self) -> bool:
        """Whether every request that is made has ended."""
        return len(self.ended) + self.withdrawn == len(self.requests)

    def stop(self) -> None:
        """Start no further request; those in flight go on."""
        self.patience = self.polls = None
        waiting = chain.from_iterable(self.due)
        unmade = [*range(self.next, self.planned), *waiting, *(op for _, op in self.pausing)]
        self.withdrawn += len(unmade)
        self.withdrawn_buys += sum(self.kind[op] == BUY for op in unmade)
        self.next = self.planned
        for due in self.due:
            due.clear()
        self.pausing.clear()

    @property
    def grows(self) -> bool:
        """Whether a client may decide on a further request."""
        return self.patience is not None or self.polls is not None

    def count_buys(self, now: int) -> tuple[int, int]:
        """Return how many purchases were meant to start by `now`, and how many were taken to be sent."""
        kind = self.kind
        added = kind.count(BUY, self.planned) - sum(kind[op] == BUY for _, op in self.pausing)
        passed = bisect_right(self.intended_ns, now, 0, self.planned)
        waiting = sum(kind[op] == BUY for op in chain.from_iterable(self.due))
        taken = kind.count(BUY, 0, self.next) - waiting - self.withdrawn_buys
        return kind.count(BUY, 0, passed) + added, taken + added

    def find_due(self, now: int) -> None:
        """Let the requests that are due by `now` wait for their front doors, in the order of their starts."""
        while self.pausing and self.pausing[0][0] <= now:
            at_ns, op = heappop(self.pausing)
            self._line_up(bisect_left(self.intended_ns, at_ns, self.next, self.planned))
            self.due[sum(self.added[op - self.planned]) % len(self.due)].append(op)
        self._line_up(bisect_right(self.intended_ns, now, self.next, self.planned))

    def _line_up(self, end: int) -> None:
        """Let the planned requests before `end` wait."""
        doors = len(self.due)
        for op in range(self.next, min(self.next + doors, end)):
            self.due[op % doors].extend(range(op, end, doors))
        self.next = max(self.next, end)

    def next_start(self, now: int) -> int:
        """Return the earliest intended start after `now` that is known; FAR if there is none."""
        first = bisect_right(self.intended_ns, now, self.next, self.planned)
        planned_ns = self.intended_ns[first] if first < self.planned else FAR
        return min(planned_ns, self.pausing[0][0]) if self.pausing else planned_ns

    def take(self, door: int, by: int) -> int:
        """Take the earliest request to a front door whose intended start is not after `by`; IDLE if there is
        none."""
        due = self.due[door]
        if not due:
            self.find_due(by)
        return due.popleft() if due and self.intended_ns[due[0]] <= by else IDLE

    def end(self, op: int, response: Response, now: int) -> None:
        """End a request with its response."""
        self.done_ns[op] = now
        self.ends[op] = ANSWERED
        status = response.status
        self.status[op] = status
        if status in self.kept:
            self.bodies[op] = response.body
            if self.keeps_heads:
                self.heads[op] = response.head
        elif self.kind[op] == BUY and self.judge_refusal(status, response.body) == "UNKNOWN":
            self.unread.add(op)
        self.ended.append(op)
        if self.grows:
            self._go_on(op, now)

    def lose(self, op: int, end: int) -> None:
        """End a request without a response; `end` is why, a place in ENDS."""
        self.ends[op] = end
        self.ended.append(op)
        if self.grows:
            self._go_on(op, time.monotonic_ns() - self.t0_ns)

    def outcome_of(self, op: int) -> str:
        """Return the outcome of a purchase that ended; a status that has one outcome has it without a look at
        the body."""
        if self.sent_ns[op] == NEVER:
            return "UNAVAILABLE"
        if op in self.unread:
            return "UNKNOWN"
        status = self.status[op]  # 0 without a response, which is UNKNOWN
        body = self.bodies[op] if status in self.contract.ambiguous else None
        return self.judge_refusal(status, body)

    def _go_on(self, op: int, now: int) -> None:
        """Plan what the client of a request that has ended does next, if anything."""
        first, number = (op, 0) if op < self.planned else self.added[op - self.planned]
        if self.kind[op] == ORDER:
            self._look(first, number, self.order_ids[op], op, now)
        elif self.kind[op] == BUY and self.outcome_of(op) == "ACCEPTED":
            if not self.polls or not self.polls.pause_ns[first]:
                return
            answer = self.status[op], self.bodies[op], self.heads.get(op, b"")
            if order_id := self.contract.classify(*answer)[1]:
                self._look(first, 0, order_id, op, now)
        elif self.kind[op] == BUY and self.patience:
            pause_ns = self.pause_ns[first]
            if number < self.patience.most and pause_ns and self.outcome_of(op) in self.patience.after:
                self._add(self._encode_again(first, number + 1), BUY, first, number + 1, now + pause_ns)

    def _look(self, first: int, looks: int, order_id: str, op: int, now: int) -> None:
        """Plan the next look at an order after so many, unless its final status was seen before `op`."""
        if self.polls is None or looks >= self.polls.most or first in self.settled:
            return
        answer = self.status[op], self.bodies.get(op, b""), order_id, self.heads.get(op, b"")
        if self.contract.classify_order(*answer)[1] in TERMINAL:
            self.settled.add(first)
        self.order_ids[len(self.requests)] = order_id
        pause_ns = self.polls.pause_ns[first]
        request = self.polls.encode(order_id, first, (first + looks + 1) % len(self.due))
        self._add(request, ORDER, first, looks + 1, now + pause_ns)

    def _encode_again(self, first: int, number: int) -> bytes:
        doors = len(self.due)
        if self.encode_again is None or number % doors == 0:
            return self.requests[first]
        return self.encode_again(first, (first + number) % doors)

    def _add(self, request: bytes, kind: int, first: int, number: int, intended_ns: int) -> None:
        heappush(self.pausing, (intended_ns, len(self.requests)))
        self.requests.append(request)
        self.kind.append(kind)
        self.intended_ns.append(intended_ns)
        self.sent_ns.append(NEVER)
        self.done_ns.append(NEVER)
        self.status.append(0)
        self.ends.append(NEVER_SENT)
        self.added.append((first, number))
