"""Thresholds: what a scenario asks of a run besides correctness, and the metrics that it asks about."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property

import numpy as np
import pandas as pd

from simulation.judge.asked import Asked
from simulation.judge.numbers.doubt import Machine, Mark, find_mark, measure_machine
from simulation.judge.numbers.knee import Knee
from simulation.judge.numbers.latency import Floats, delay_ms, response_ms, service_ms, take_stat
from simulation.judge.numbers.load import Load, own_lag_ms
from simulation.judge.numbers.requests import select_outcome, select_span, select_waits
from simulation.judge.numbers.sales import (
    measure_fulfilment,
    measure_stock,
    settled_orders,
    time_to_sell_out,
)
from simulation.judge.rules.misfits import find_misfits, hangs_on
from simulation.judge.verdict import MISFIT, Check, gather, make_check
from simulation.model.events import Abort, Restocked
from simulation.model.state import FinalState
from simulation.scenario.condition import READS, Condition, Span, parse_condition, unit_of
from simulation.scenario.schema import DriverOptions, Scenario


@dataclass(frozen=True)
class Metrics:
    """The record of a run, and the metrics that are read from it (simulation.scenario.condition)."""

    history: pd.DataFrame
    state: FinalState
    load: Load
    started_at: datetime
    """The moment of the history's zero."""
    asked: Asked
    restocks: Sequence[Restocked] = ()
    knee: Knee | None = None
    timeline: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What the probes read (simulation.target.probes); empty without them."""
    reads: pd.DataFrame | None = None
    """The reads of stock and orders, which are no part of `history`."""
    driver: DriverOptions = field(default_factory=DriverOptions)

    def measure(self, metric: str, span: Span | None = None) -> float | None:
        """Return a metric over a span of the run, or all of it; None where there is nothing to measure."""
        outcome, _, rest = metric.partition(".")
        if metric in self._whole:
            return self._whole[metric]
        if rest.startswith("lag_"):
            return take_stat(self.sample_delays(span)[1], rest.removeprefix("lag_"))
        within = self._select(span)
        if rest in ("count", "share"):
            count = len(select_outcome(within, outcome))
            return count if rest == "count" else count / len(within) if len(within) else None
        kind, _, stat = rest.partition(".")
        return take_stat(self.sample_times(outcome, kind, span)[1], stat)

    def sample_times(self, outcome: str, kind: str, span: Span | None = None) -> tuple[Floats, Floats]:
        """Return when each request with an outcome was meant to start, in seconds from the run's start, and
        its `response` or `service` time in ms; only those meant to start within the span."""
        within, outcome = self._select(span, outcome), "all" if outcome in READS else outcome
        if kind == "response":
            chosen = select_waits(within, outcome)
            took = response_ms(chosen, self.driver.timeout_ms)
        else:
            chosen = select_outcome(within, outcome).dropna(subset=["sent_ns", "done_ns"])
            took = service_ms(chosen)
        return chosen["intended_ns"].to_numpy("int64") / 1e9, took

    def find_mark(self, metric: str, span: Span | None = None) -> Mark | None:
        """Return why a metric is in doubt; None where it is not, or is no percentile, maximum or mean of
        times."""
        outcome = metric.partition(".")[0]
        if unit_of(metric) != "ms" or outcome == "load":
            return None
        lag = None
        if outcome != "fulfilment":
            within = self._select(span, outcome)
            chosen = within if outcome in ("knee", *READS) else select_waits(within, outcome)
            lag = take_stat(self._own_lag.reindex(chosen.index).dropna().to_numpy(), "p99")
        return find_mark(self.measure(metric, span), lag, self.machine)

    def find_lack(self, metric: str) -> str:
        """Return why there is nothing to measure."""
        if ".lag_" in metric and self.state.unseen & {"accepted_us", "settled_us"}:
            return "the witness does not show when orders were accepted and settled"
        return "there was nothing to measure"

    @cached_property
    def misfits(self) -> dict[str, str]:
        """Where the description of the engine does not fit it, in words, by what it is about."""
        return find_misfits(gather(self.history, self.state, self.asked, self.reads))

    def _select(self, span: Span | None, outcome: str = "all") -> pd.DataFrame:
        rows = self.history
        if outcome in READS:
            rows = rows.iloc[:0] if self.reads is None else self.reads[self.reads["kind"] == READS[outcome]]
        return select_span(rows, *span) if span else rows

    @property
    def own_lag_p99_ms(self) -> float | None:
        """The p99 of the driver's own lag, over the whole run."""
        return take_stat(self._own_lag.to_numpy(), "p99")

    @cached_property
    def operations(self) -> pd.DataFrame:
        """The purchases and the reads."""
        return self.history if self.reads is None else pd.concat([self.history, self.reads])

    @cached_property
    def _own_lag(self) -> pd.Series:
        # Reads occupy connections as well.
        return own_lag_ms(self.operations, self.driver)

    @cached_property
    def machine(self) -> Machine:
        """What the machine did until the last request had ended."""
        ended = self.history["done_ns"].dropna()
        return measure_machine(self.timeline, ended.max() / 1e9 if len(ended) else np.inf)

    def sample_delays(self, span: Span | None = None) -> tuple[Floats, Floats]:
        """Return when each settled order was accepted, in seconds from the run's start, and its delay in ms;
        only those accepted within the span."""
        orders = settled_orders(self.state)
        if orders is None:
            return np.empty(0), np.empty(0)
        at_s = orders["accepted_us"].to_numpy("int64") / 1e6 - self.started_at.timestamp()
        start_s, end_s = span or (-np.inf, np.inf)
        within = (at_s >= start_s) & (at_s < end_s)
        return at_s[within], delay_ms(orders)[within]

    @cached_property
    def _whole(self) -> dict[str, float | None]:
        """The metrics that only the whole run has."""
        stock, done, knee = measure_stock(self.state, self.asked), measure_fulfilment(self.state), self.knee
        front_doors_mib = measure_front_door(self.timeline).dropna().to_numpy()
        return {
            **{name: stock[name] for name in ("oversold", "sold", "remaining")},
            **{f"fulfilment.{name}": done[name] for name in ("confirmed", "failed", "rejected", "drained_s")},
            "sold_out_after_s": time_to_sell_out(self.history, self.restocks),
            "load.late_p99": self.load.lag_p99_ms,
            "front_door.rss_max_mib": take_stat(front_doors_mib, "max"),
            "knee.rps": knee and knee.rps,
            "knee.plateau_p99": knee and knee.plateau_p99_ms,
            "knee.achieved_max_rps": knee and knee.achieved_max_rps,
        }


