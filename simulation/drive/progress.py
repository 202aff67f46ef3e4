"""How far a load is: each process counts what has ended (Tally), the driver adds it up (Gauge), and finds a
load that is hopeless (find_abort)."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
from hdrh.histogram import HdrHistogram

from simulation.drive.open_loop import OpenLoop
from simulation.drive.plan import Integers
from simulation.drive.schedule import ANSWERED, Schedule
from simulation.model.events import Abort
from simulation.model.history import BUY
from simulation.model.outcome import OUTCOMES, REFUSALS
from simulation.scenario.condition import Condition, quantile_of

GRACE_S: Final = 3.0
"""How long every load may go on, from its start: the first requests meet cold connections."""
SNAPSHOT_S: Final = 0.25
LONGEST_US: Final = 1_200_000_000
"""Longest response time that is told apart, twice the longest timeout."""


def make_histogram(response_us: Sequence[float] | Integers = ()) -> HdrHistogram:
    """Return a histogram of response times, to two digits."""
    histogram = HdrHistogram(1, LONGEST_US, 2)
    record_responses(histogram, np.array(response_us, np.int64))
    return histogram


def record_responses(histogram: HdrHistogram, response_us: Integers) -> None:
    """Count response times in a histogram."""
    values, counts = np.unique(np.minimum(response_us, LONGEST_US), return_counts=True)
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        histogram.record_value(value, count)


class Snapshot(msgspec.Struct, frozen=True):
    """How far a process is. Every count is of purchases, from the start, and retries count like any
    purchase."""

    intended: int
    sent: int
    outcomes: list[int]
    """Requests that ended, with a response or without: counts in the order of OUTCOMES. A status
    that has one outcome counts as that."""
    recent: bytes
    """The histogram of the last second's response times, in µs, as HdrHistogram encodes it. A request without
    an answer counts with its lag and the whole timeout."""
    retries: int = 0
    """Retries that clients have decided on so far."""
    reads: int = 0
    """Reads that ended, with a response or without."""


class Tally:
    """Counts what has ended in one process, in bulk, a few times a second."""

    def __init__(self, schedule: OpenLoop) -> None:
        self.schedule = schedule
        self.seen = 0
        """How many of the ended requests were counted, and of them the purchases."""
        self.bought = 0
        self.unsent = 0
        self.outcomes = np.zeros(len(OUTCOMES), np.int64)
        self.responses = deque([make_histogram()], maxlen=round(1 / SNAPSHOT_S))
        """Between the snapshots of the last second."""

    def count(self) -> None:
        """Count what has ended since the last time."""
        schedule = self.schedule
        ended = schedule.ended[self.seen :]
        self.seen += len(ended)
        ended = [op for op in ended if schedule.kind[op] == BUY]
        ops = np.array(ended, np.int64)
        self.bought += len(ops)
        # No view of an array may outlive the count: the schedule could not append a request to it.
        sent_ns = np.frombuffer(schedule.sent_ns, np.int64)[ops]
        done_ns = np.frombuffer(schedule.done_ns, np.int64)[ops]
        intended_ns = np.array([schedule.intended_ns[op] for op in ended], np.int64)
        self.unsent += int(np.count_nonzero(sent_ns < 0))
        self.outcomes += np.bincount(find_outcomes(schedule, ops), minlength=len(OUTCOMES))
        answered = np.frombuffer(schedule.ends, np.int8)[ops] == ANSWERED
        given_up_ns = np.where(sent_ns < 0, intended_ns, sent_ns) + schedule.timeout_ns
        record_responses(self.responses[-1], (np.where(answered, done_ns, given_up_ns) - intended_ns) // 1000)

    def read(self) -> Snapshot:
        """Return the counts as of now; is called every SNAPSHOT_S."""
        self.count()
        recent = make_histogram()
        for responses in self.responses:
            recent.add(responses)
        self.responses.append(make_histogram())
        schedule = self.schedule
        intended, started = schedule.count_buys(time.monotonic_ns() - schedule.t0_ns)
        return Snapshot(
            intended=intended,
            sent=started - self.unsent,
            outcomes=self.outcomes.tolist(),
            recent=recent.encode(),
            retries=schedule.kind.count(BUY, schedule.planned),
            reads=self.seen - self.bought,
        )


def find_outcomes(schedule: Schedule, ops: Integers) -> npt.NDArray[np.int8]:
    """Return indices into OUTCOMES of purchases that ended, as `Schedule.outcome_of` finds them."""
    status = np.frombuffer(schedule.status, np.int16)[ops]  # 0 without a response, which is UNKNOWN
    found = np.empty(len(ops), np.int8)
    for value in np.unique(status).tolist():
        places = np.flatnonzero(status == value)
        if value in schedule.contract.ambiguous:
            for place in places.tolist():
                found[place] = OUTCOMES.index(schedule.outcome_of(int(ops[place])))
        else:
            found[places] = OUTCOMES.index(schedule.judge_refusal(value, None))
    if schedule.unread:
        found[np.isin(ops, [*schedule.unread])] = OUTCOMES.index("UNKNOWN")
    found[np.frombuffer(schedule.sent_ns, np.int64)[ops] < 0] = OUTCOMES.index("UNAVAILABLE")
    return found


class Progress(NamedTuple):
    """How far a run is, all processes together. Requests are purchases; reads are counted apart."""

    t0_ns: int
    """The run's start on time.monotonic_ns()."""
    t_s: float
    """Seconds from then to the moment of the counts; below 0 before the start."""
    planned: int
    """Requests of the plan, and the retries that clients have decided on so far."""
    intended: int
    """Requests whose intended start has passed."""
    sent: int
    done: int
    """Requests that ended, with a response or without."""
    outcomes: dict[str, int]
    recent: HdrHistogram
    """Response times of the last second, in µs."""
    reads: int = 0
    """Reads that ended, with a response or without."""

    def response_ms(self, share: float) -> float | None:
        """Return the response time that `share` of the last second's requests stayed below, to two digits;
        None if none ended."""
        if not self.recent.get_total_count():
            return None
        return float(self.recent.get_value_at_percentile(100 * share)) / 1e3


