"""A process of a Locust load: the one that leads, or a worker.

The scenario's plan through Locust: its runners, messages, statistics and page, and its greenlets to carry the
requests. The loop is open, as it is without Locust: a request goes out when the plan says so, whoever still
waits for an answer, and its response time counts from there. Locust's users only show how much is due: a
user that sends would have to wait for its answer, and so close the loop.

Run as `python -m simulation.swarm.locustfile`; simulation.swarm.job has what it is told. A process of its
own, since Locust replaces all blocking calls of the one that imports it.
"""

import os
import signal
import socket
import sys
import time
from typing import Any, Final

import gevent
import locust.runners
import locust.stats
import msgspec
import numpy as np
from gevent.fileobject import FileObject
from gevent.queue import Queue
from locust import LoadTestShape, User, constant, task
from locust.env import Environment
from locust.exception import RPCError

from simulation.drive.locust.job import MOST_USERS, Follow, Lead, Listening, count_users
from simulation.drive.locust.leader import Leader
from simulation.drive.locust.sender import Sender
from simulation.drive.process import say
from simulation.errors import DriverError

SILENCE_S: Final = 10
"""A worker that is not heard of for so long is lost; a busy one may be silent for a while."""
LOOPBACK: Final = "127.0.0.1"


class Shoppers(User):
    """Some requests a second that are due, for Locust's page; it sends nothing itself."""

    wait_time = constant(3_600)

    @task
    def arrive(self) -> None:
        """Does nothing: the plan sends."""


class ArrivalCurve(LoadTestShape):
    """The plan's arrivals, second by second, as a number of users."""

    def __init__(self, users: list[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.users = users
        self.t0_ns = 0

    def tick(self) -> tuple[int, float]:
        """Users that there should be now, and how many may come or go in a second."""
        second = max(0, (time.monotonic_ns() - self.t0_ns) // 1_000_000_000)
        return (self.users[second] if second < len(self.users) else 1), MOST_USERS


def lead(job: Lead, environment: Environment, orders: "Queue[bytes]") -> None:
    """Leads a load. Raises DriverError."""
    users, _ = count_users(np.concatenate([np.load(part.plan)["intended_ns"] for part in job.parts]))
    curve = environment.shape_class = ArrivalCurve(users)
    environment.host = job.url
    port: int | None = None
    web_port: int | None = None
    runner: Any
    if job.is_master:
        locust.runners.HEARTBEAT_LIVENESS = SILENCE_S
        port = find_port("workers", job.bind, job.port)
        try:
            runner = environment.create_master_runner(job.bind, port)
        except RPCError as error:
            raise DriverError(f"port {port} for workers: {error}") from None
    else:
        runner = environment.create_local_runner()
    if job.web_port is not None:
        web_port = find_port("Locust's page", LOOPBACK, job.web_port)
        locust.stats.HISTORY_STATS_INTERVAL_SEC = 1
        environment.create_web_ui(LOOPBACK, web_port)
        gevent.spawn(locust.stats.stats_history, runner)
    leader = Leader(runner, job)
    if not job.is_master:
        Sender(runner)
    say(msgspec.json.encode(Listening(port, web_port)))

    def start_page(t0_ns: int) -> None:
        curve.t0_ns = t0_ns
        runner.start_shape()

    try:
        leader.lead(orders, start_page)
    finally:
        runner.quit()


def follow(job: Follow, environment: Environment) -> None:
    """Works for a master until it is no longer needed. Raises DriverError."""
    locust.runners.CONNECT_TIMEOUT = 1
    locust.runners.CONNECT_RETRY_COUNT = round(job.wait_s) - 1
    try:
        runner = environment.create_worker_runner(job.host, job.port)
    except ConnectionError:
        raise DriverError(f"no master answers at {job.host}:{job.port} for {job.wait_s:g} s") from None
    Sender(runner)
    runner.greenlet.join()


def find_port(what: str, host: str, port: int) -> int:
    """The port, or a free one for 0. Raises DriverError where it can't be had."""
    try:
        with socket.create_server((host, port)) as probe:
            found: int = probe.getsockname()[1]
    except OSError as error:
        raise DriverError(f"{host}:{port} for {what}: {error.strerror or error}") from None
    return found


def read_orders(orders: "Queue[bytes]", environment: Any) -> None:
    """Reads standard input line by line; ends the process when its parent is gone."""
    for line in FileObject(sys.stdin.fileno(), "rb", closefd=False):
        orders.put(line)
    if environment.runner:
        environment.events.quitting.fire(environment=environment)
        gevent.sleep(0.2)  # until the others have heard it
    os._exit(0)


def main() -> None:
    """Entry of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    environment = Environment(user_classes=[Shoppers], locustfile="flashsim locust")
    orders: Queue[bytes] = Queue()
    gevent.spawn(read_orders, orders, environment)
    job = msgspec.json.decode(orders.get(), type=Lead | Follow)
    # A parent that is slow to read must not stop the load: a snapshot that does not fit is left out.
    os.set_blocking(sys.stdout.fileno(), False)
    try:
        if isinstance(job, Lead):
            lead(job, environment, orders)
        else:
            follow(job, environment)
    except DriverError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
