"""One process of the driver: an open loop.

Every request has its intended start beforehand, and no answer is waited for before the next one is sent. A
request that is late goes out at once, in order, and keeps its intended start, so that a server which stalls
is charged for each request that it kept waiting ("coordinated omission": Tene, wrk2).

A pacer wakes about each millisecond and sends everything due. There is no task, future or timer for a
request: its whole state is its number in a few arrays.

A client that comes again makes a new request, numbered after those planned; it is meant to start when the
client decided so plus its pause, and waits in a heap until then.

    never sent        refused: the server refused the connection that was opened for it
                      given up: it waited for the whole timeout, or this machine could not open a connection
    sent, no answer   timeout, reset, or bytes that are no answer: nobody knows what became of it
"""

import asyncio
import time
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from typing import Any, NamedTuple

from simulation.drive.answer import Answer
from simulation.drive.connection import IDLE, Connection
from simulation.model.outcome import classify

TICK_S = 0.001
SWEEP_NS = 50_000_000
"""Timeouts are looked for this often: a request may get so much more."""
WARM = 256
"""Connections that are open before the first request is due: opening costs both sides more than a request
does, and a load that starts at its full rate would begin with nothing else."""
NEVER = -1
FAR = 1 << 62
"""A start that never comes."""


class Retrying(NamedTuple):
    """Which clients come again, and when."""

    after: frozenset[str]
    """Outcomes after which they do; a 200 is taken for ACCEPTED without a look at its body."""
    most: int
    """How often each does at most."""
    pause_ns: Sequence[int]
    """How long the client of each request waits before it does; 0: it never does."""


