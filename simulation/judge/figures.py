"""What a comparison looks at: judged runs, alone or as a series, and their metrics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from simulation.judge.numbers.doubt import Mark, recall_mark
from simulation.judge.thresholds import Metrics
from simulation.scenario.condition import READS
from simulation.scenario.schema import Scenario

FIGURES: Final = {
    "accepted.response.p50": "Accepted, response p50",
    "accepted.response.p99": "Accepted, response p99",
    "accepted.response.p999": "Accepted, response p99.9",
    "accepted.service.p99": "Accepted, service p99",
    "sold_out.response.p50": "Sold out, response p50",
    "sold_out.response.p99": "Sold out, response p99",
    "sold_out.response.p999": "Sold out, response p99.9",
    "stock_reads.response.p99": "Reads of stock, response p99",
    "order_reads.response.p99": "Reads of orders, response p99",
    "fulfilment.lag_p50": "Fulfilment delay p50",
    "fulfilment.lag_p99": "Fulfilment delay p99",
    "sold_out_after_s": "Sold out after",
    "fulfilment.drained_s": "Drained after",
    "all.count": "Requests",
    "accepted.count": "Accepted",
    "unknown.count": "Unknown outcome",
    "error.count": "Unavailable",
    "oversold": "Units oversold",
}
"""The metrics that a comparison and a series show, and their titles."""


@dataclass(frozen=True)
class Run:
    """A judged run."""

    name: str
    folder: str
    summary: dict[str, Any]
    scenario: Scenario
    metrics: Metrics | None = None
    """None where the record was not kept: then there is only what the summary says."""

    @property
    def is_broken(self) -> bool:
        """Whether it broke a rule, which is no matter of chance."""
        return any(check["holds"] is False for check in self.summary["checks"])

    def measure(self, metric: str) -> float | None:
        """Return a metric of the whole run; None where there is nothing to measure, or no record."""
        return self.metrics.measure(metric) if self.metrics else read_metric(self.summary, metric)

    def find_mark(self, metric: str) -> Mark | None:
        """Return why a metric of the whole run is in doubt; None where it is not."""
        if self.metrics:
            return self.metrics.find_mark(metric)
        reason = self.summary.get("marks", {}).get(metric)
        return reason and recall_mark(reason, self.measure(metric), self.summary["own_lag_p99_ms"])


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of the runs of a series, and how far it spreads."""

    values: list[float | None]
    """In the order of the runs; None where a run has none."""
    median: float | None
    low: float | None
    high: float | None
    spread_percent: float | None
    """Standard deviation of the logarithms, in percent; None for one run, or where a value is 0."""
    detectable_percent: float | None
    """The smallest change that a comparison with as many runs as these finds in nine of ten cases, where this
    is its primary metric; None where it finds none."""


@dataclass(frozen=True)
class Side:
    """A run to compare, or a series of runs."""

    name: str
    folder: str
    page: str
    """The file in the folder that tells of it."""
    runs: Sequence[Run]

    @property
    def is_broken(self) -> bool:
        """Whether a run of it broke a rule."""
        return any(run.is_broken for run in self.runs)

    @property
    def verdict(self) -> str:
        """The worst of its runs' verdicts."""
        verdicts = [run.summary["verdict"] for run in self.runs]
        return next((word for word in ("fail", "unknown") if word in verdicts), "pass")

    @property
    def oversold(self) -> int:
        """The units that its runs sold too much."""
        return sum(run.summary["stock"]["oversold"] or 0 for run in self.runs)


def read_metric(summary: dict[str, Any], metric: str) -> float | None:
    """Return a metric as the summary of a run has it; None where it has none."""
    first, _, rest = metric.partition(".")
    requests = summary["load"]["requests"]
    if metric in ("oversold", "sold", "remaining"):
        found = summary["stock"][metric]
    elif metric == "sold_out_after_s":
        found = summary["time_to_sell_out_s"]
    elif metric == "load.late_p99":
        found = summary["load"]["late_p99_ms"]
    elif first in ("fulfilment", "knee"):
        part = summary.get(first) or {}
        found = part.get(rest, part.get(f"{rest}_ms"))
    elif rest in ("count", "share"):
        count = requests if first == "all" else summary["outcomes"].get(first)
        found = count if rest == "count" or count is None else count / requests
    else:
        kind, _, stat = rest.partition(".")
        times = summary["latency_ms"].get(first, {})
        if first in READS:
            times = summary.get("reads", {}).get(READS[first], {}).get("latency_ms", {})
        found = times.get(kind, {}).get(stat)
    return None if found is None else float(found)