def add_up(snapshots: Sequence[Snapshot]) -> Snapshot:
    """Return how far all processes are together."""
    recent = make_histogram()
    for each in snapshots:
        recent.decode_and_add(each.recent)
    return Snapshot(
        intended=sum(each.intended for each in snapshots),
        sent=sum(each.sent for each in snapshots),
        outcomes=[sum(counts) for counts in zip(*(each.outcomes for each in snapshots), strict=True)],
        recent=recent.encode(),
        retries=sum(each.retries for each in snapshots),
        reads=sum(each.reads for each in snapshots),
    )


class Gauge:
    """Adds up the snapshots of all processes."""

    def __init__(self, processes: int, planned: int, t0_ns: int) -> None:
        self.planned = planned
        self.t0_ns = t0_ns
        self.snapshots = [Snapshot(0, 0, [0] * len(OUTCOMES), make_histogram().encode())] * processes
        self.heard_ns: dict[int, int] = {}
        """When the latest snapshot of each process came."""

    def hear(self, number: int, line: bytes) -> None:
        """Take a snapshot of a process."""
        self.snapshots[number] = msgspec.json.decode(line, type=Snapshot)
        self.heard_ns[number] = time.monotonic_ns()

    def read(self) -> Progress:
        """Return the progress as the latest snapshots have it."""
        # A rate is taken over the time between snapshots, not between looks at them.
        heard_ns = [*self.heard_ns.values()] or [time.monotonic_ns()]
        total = add_up(self.snapshots)
        return Progress(
            t0_ns=self.t0_ns,
            t_s=(sum(heard_ns) / len(heard_ns) - self.t0_ns) / 1e9,
            planned=self.planned + total.retries,
            intended=total.intended,
            sent=total.sent,
            done=sum(total.outcomes),
            outcomes=dict(zip(OUTCOMES, total.outcomes, strict=True)),
            recent=HdrHistogram.decode(total.recent),
            reads=total.reads,
        )


def find_abort(conditions: Sequence[Condition], progress: Progress) -> Abort | None:
    """Return the first of the conditions that is true of the load so far."""
    if progress.t_s < GRACE_S:
        return None
    for condition in conditions:
        value = measure_progress(condition.metric, progress)
        if value is not None and condition.holds(value):
            return Abort(condition=str(condition), value=value, at_s=progress.t_s)
    return None


def measure_progress(metric: str, progress: Progress) -> float | None:
    """Return a metric of `parse_abort`: counts and shares of all requests that have ended, response times in
    ms of those that ended in the last second; None where there are none."""
    name, _, rest = metric.partition(".")
    if rest.startswith("response."):
        return progress.response_ms(quantile_of(rest.removeprefix("response.")))
    outcomes = {"all": OUTCOMES, "rejected": REFUSALS, "error": ("UNAVAILABLE",)}.get(name, (name.upper(),))
    count = sum(progress.outcomes[outcome] for outcome in outcomes)
    if rest == "count":
        return count
    total = sum(progress.outcomes.values())
    return count / total if total else None