class OpenLoop:
    """Sends `requests[i]` at `intended_ns[i]` (sorted, from the start) to one address.

    `sent_ns`, `done_ns` (NEVER: it was not) and `status` are filled as the run goes; `bodies` keeps those
    of 200 and 503. `ended` lists the requests in the order in which they ended, however they ended. Retries
    are added at the end of all these; `repeats` has for each its first try and which try it is, from 1.
    """

    def __init__(
        self,
        requests: Sequence[bytes],
        intended_ns: Sequence[int],
        host: str,
        port: int,
        *,
        connections: int,
        timeout_ms: int,
        connection_per_request: bool = False,
        retrying: Retrying | None = None,
    ) -> None:
        self.requests = [*requests]
        self.intended_ns = [*intended_ns]
        self.host, self.port = host, port
        self.connections = connections
        self.connection_per_request = connection_per_request
        """Whether every request opens a connection of its own, which counts into its response time."""
        self.timeout_ns = timeout_ms * 1_000_000
        self.retrying = retrying
        self.planned = len(requests)
        self.sent_ns = array("q", [NEVER]) * self.planned
        self.done_ns = array("q", [NEVER]) * self.planned
        self.status = array("h", [0]) * self.planned
        self.bodies: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.next = 0
        """The first planned request that is not yet sent: those before it are under way or ended."""
        self.repeats: list[tuple[int, int]] = []
        self.pausing: list[tuple[int, int]] = []
        """A heap of when each retry that is not due yet is meant to start, and its number."""
        self.late: deque[int] = deque()
        """Retries that are due, in order."""
        self.withdrawn: list[int] = []
        """Requests that are never made, since the load was stopped before."""
        self.t0_ns = 0
        self.free: list[Connection] = []
        """Idle connections; the last one used is used first, so that few stay warm. May hold closed ones."""
        self.all: set[Connection] = set()
        self.connecting: set[Any] = set()
        """Attempts to connect that are under way."""
        self._swept_ns = 0

    async def run(self, t0_ns: int) -> None:
        """Drives the whole load from `t0_ns` (time.monotonic_ns) on; returns when every request has ended."""
        self.t0_ns = t0_ns
        if not self.connection_per_request:
            self._open(min(WARM, self.connections))
        try:
            await self._pace()
        finally:
            for task in self.connecting:
                task.cancel()
            await asyncio.gather(*self.connecting, return_exceptions=True)
            for connection in list(self.all):
                connection.transport.abort()
            await asyncio.sleep(0)  # an aborted connection is closed in the next turn of the event loop

    async def _pace(self) -> None:
        while not self.is_over:
            pause_s = self.beat()
            await asyncio.sleep(pause_s)

    @property
    def is_over(self) -> bool:
        """Whether every request that is made has ended."""
        return len(self.ended) + len(self.withdrawn) == len(self.requests)

    def stop(self) -> None:
        """Makes no further request, and waits only for those under way."""
        self.retrying = None
        retries = [*self.late, *(op for _, op in self.pausing)]
        self.withdrawn += [*range(self.next, self.planned), *retries]
        self.next = self.planned
        self.late.clear()
        self.pausing.clear()

    def beat(self) -> float:
        """Sends what is due and ends what has waited too long; the seconds until the next beat."""
        now = time.monotonic_ns() - self.t0_ns
        self.send_due(now)
        if now - self._swept_ns >= SWEEP_NS:
            self._sweep(now)
        until = TICK_S
        # What is planned can be slept until, but a client may decide to come again sooner.
        if self.next < self.planned and self.retrying is None:
            until = (self.intended_ns[self.next] - now) / 1e9
        # At most one sweep is slept over.
        return min(max(until, TICK_S), SWEEP_NS / 1e9)

    def send_due(self, now: int) -> None:
        """Sends what is due by `now` on the connections there are, and opens some for what remains."""
        while self.pausing and self.pausing[0][0] <= now:
            self.late.append(heappop(self.pausing)[1])
        due = bisect_right(self.intended_ns, now, self.next, self.planned)
        free = self.free
        while free and (self.next < due or self.late):
            connection = free.pop()
            if connection.is_open:
                connection.send(self.take(now))
        waiting = due - self.next + len(self.late) - len(self.connecting)
        self._open(min(waiting, self.connections - len(self.all) - len(self.connecting)))

    def take(self, by: int) -> int:
        """Takes the first of the requests that were meant to start by then; IDLE: there is none."""
        op, late = self.next, self.late
        planned_ns = self.intended_ns[op] if op < self.planned else FAR
        if late and self.intended_ns[late[0]] <= min(by, planned_ns):
            return late.popleft()
        if planned_ns > by:
            return IDLE
        self.next = op + 1
        return op

    def end(self, op: int, answer: Answer, now: int) -> None:
        """An answer came."""
        self.done_ns[op] = now
        status = answer.status
        self.status[op] = status
        if status == 200 or status == 503:
            self.bodies[op] = answer.body
        self.ended.append(op)
        if self.retrying and status != 200:
            self._decide(self.retrying, op, classify(status, answer.body)[0], now)

    def lose(self, op: int) -> None:
        """It ends without an answer."""
        self.ended.append(op)
        if self.retrying:
            outcome = "UNAVAILABLE" if self.sent_ns[op] == NEVER else "UNKNOWN"
            self._decide(self.retrying, op, outcome, time.monotonic_ns() - self.t0_ns)

    def _decide(self, retrying: Retrying, op: int, outcome: str, now: int) -> None:
        """The client of a request that has ended comes again, or does not."""
        first, attempt = (op, 0) if op < self.planned else self.repeats[op - self.planned]
        pause_ns = retrying.pause_ns[first]
        if outcome not in retrying.after or attempt >= retrying.most or not pause_ns:
            return
        heappush(self.pausing, (now + pause_ns, len(self.requests)))
        self.requests.append(self.requests[first])
        self.intended_ns.append(now + pause_ns)
        self.sent_ns.append(NEVER)
        self.done_ns.append(NEVER)
        self.status.append(0)
        self.repeats.append((first, attempt + 1))

    def release(self, connection: "Connection", now: int) -> None:
        """The connection is idle: it takes the next request at once if one is due."""
        op = self.take(now)
        if op == IDLE:
            self.free.append(connection)
        else:
            connection.send(op)

    def _open(self, count: int) -> None:
        for _ in range(count):
            task = asyncio.get_running_loop().create_task(self._connect())
            self.connecting.add(task)
            task.add_done_callback(self.connecting.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timeout_ns / 1e9):
                await loop.create_connection(lambda: Connection(self), self.host, self.port)
        except TimeoutError:
            pass  # the sweep ends the requests that waited for it
        except OSError as error:
            self.refuse(error)

    def refuse(self, error: OSError) -> None:
        """A connection could not be opened.

        The oldest request that waits meets what it would have met as a client of its own, so that an attempt
        costs a request, and a server that is down is not asked for ever.
        """
        now = time.monotonic_ns() - self.t0_ns
        if (op := self.take(now)) != IDLE:
            if isinstance(error, ConnectionError):
                self.done_ns[op] = now
            self.lose(op)

    def _sweep(self, now: int) -> None:
        """Ends what has waited longer than the timeout, for its answer or for a connection."""
        self._swept_ns = now
        oldest = now - self.timeout_ns
        for connection in list(self.all):
            if connection.op != IDLE and self.sent_ns[connection.op] < oldest:
                connection.drop()
        while (op := self.take(oldest - 1)) != IDLE:
            self.lose(op)
