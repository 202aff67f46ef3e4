"""The figures of a run while it goes on, made of the driver's progress and the probes' samples."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from simulation.drive.progress import Progress
from simulation.model.events import Interval
from simulation.run import Watch
from simulation.scenario.schema import Scenario
from simulation.target.probes import Sample


class Figures(NamedTuple):
    """What is shown; None if it isn't known."""

    t_s: float
    phase: str
    planned: int
    done: int
    """Requests that ended, with an answer or without."""
    intended_rps: float
    """Requests a second whose intended start has passed."""
    done_rps: float
    accepted_rps: float
    sold_out_rps: float
    errors_rps: float
    p50_ms: float | None
    p99_ms: float | None
    accepted: int
    sold_out: int
    errors: int
    """Requests with any other outcome."""
    others: dict[str, int]
    """How many of them had which outcome."""
    stock: int | None
    pending: int | None
    outbox: int | None
    queue: int | None
    confirmed: int | None
    failed: int | None
    reads: int
    """Reads that ended, of stock and of orders."""
    ended: Sequence[Interval]
    """The faults that were done and have ended."""
    in_charge: dict[str, str]
    """The node in charge of each shard, of the queue and of the ledger, where there are several."""


Show = Callable[[Figures], None]


def follow(scenario: Scenario, *shows: Show) -> Watch:
    """Return the watch of a run of the scenario that hands its figures to each of `shows`."""
    tracker = Tracker(scenario)

    def watch(progress: Progress | None, sample: Sample | None, ended: Sequence[Interval]) -> None:
        figures = tracker.read(progress, sample, ended, time.monotonic_ns())
        for show in shows:
            show(figures)

    return watch


class Tracker:
    """Makes figures, and remembers the last second's counts for their rates."""

    def __init__(self, scenario: Scenario) -> None:
        self._phases = scenario.phases()
        self._recent: deque[tuple[float, ...]] = deque()

    def read(
        self, progress: Progress | None, sample: Sample | None, ended: Sequence[Interval], now_ns: int
    ) -> Figures:
        """Return the figures at `now_ns` on time.monotonic_ns()."""
        sample = sample or Sample(at_ns=now_ns)
        t_s = (now_ns - progress.t0_ns) / 1e9 if progress else 0.0
        planned, intended, done = (
            (progress.planned, progress.intended, progress.done) if progress else (0, 0, 0)
        )
        others = {name: count for name, count in progress.outcomes.items() if count} if progress else {}
        accepted, sold_out = others.pop("ACCEPTED", 0), others.pop("SOLD_OUT", 0)
        errors = sum(others.values())
        rates = self._rates(progress.t_s if progress else t_s, intended, done, accepted, sold_out, errors)
        driving = done < planned
        intended_rps, done_rps, accepted_rps, sold_out_rps, errors_rps = rates if driving else [0.0] * 5
        return Figures(
            t_s=t_s,
            phase=self._phase(t_s, driving),
            planned=planned,
            done=done,
            intended_rps=intended_rps,
            done_rps=done_rps,
            accepted_rps=accepted_rps,
            sold_out_rps=sold_out_rps,
            errors_rps=errors_rps,
            p50_ms=progress.response_ms(0.50) if progress and driving else None,
            p99_ms=progress.response_ms(0.99) if progress and driving else None,
            accepted=accepted,
            sold_out=sold_out,
            errors=errors,
            others=others,
            stock=sample.stock_remaining,
            pending=sample.pending_orders,
            outbox=sample.outbox_entries,
            queue=sample.queue_messages,
            confirmed=sample.ledger_confirmed,
            failed=sample.ledger_failed,
            reads=progress.reads if progress else 0,
            ended=ended,
            in_charge=sample.in_charge,
        )

    def _rates(self, t_s: float, *counts: int) -> list[float]:
        """Return how fast each count grew in the last second."""
        recent = self._recent
        if not recent or t_s > recent[-1][0]:
            recent.append((t_s, *counts))
        while len(recent) > 2 and recent[-1][0] - recent[1][0] >= 1:
            recent.popleft()
        span_s, *grown = (new - old for new, old in zip(recent[-1], recent[0], strict=True))
        return [count / span_s if span_s > 0 else 0.0 for count in grown]

    def _phase(self, t_s: float, driving: bool) -> str:
        if t_s <= 0:
            return "getting ready"
        now = (name for name, start_s, end_s in self._phases if start_s <= t_s < end_s)
        return next(now, "last answers") if driving else "draining"