def measure_front_door(timeline: pd.DataFrame) -> pd.Series:
    """Return the memory of all front doors together at each sample, in MiB; NaN where it was not read."""
    columns = [column for column in timeline if str(column).startswith("rss_mib front-door")]
    return timeline[columns].sum(axis=1, min_count=1).astype("float64")


def judge_thresholds(scenario: Scenario, run: Metrics) -> list[Check]:
    """Return a check for each threshold of the scenario; one is not judged where nothing was measured,
    or where it is missed under a load that was not as planned.

    Nor is one where a percentile is in doubt and the threshold would be judged differently without the time
    that the driver or the machine may have added: then the run says nothing of the engine.
    """
    return [_judge(parse_condition(text), scenario, run) for text in scenario.thresholds]


def _judge(condition: Condition, scenario: Scenario, run: Metrics) -> Check:
    span = condition.window.find(scenario.spans(), np.inf) if condition.window else None
    value = run.measure(condition.metric, span)
    if value is None:
        return make_check(str(condition), None, run.find_lack(condition.metric))
    holds = condition.holds(value)
    mark = run.find_mark(condition.metric, span)
    unsure = mark is not None and holds != condition.holds(max(value - mark.excess_ms, 0.0))
    digits = f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    measured = f"{digits} {unit_of(condition.metric)}".strip()
    if mark:
        measured += f", {mark.reason}"
    if unsure:
        return make_check(str(condition), None, measured)
    if holds:
        return make_check(str(condition), 0, measured)
    if not run.load.valid:
        return make_check(str(condition), None, f"{measured}, but the load was not as planned")
    if hangs_on(condition.metric, run.misfits, run.state.partial):
        return make_check(str(condition), None, f"{measured}, but {MISFIT}")
    return make_check(str(condition), 1, measured)


def judge_abort(abort: Abort | None, load: Load) -> list[Check]:
    """Return the abort of a load as a broken check, or as one not judged if the driver may be at fault."""
    if abort is None:
        return []
    unit = unit_of(parse_condition(abort.condition).metric)
    detail = f"{abort.value:,.3g} {unit}".strip() + f", the load was stopped after {abort.at_s:.1f} s"
    return [make_check(f"stop when {abort.condition}", 1 if load.valid else None, detail)]
