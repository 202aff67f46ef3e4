"""A worker of a Locust load: is dealt requests by the master, sends them, and tells it what became of them.

The two talk by Locust's messages:

    message     from     data
    here        worker                       requests can be dealt to it
    part        master   job, plan, clock    what to send, and by whose clock
    ask_clock   worker   asked_ns            only to another machine
    tell_clock  master   asked_ns, there_ns
    prepared    worker
    start       master   t0_ns
    snapshot    worker   snapshot            several times a second
    enough      master                       no further request is to be made
    result      worker   result              all that it saw
    failed      worker   reason              instead, at any time
"""

import io
import time
from typing import Any, Final

import msgspec
from gevent.queue import Queue

from simulation.drive.locust.clock import Exchange, compare_clocks, name_clock
from simulation.drive.locust.fast_http import FastHttpLoop
from simulation.drive.locust.green_loop import GreenLoop
from simulation.drive.parts import Job, prepare_loop, save_result
from simulation.drive.progress import SNAPSHOT_S, Tally
from simulation.model.history import BUY, ORDER, STOCK

FAILURES: Final = ("INVALID", "UNKNOWN_PRODUCT", "UNAVAILABLE", "UNKNOWN")
"""Outcomes that Locust's page counts as failures; to be sold out is none."""
NAMES: Final = {STOCK: "stock", ORDER: "orders"}
"""What Locust's page calls reads."""


class Sender:
    """Sends the part that the master deals it."""

    loop: GreenLoop

    def __init__(self, runner: Any) -> None:
        """`runner` is Locust's worker, much of which is untyped."""
        self.runner = runner
        self.reported = 0
        """How many of the ended requests Locust knows of."""
        self.tell_at = 0.0
        """When the master is told the next snapshot, on time.monotonic()."""
        self.heard: dict[str, Queue[Any]] = {name: Queue() for name in ("part", "start", "tell_clock")}
        """Of each message, when it came and its data."""
        for name in self.heard:
            runner.register_message(name, self._hear)
        runner.register_message("enough", self._stop)

    def work(self) -> None:
        """Send a part and tell the master what became of it. Raises DriverError."""
        tell = self.runner.send_message
        tell("here")
        _, part = self.heard["part"].get()
        job = msgspec.json.decode(part["job"], type=Job)
        kind = FastHttpLoop if job.client == "fasthttp" else GreenLoop
        self.loop = prepare_loop(kind, job, io.BytesIO(part["plan"]))
        if isinstance(self.loop, FastHttpLoop):
            self.loop.fire = self.runner.environment.events.request
        is_far = part["clock"] != name_clock()
        ahead_ns, unsure_ns = self._ask_clock() if is_far else (0, 0)
        tell("prepared")
        _, t0_ns = self.heard["start"].get()
        self.tally = Tally(self.loop)
        self.loop.carry(t0_ns + ahead_ns, self._report)
        if is_far:
            # Clocks drift, so they are compared once more.
            later_ns, later_unsure_ns = self._ask_clock()
            unsure_ns += abs(later_ns - ahead_ns) + later_unsure_ns
        tell("snapshot", msgspec.json.encode(self.tally.read()))
        result = io.BytesIO()
        save_result(self.loop, result, unsure_ns)
        tell("result", result.getvalue())

    def _hear(self, environment: Any, msg: Any, **_: Any) -> None:
        self.heard[msg.type].put((time.monotonic_ns(), msg.data))

    def _stop(self, environment: Any, msg: Any, **_: Any) -> None:
        self.loop.stop()

    def _report(self) -> None:
        """Tell Locust what has ended since the last time, and at times the master how far the load is."""
        if time.monotonic() >= self.tell_at:
            self.runner.send_message("snapshot", msgspec.json.encode(self.tally.read()))
            self.tell_at = time.monotonic() + SNAPSHOT_S
        loop, fire = self.loop, self.runner.environment.events.request.fire
        if isinstance(loop, FastHttpLoop):
            return  # its client has told Locust itself
        ended = loop.ended[self.reported :]
        self.reported += len(ended)
        for op in ended:
            done_ns, is_buy = loop.done_ns[op], loop.kind[op] == BUY
            outcome = loop.outcome_of(op) if is_buy else ""
            name = f"buy: {outcome.lower().replace('_', ' ')}" if is_buy else NAMES[loop.kind[op]]
            has_failed = outcome in FAILURES if is_buy else loop.status[op] != 200
            end_ns = done_ns if done_ns >= 0 else time.monotonic_ns() - loop.t0_ns
            fire(
                request_type="POST" if is_buy else "GET",
                name=f"/purchase/{name}",
                response_time=(end_ns - loop.intended_ns[op]) / 1e6,
                response_length=len(loop.bodies.get(op, b"")),
                exception=f"status {loop.status[op]}" if has_failed else None,
                context={},
            )

    def _ask_clock(self) -> tuple[int, int]:
        """Return how far this clock is ahead of the master's, and how wrong that may be, in ns."""
        exchanges = []
        for _ in range(20):
            self.runner.send_message("ask_clock", time.monotonic_ns())
            answered_ns, (asked_ns, there_ns) = self.heard["tell_clock"].get()
            exchanges.append(Exchange(asked_ns, answered_ns, there_ns))
        return compare_clocks(exchanges)
