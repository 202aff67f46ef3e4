"""The part of a Locust load that leads: it deals the plan to Senders, and collects what they saw."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
import msgspec
from gevent.queue import Queue
from locust.runners import STATE_MISSING

from simulation.drive.job import SNAPSHOT_S, Snapshot
from simulation.drive.locust.job import Lead, add_up
from simulation.drive.locust.sender import name_clock
from simulation.drive.process import say
from simulation.errors import DriverError

POLL_S: Final = 0.05


class Leader:
    """Leads a load; simulation.swarm.sender has the messages."""

    def __init__(self, runner: Any, job: Lead) -> None:
        """`runner` is one of Locust's, which leaves much of itself untyped."""
        self.runner = runner
        self.job = job
        self.numbers: dict[str, int] = {}
        """The part of each sender, by its id."""
        self.prepared: set[str] = set()
        self.snapshots: dict[str, Snapshot] = {}
        self.results: dict[str, bytes] = {}
        self.failure = ""
        for name in ("here", "prepared", "snapshot", "result", "failed", "ask_clock"):
            self.runner.register_message(name, getattr(self, f"_hear_{name}"))

    def lead(self, orders: "Queue[bytes]", start_page: Callable[[int], None]) -> None:
        """Carries out the load: is told its start by the first of the `orders`, and to stop by another.

        `start_page` lets Locust begin, for the start that it is given. Raises DriverError.
        """
        count, wait_s = len(self.job.parts), self.job.wait_s
        last = time.monotonic() + wait_s
        while len(self.numbers) < count:
            self._pause()
            if time.monotonic() > last:
                raise DriverError(f"{len(self.numbers)} of {count} workers came within {wait_s:g} s")
        for client, number in self.numbers.items():
            part = self.job.parts[number]
            plan = Path(part.plan).read_bytes()
            data = {"job": msgspec.json.encode(part), "plan": plan, "clock": name_clock()}
            self.runner.send_message("part", data, client)
        while len(self.prepared) < count:
            self._pause()
        say(b"ready")
        t0_ns = int(orders.get())
        self.runner.environment.events.test_stopping.add_listener(self._notice_stop)
        self._tell_all("start", {"t0_ns": t0_ns})
        start_page(t0_ns)
        while len(self.results) < count:
            self._pause(SNAPSHOT_S)
            if not orders.empty():
                orders.get()
                self._tell_all("enough", {})
            if self.snapshots:
                say(msgspec.json.encode(add_up([*self.snapshots.values()])))
        for client, result in self.results.items():
            Path(self.job.parts[self.numbers[client]].result).write_bytes(result)

    def _tell_all(self, message: str, data: dict[str, Any]) -> None:
        for client in self.numbers:
            self.runner.send_message(message, data, client)

    def _pause(self, seconds: float = POLL_S) -> None:
        """Lets the others work. Raises DriverError if one of them can't."""
        gevent.sleep(seconds)
        clients = getattr(self.runner, "clients", {})
        for client, number in self.numbers.items() if self.job.is_master else ():
            lost = client not in clients or clients[client].state == STATE_MISSING
            if lost and client not in self.results:
                raise DriverError(self.failure or f"worker {number} ({client}) is gone")
        if self.failure:
            raise DriverError(self.failure)

    def _notice_stop(self, environment: Any, **_: Any) -> None:
        if len(self.results) < len(self.job.parts):
            self.failure = self.failure or "the load was stopped on Locust's page"

    def _hear_here(self, environment: Any, msg: Any, **_: Any) -> None:
        if len(self.numbers) < len(self.job.parts):
            self.numbers[msg.node_id] = len(self.numbers)
        else:
            self.runner.send_message("quit", None, msg.node_id)

    def _hear_prepared(self, environment: Any, msg: Any, **_: Any) -> None:
        self.prepared.add(msg.node_id)

    def _hear_snapshot(self, environment: Any, msg: Any, **_: Any) -> None:
        self.snapshots[msg.node_id] = msgspec.json.decode(msg.data["snapshot"], type=Snapshot)

    def _hear_result(self, environment: Any, msg: Any, **_: Any) -> None:
        self.results[msg.node_id] = msg.data["result"]

    def _hear_failed(self, environment: Any, msg: Any, **_: Any) -> None:
        self.failure = self.failure or msg.data["reason"]

    def _hear_ask_clock(self, environment: Any, msg: Any, **_: Any) -> None:
        answer = {"asked_ns": msg.data["asked_ns"], "there_ns": time.monotonic_ns()}
        self.runner.send_message("tell_clock", answer, msg.node_id)
