"""A process of the driver: reads its part of the plan, drives it, writes what it saw.

It is told what to do by two lines on standard input: a Job, and then the start (time.monotonic_ns). On
standard output it says "ready" in between, and then, several times a second, a Snapshot, each as a line of
JSON. A third line stops the load. When standard input ends, its parent is gone and so is the process.
"""

import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
import time
from bisect import bisect_right
from typing import IO, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import uvloop

from simulation.errors import DriverError
from simulation.open_loop import OpenLoop, Retrying
from simulation.outcome import OUTCOMES, classify

SNAPSHOT_S: Final = 0.25
COUNT_S: Final = 0.02
"""What has ended is counted this often, since nothing is sent meanwhile: the pacer waits for a thousand
requests to be counted, not for those of a whole snapshot."""
RESPONSE_EDGES_MS: Final = np.geomspace(0.01, 100_000, 141)
"""Edges of the buckets that response times are counted in: 20 a decade, so 12 % wide."""

Integers = npt.NDArray[np.int64]
Load = TypeVar("Load", bound=OpenLoop)


class Job(msgspec.Struct, frozen=True):
    """What the process does. `plan` and `result` are .npz files."""

    plan: str
    result: str
    host: str
    """A numeric address: a name would be looked up for each connection."""
    port: int
    authority: str
    """The Host header."""
    path: str
    connections: int
    timeout_ms: int
    connection_per_request: bool = False
    retry_after: frozenset[str] = frozenset()
    """Outcomes after which a client comes again, if the plan has a pause for it."""
    most_retries: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """How far the process is; every count is from the start, and retries count like any request."""

    intended: int
    sent: int
    done: int
    """Requests that ended, with an answer or without."""
    outcomes: list[int]
    """In the order of OUTCOMES; each 200 counts as ACCEPTED."""
    responses: list[int]
    """Answers whose response time (done − intended) is below each of RESPONSE_EDGES_MS, and at the end
    those above."""
    retries: int = 0
    """Requests on top of those planned, so far."""


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


def encode_requests(
    path: str, authority: str, user_id: Integers, product_id: Integers, key: npt.NDArray[np.str_]
) -> list[bytes]:
    """The purchases as HTTP/1.1 requests; an empty key is none."""
    start = f"POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/json\r\n"
    requests = []
    for user, product, idempotency in zip(user_id.tolist(), product_id.tolist(), key.tolist(), strict=True):
        body = f'{{"userId":{user},"productId":{product}}}'
        header = f"Idempotency-Key: {idempotency}\r\n" if idempotency else ""
        requests.append(f"{start}{header}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return requests


def read_load(kind: type[Load], job: Job, plan_file: str | IO[bytes]) -> Load:
    """The load that a job asks for, as a loop of that kind."""
    with np.load(plan_file) as plan:
        requests = encode_requests(job.path, job.authority, plan["user_id"], plan["product_id"], plan["key"])
        intended_ns = plan["intended_ns"].tolist()
        retrying = None
        if job.most_retries:
            retrying = Retrying(job.retry_after, job.most_retries, plan["pause_ns"].tolist())
    return kind(
        requests,
        intended_ns,
        job.host,
        job.port,
        connections=job.connections,
        timeout_ms=job.timeout_ms,
        connection_per_request=job.connection_per_request,
        retrying=retrying,
    )


def save_result(load: OpenLoop, result: str | IO[bytes]) -> None:
    """Writes the arrays of a load that is over: the planned requests, and behind them the retries, of which
    `first` and `attempt` say what they repeat."""
    outcomes = outcomes_of(load, np.arange(len(load.requests), dtype=np.int64))
    accepted, order_ids = [], []
    for op in np.flatnonzero(np.frombuffer(load.status, np.int16) == 200).tolist():
        outcome, order_id = classify(200, load.bodies[op])
        outcomes[op] = OUTCOMES.index(outcome)
        if order_id is not None:
            accepted.append(op)
            order_ids.append(order_id)
    np.savez(
        result,
        sent_ns=np.frombuffer(load.sent_ns, np.int64),
        done_ns=np.frombuffer(load.done_ns, np.int64),
        status=np.frombuffer(load.status, np.int16),
        outcome=outcomes,
        accepted=np.array(accepted, np.int64),
        order_id=np.array(order_ids, np.str_),
        retry_intended_ns=np.array(load.intended_ns[load.planned :], np.int64),
        first=np.array([first for first, _ in load.repeats], np.int64),
        attempt=np.array([attempt for _, attempt in load.repeats], np.int16),
        withdrawn=np.array(load.withdrawn, np.int64),
    )


async def serve() -> None:
    """Does one job."""
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    order = await orders.readline()
    if not order:
        return
    job = msgspec.json.decode(order, type=Job)
    allow_files(job.connections)
    load = read_load(OpenLoop, job, job.plan)
    tally = Tally(load)
    # A parent that is slow to read must not stop the load: a snapshot that does not fit is left out.
    os.set_blocking(sys.stdout.fileno(), False)
    say(b"ready")
    # A collection of garbage would stop the pacer for longer the larger the plan is.
    gc.collect()
    gc.freeze()
    gc.disable()
    start = await orders.readline()
    if not start:
        return
    driving = loop.create_task(load.run(int(start)))
    orphaned = loop.create_task(_until_orphaned(orders, load))
    say_at = 0.0
    while not driving.done() and not orphaned.done():
        await asyncio.wait({driving, orphaned}, timeout=COUNT_S, return_when=asyncio.FIRST_COMPLETED)
        tally.count()
        if time.monotonic() >= say_at or driving.done():
            say(msgspec.json.encode(tally.update()))
            say_at = time.monotonic() + SNAPSHOT_S
    if driving.done():
        driving.result()
        save_result(load, job.result)
    for task in (driving, orphaned):
        task.cancel()
    await asyncio.gather(driving, orphaned, return_exceptions=True)


async def _until_orphaned(orders: asyncio.StreamReader, load: OpenLoop) -> None:
    while await orders.readline():
        load.stop()


def say(line: bytes) -> None:
    """Writes a line to standard output, if it takes one now."""
    # A line shorter than PIPE_BUF is written whole or not at all.
    with contextlib.suppress(BlockingIOError, BrokenPipeError):
        os.write(sys.stdout.fileno(), line + b"\n")


def allow_files(connections: int) -> None:
    """Lets this process open as many connections. Raises DriverError where the machine does not."""
    needed = connections + 100
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise DriverError(
            f"{connections} connections need {needed} open files; the limit (ulimit -Hn) is {hard}"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def main() -> None:
    """Entry of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        uvloop.run(serve())
    except DriverError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
