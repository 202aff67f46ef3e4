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
from typing import IO, Final, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import uvloop

from simulation.drive.job import SNAPSHOT_S, Job
from simulation.drive.open_loop import OpenLoop, Retrying
from simulation.drive.tally import Integers, Tally, outcomes_of
from simulation.errors import DriverError
from simulation.model.outcome import OUTCOMES, classify

COUNT_S: Final = 0.02
"""What has ended is counted this often, since nothing is sent meanwhile: the pacer waits for a thousand
requests to be counted, not for those of a whole snapshot."""

Load = TypeVar("Load", bound=OpenLoop)


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
