"""The master of a Locust load: deals the plan to Senders, and collects what they saw."""

import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import gevent
import msgspec
from locust.runners import STATE_MISSING

from simulation.drive.child import Parent
from simulation.drive.locust.clock import name_clock
from simulation.drive.locust.job import Lead
from simulation.drive.progress import SNAPSHOT_S, Snapshot, add_up
from simulation.errors import DriverError

POLL_S: Final = 0.05


class Leader:
    """Leads a load; simulation.drive.locust.sender lists the messages."""

    def __init__(self, runner: Any, job: Lead, parent: Parent) -> None:
        """`runner` is Locust's master, much of which is untyped."""
        self.runner = runner
        self.job = job
        self.parent = parent
        self.workers: list[str] = []
        """Ids of the workers, in the order of their parts."""
        self.heard: dict[str, dict[str, Any]] = defaultdict(dict)
        """The latest data of each message, by its name and the worker."""
        self.runner.register_message("ask_clock", self._hear_ask_clock)
        for name in ("here", "prepared", "snapshot", "result", "failed"):
            self.runner.register_message(name, self._keep)

    def lead(self) -> None:
        """Carry out the load: take its start from the parent, and perhaps a stop. Raises DriverError."""
        count, wait_s = len(self.job.parts), self.job.wait_s
        with gevent.Timeout(wait_s, DriverError(f"fewer than {count} workers came within {wait_s:g} s")):
            while len(self.heard["here"]) < count:
                self._pause(POLL_S)
        self.workers = [*self.heard["here"]][:count]
        for worker, part in zip(self.workers, self.job.parts, strict=True):
            plan = Path(part.plan).read_bytes()
            data = {"job": msgspec.json.encode(part), "plan": plan, "clock": name_clock()}
            self.runner.send_message("part", data, worker)
        while len(self.heard["prepared"]) < count:
            self._pause(POLL_S)
        self.parent.say(b"ready")
        t0_ns = int(self.parent.hear())
        self.runner.environment.events.test_stop.add_listener(self._notice_stop)
        self._tell_all("start", t0_ns)
        self.runner.start(1, spawn_rate=1)
        while len(self.heard["result"]) < count:
            self._pause(SNAPSHOT_S)
            if snapshots := self.heard["snapshot"]:
                decoded = [msgspec.json.decode(each, type=Snapshot) for each in snapshots.values()]
                self.parent.say(msgspec.json.encode(add_up(decoded)))
        for worker, part in zip(self.workers, self.job.parts, strict=True):
            Path(part.result).write_bytes(self.heard["result"][worker])

    def _tell_all(self, message: str, data: Any) -> None:
        for worker in self.workers:
            self.runner.send_message(message, data, worker)

    def _pause(self, seconds: float) -> None:
        """Let messages come in, of which the parent's only one is to stop. Raises DriverError if a worker
        can't go on."""
        gevent.sleep(seconds)
        if self.parent.hear(wait_s=0):
            self._tell_all("enough", None)
        for failure in self.heard["failed"].values():
            raise DriverError(failure["reason"])
        if len(self.heard["result"]) == len(self.workers):
            return
        for number, worker in enumerate(self.workers):
            node = self.runner.clients.get(worker)
            if (node is None or node.state == STATE_MISSING) and worker not in self.heard["result"]:
                raise DriverError(f"worker {number} ({worker}) is gone")

    def _notice_stop(self, environment: Any, **_: Any) -> None:
        self.heard["failed"]["page"] = {"reason": "the load was stopped on Locust's page"}

    def _keep(self, environment: Any, msg: Any, **_: Any) -> None:
        self.heard[msg.type][msg.node_id] = msg.data

    def _hear_ask_clock(self, environment: Any, msg: Any, **_: Any) -> None:
        self.runner.send_message("tell_clock", (msg.data, time.monotonic_ns()), msg.node_id)
