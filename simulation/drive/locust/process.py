"""A process of a Locust load: its master, or a worker.

The scenario's plan goes through Locust: its runners, messages, statistics and page, and greenlets carry the
requests. The loop is open, as it is without Locust: a request goes out when the plan says so, and its
response time counts from there. A Locust user that sends would wait for its response, and so close the loop;
the only user here does nothing.

It receives a Lead or a Follow. A master says where it listens (Listening), and from then on speaks like
a process of the open-loop driver. It is a process of its own because Locust replaces all blocking calls.
"""

import gevent
import locust.runners
import locust.stats
import msgspec
from locust import User, constant, task
from locust.env import Environment

from engine.local.ports import free_port
from simulation.drive.child import Parent, run_child
from simulation.drive.locust.job import LOOPBACK, Follow, Lead, Listening
from simulation.drive.locust.leader import Leader
from simulation.drive.locust.sender import Sender
from simulation.errors import DriverError


class Shopper(User):
    """Does nothing: the plan sends. Locust runs no test without a user."""

    wait_time = constant(3_600)

    @task
    def arrive(self) -> None:
        """Do nothing."""


def work(parent: Parent) -> None:
    """Do one job. Raises DriverError."""
    job = msgspec.json.decode(parent.hear(), type=Lead | Follow)
    environment = Environment(user_classes=[Shopper], locustfile="flashsim locust")
    if isinstance(job, Lead):
        lead(job, environment, parent)
    else:
        follow(job, environment, parent)


def lead(job: Lead, environment: Environment, parent: Parent) -> None:
    """Lead a load as its master. Raises DriverError."""
    environment.host = job.url
    # A worker that is silent for 10 s is lost; a busy one may be silent for a while.
    locust.runners.HEARTBEAT_LIVENESS = 10
    runner = environment.create_master_runner(job.bind, job.port)
    web_port = free_port() if job.web else None
    if web_port is not None:
        locust.stats.HISTORY_STATS_INTERVAL_SEC = 1
        environment.create_web_ui(LOOPBACK, web_port)
        gevent.spawn(locust.stats.stats_history, runner)
    parent.say(msgspec.json.encode(Listening(runner.server.port, web_port)))
    try:
        Leader(runner, job, parent).lead()
    finally:
        runner.quit()


def follow(job: Follow, environment: Environment, parent: Parent) -> None:
    """Work for a master until it needs no more. Raises DriverError."""
    gevent.spawn(parent.hear)  # says nothing more, but its end ends this process
    locust.runners.CONNECT_TIMEOUT = 1
    locust.runners.CONNECT_RETRY_COUNT = round(job.wait_s) - 1
    try:
        runner = environment.create_worker_runner(job.host, job.port)
    except ConnectionError:
        raise DriverError(f"no master answers at {job.host}:{job.port} for {job.wait_s:g} s") from None
    try:
        Sender(runner).work()
        runner.greenlet.join()
    except DriverError as error:
        runner.send_message("failed", {"reason": str(error)})
        raise
    finally:
        environment.events.quitting.fire(environment=environment)  # type: ignore[no-untyped-call]
        gevent.sleep(0.2)  # so that the master receives the last message


if __name__ == "__main__":
    run_child(work)
