"""The part of a Locust load that sends: it is dealt requests by a Leader, and tells it what it saw.

The two talk by Locust's messages, also where both are in one process:

    sender   here                           requests can be dealt to it
    leader   part        job, plan, clock   what to send, and by whose clock
    sender   ask_clock   asked_ns           only to another machine
    leader   tell_clock  asked_ns, there_ns
    sender   prepared
    leader   start       t0_ns
    sender   snapshot    snapshot           several times a second
    leader   enough                         no further request is to be made
    sender   result      result             all that it saw
    sender   failed      reason             instead, at any time
"""

import gc
import io
import platform
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import gevent
import msgspec
import numpy as np
from gevent.queue import Queue

from simulation.drive.job import SNAPSHOT_S, Job
from simulation.drive.locust.green_loop import GreenLoop
from simulation.drive.locust.job import Exchange, compare_clocks
from simulation.drive.process import allow_files, read_load, save_result
from simulation.drive.tally import Tally
from simulation.model.outcome import classify

EXCHANGES: Final = 20
FAILURES: Final = ("INVALID", "UNKNOWN_PRODUCT", "UNAVAILABLE", "UNKNOWN")
"""Outcomes that Locust's page counts as failures; to be sold out is none."""
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")


class Sender:
    """Sends what it is dealt."""

    load: GreenLoop
    tally: Tally

    def __init__(self, runner: Any) -> None:
        """`runner` is one of Locust's, which leaves much of itself untyped."""
        self.runner = runner
        self.reported = 0
        """How many of those that ended Locust knows of."""
        self.is_far = False
        """Whether the leader has a clock of its own."""
        self.ahead_ns = self.unsure_ns = 0
        """How far this clock is ahead of the leader's, and how wrong that may be."""
        self.exchanges: Queue[Exchange] = Queue()
        self.runner.register_message("part", self._in_background(self._prepare))
        self.runner.register_message("start", self._in_background(self._send))
        self.runner.register_message("enough", self._stop)
        self.runner.register_message("tell_clock", self._hear_clock)
        self.runner.send_message("here")

    def _in_background(self, work: Callable[[Any], None]) -> Callable[..., None]:
        """A listener that lets Locust go on with its messages meanwhile."""

        def guarded(data: Any) -> None:
            try:
                work(data)
            except Exception as error:
                traceback.print_exc()
                self.runner.send_message("failed", {"reason": str(error) or type(error).__name__})

        def listen(environment: Any, msg: Any, **_: Any) -> None:
            gevent.spawn(guarded, msg.data)

        return listen

    def _prepare(self, data: Any) -> None:
        job = msgspec.json.decode(data["job"], type=Job)
        allow_files(job.connections)
        self.load = read_load(GreenLoop, job, io.BytesIO(data["plan"]))
        self.tally = Tally(self.load)
        self.is_far = data["clock"] != name_clock()
        if self.is_far:
            self.ahead_ns, self.unsure_ns = self._ask_clock()
        # A collection of garbage would stop the pacer for longer the larger the plan is.
        gc.collect()
        gc.freeze()
        gc.disable()
        self.runner.send_message("prepared")

    def _send(self, data: Any) -> None:
        telling = gevent.spawn(self._keep_telling)
        self.load.carry(data["t0_ns"] + self.ahead_ns, self._report)
        telling.kill()
        if self.is_far:
            self._widen()
        self._tell()
        result = io.BytesIO()
        save_result(self.load, result)
        self.runner.send_message("result", {"result": result.getvalue()})

    def _stop(self, environment: Any, msg: Any, **_: Any) -> None:
        self.load.stop()

    def _report(self) -> None:
        """Tells Locust what has ended since the last time."""
        load, fire = self.load, self.runner.environment.events.request.fire
        ended = load.ended[self.reported :]
        self.reported += len(ended)
        for op in ended:
            done_ns, status, body = load.done_ns[op], load.status[op], load.bodies.get(op, b"")
            if load.sent_ns[op] < 0:
                outcome = "UNAVAILABLE"
            else:
                outcome = "ACCEPTED" if status == 200 else classify(status, body)[0]
            end_ns = done_ns if done_ns >= 0 else time.monotonic_ns() - load.t0_ns
            fire(
                request_type="POST",
                name=f"/purchase/buy: {outcome.lower().replace('_', ' ')}",
                response_time=(end_ns - load.intended_ns[op]) / 1e6,
                response_length=len(body),
                exception=f"status {status}" if outcome in FAILURES else None,
                context={},
            )

    def _keep_telling(self) -> None:
        while True:
            self._tell()
            gevent.sleep(SNAPSHOT_S)

    def _tell(self) -> None:
        self.runner.send_message("snapshot", {"snapshot": msgspec.json.encode(self.tally.update())})

    def _ask_clock(self) -> tuple[int, int]:
        exchanges = []
        for _ in range(EXCHANGES):
            self.runner.send_message("ask_clock", {"asked_ns": time.monotonic_ns()})
            exchanges.append(self.exchanges.get())
        return compare_clocks(exchanges)

    def _hear_clock(self, environment: Any, msg: Any, **_: Any) -> None:
        self.exchanges.put(Exchange(msg.data["asked_ns"], time.monotonic_ns(), msg.data["there_ns"]))

    def _widen(self) -> None:
        """Lets every request begin earlier and end later by as much as the clocks may be wrong.

        The checker takes it that what ended before another began, did. Since clocks drift, they are compared
        once more.
        """
        ahead_ns, unsure_ns = self._ask_clock()
        wrong_ns = abs(ahead_ns - self.ahead_ns) + unsure_ns + self.unsure_ns
        sent_ns = np.frombuffer(self.load.sent_ns, np.int64)
        done_ns = np.frombuffer(self.load.done_ns, np.int64)
        sent_ns[sent_ns >= 0] = np.maximum(sent_ns[sent_ns >= 0] - wrong_ns, 0)
        done_ns[done_ns >= 0] += wrong_ns


def name_clock() -> str:
    """Whose monotonic clock this is: one that counts from a machine's start, for all its processes."""
    return _BOOT.read_text().strip() if _BOOT.exists() else platform.node()
