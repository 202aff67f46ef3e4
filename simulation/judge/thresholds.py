"""Thresholds: what a scenario asks of a run besides correctness. Pure, from the record alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.knee import Knee
from simulation.judge.load import LoadReport
from simulation.judge.summary import (
    Floats,
    fulfilment_lag_ms,
    measure_fulfilment,
    measure_stock,
    response_ms,
    service_ms,
    settled_orders,
    time_to_sell_out,
)
from simulation.judge.verdict import Check
from simulation.model.events import Abort, Restocked
from simulation.model.outcome import REFUSALS
from simulation.model.state import FinalState
from simulation.scenario.condition import Condition, Span, parse_condition, quantile_of, unit_of
from simulation.scenario.schema import Scenario


@dataclass(frozen=True)
class Measured:
    """A run, as metrics are read from it."""

    history: pd.DataFrame
    state: FinalState
    load: LoadReport
    started_at: datetime
    """The moment of the history's zero."""
    restocks: Sequence[Restocked] = ()
    knee: Knee | None = None
    timeline: pd.DataFrame | None = None
    """What the probes read (simulation.probes)."""

    def measure(self, metric: str, span: Span | None = None) -> float | None:
        """A metric of judge.condition, over a span of the run; None where nothing is to measure."""
        kind, _, rest = metric.partition(".")
        if rest.startswith("lag_"):
            return take_stat(self.lag_ms(span), rest.removeprefix("lag_"))
        if metric in self._whole:
            return self._whole[metric]
        within = self._within(span)
        chosen = within if kind == "all" else within[self.is_outcome(within, kind)]
        if rest == "count":
            return len(chosen)
        if rest == "share":
            return len(chosen) / len(within) if len(within) else None
        took, _, stat = rest.partition(".")
        return take_stat(response_ms(chosen) if took == "response" else service_ms(chosen), stat)

    @staticmethod
    def is_outcome(history: pd.DataFrame, name: str) -> npt.NDArray[np.bool_]:
        """For each request, whether it ended so, in the words of `count_outcomes`."""
        words = {"rejected": list(REFUSALS), "error": ["UNAVAILABLE"]}.get(name, [name.upper()])
        found: npt.NDArray[np.bool_] = history["outcome"].isin(words).to_numpy()
        return found

    def lag_ms(self, span: Span | None = None) -> Floats:
        """From accepted to settled, of the orders that were accepted within the span."""
        orders = settled_orders(self.state)
        if orders is None:
            return np.empty(0)
        if span is not None:
            accepted_s = orders["accepted_us"].to_numpy("int64") / 1e6 - self.started_at.timestamp()
            orders = orders[(accepted_s >= span[0]) & (accepted_s < span[1])]
        return fulfilment_lag_ms(orders)

    def _within(self, span: Span | None) -> pd.DataFrame:
        if span is None:
            return self.history
        meant_s = self.history["intended_ns"] / 1e9
        return self.history[(meant_s >= span[0]) & (meant_s < span[1])]

    @cached_property
    def _whole(self) -> dict[str, float | None]:
        orders = settled_orders(self.state)
        stock, done = measure_stock(orders, self.state), measure_fulfilment(orders, self.state)
        return {
            **{name: stock[name] for name in ("oversold", "sold", "remaining")},
            **{f"fulfilment.{name}": done[name] for name in ("confirmed", "failed", "rejected", "drained_s")},
            "sold_out_after_s": time_to_sell_out(self.history, self.restocks),
            "load.late_p99": self.load.late_p99_ms,
            "front_door.rss_max_mib": self._front_door_mib(),
            **self._knee(),
        }

    def _front_door_mib(self) -> float | None:
        if self.timeline is None or pd.isna(most := measure_front_door(self.timeline).max()):
            return None
        return float(most)

    def _knee(self) -> dict[str, float | None]:
        if self.knee is None:
            return dict.fromkeys(("knee.rps", "knee.plateau_p99", "knee.achieved_max_rps"))
        return {
            "knee.rps": self.knee.rps,
            "knee.plateau_p99": self.knee.plateau_p99_ms,
            "knee.achieved_max_rps": self.knee.achieved_max_rps,
        }


def measure_front_door(timeline: pd.DataFrame) -> pd.Series:
    """Resident memory of all front doors together at each sample, in MiB; NaN where it was not read."""
    columns = [column for column in timeline if str(column).startswith("rss_mib front-door")]
    return timeline[columns].sum(axis=1, min_count=1).astype("float64")


def take_stat(values: Floats, stat: str) -> float | None:
    """A percentile, the maximum or the mean; None of nothing."""
    if not len(values):
        return None
    return float(values.mean() if stat == "mean" else np.quantile(values, quantile_of(stat)))


def judge_thresholds(scenario: Scenario, run: Measured) -> list[Check]:
    """Each threshold of the scenario as a check: it holds, or is broken, or there was nothing to measure."""
    return [_judge(parse_condition(text), scenario, run) for text in scenario.thresholds]


def judge_abort(abort: Abort | None, load: LoadReport) -> list[Check]:
    """The abort of a load as a check: it is broken, unless the driver itself may have been at fault."""
    if abort is None:
        return []
    unit = unit_of(parse_condition(abort.condition).metric)
    detail = f"{abort.value:,.3g} {unit}".strip() + f", the load was stopped after {abort.at_s:.1f} s"
    return [Check(f"stop when {abort.condition}", False if load.valid else None, int(load.valid), detail, "")]


def _judge(condition: Condition, scenario: Scenario, run: Measured) -> Check:
    span = condition.window.find(scenario.spans(), np.inf) if condition.window else None
    value = run.measure(condition.metric, span)
    if value is None:
        return Check(str(condition), None, 0, "there was nothing to measure", "")
    holds = condition.holds(value)
    digits = f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    measured = f"{digits} {unit_of(condition.metric)}".strip()
    return Check(str(condition), holds, int(not holds), measured, "")
