"""Conditions on what a run measured, in a line of words: `accepted.response.p99 < 50 during peak`.

    condition = metric sign limit [window]
    sign      = < <= > >= == !=
    window    = "during" span | "after" span | "between" seconds ["and"] seconds
    metric    = OUTCOME.response.STAT | OUTCOME.service.STAT                          ms
              | READS.response.STAT | READS.service.STAT                              ms
              | OUTCOME.count | OUTCOME.share                                         requests; 0 to 1 of all
              | fulfilment.lag_STAT                                                   ms
              | one of WHOLE                                                          of the whole run only

OUTCOME is one of OUTCOMES, of purchases; READS is stock_reads or order_reads; STAT is a percentile (p50, p99,
p999 for 99.9 and so on), `max` or `mean`. A span is a phase or a fault of the scenario. A window counts the
requests that were meant to start within it.

While the load goes on, only OUTCOME.count, OUTCOME.share and all.response.STAT (not `mean`) are known.
"""

import operator
import re
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from simulation.errors import suggest

OUTCOMES: Final = ("all", "accepted", "sold_out", "rejected", "error", "unknown")
READS: Final = {"stock_reads": "stock", "order_reads": "order"}
"""Reads in a metric, and their kind in the history."""
WHOLE: Final = (
    "oversold",
    "sold",
    "remaining",
    "sold_out_after_s",
    "fulfilment.confirmed",
    "fulfilment.failed",
    "fulfilment.rejected",
    "fulfilment.drained_s",
    "load.late_p99",
    "front_door.rss_max_mib",
    "knee.rps",
    "knee.plateau_p99",
    "knee.achieved_max_rps",
)
SIGNS: Final[dict[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_STAT: Final = r"(p\d{1,6}|max|mean)"
_SLICED: Final = re.compile(
    rf"({'|'.join(OUTCOMES)})\.((response|service)\.{_STAT}|count|share)|fulfilment\.lag_{_STAT}"
    rf"|({'|'.join(READS)})\.(response|service)\.{_STAT}"
)
_LIVE: Final = re.compile(rf"({'|'.join(OUTCOMES)})\.(count|share)|all\.response\.(p\d{{1,6}}|max)")
_NUMBER: Final = r"\d+(?:\.\d+)?"
_COMPARISON: Final = re.compile(rf"(\S+)\s*({'|'.join(SIGNS)})\s*(\S+)(?:\s+(.*))?")
_BETWEEN: Final = re.compile(rf"between\s+({_NUMBER})\s*s?\s+(?:and\s+)?({_NUMBER})\s*s?")
_SPAN: Final = re.compile(r"(during|after)\s+(\S.*)")

Span = tuple[float, float]
"""Start and end, in seconds from the run's start."""


class Window(msgspec.Struct, frozen=True):
    """A part of the run: during the span of that name, after it, or between two moments."""

    kind: str
    name: str = ""
    seconds: Span = (0.0, 0.0)

    def find(self, spans: Mapping[str, Span], end_s: float) -> Span:
        """Return its start and end in a run with those spans. Raises ValueError for an unknown name."""
        if self.kind == "between":
            return self.seconds
        if self.name not in spans:
            raise ValueError(f"there is no {self.name!r}; there are: {', '.join(spans)}")
        start, end = spans[self.name]
        return (start, end) if self.kind == "during" else (end, end_s)


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A metric of a run, or the change of one, against a limit."""

    text: str
    """As it was written."""
    metric: str
    sign: str
    limit: float
    relative: bool = False
    """Whether the limit is a change in percent."""
    window: Window | None = None

    def holds(self, value: float) -> bool:
        """Return whether the condition is true of a value."""
        return SIGNS[self.sign](value, self.limit)

    def __str__(self) -> str:
        return self.text


def parse_condition(text: str) -> Condition:
    """Return a condition on a run. Raises ValueError, in words that follow the text at fault."""
    metric, sign, limit, window = _split(text)
    if not re.fullmatch(rf"-?{_NUMBER}", limit):
        raise ValueError(f"{limit!r} is not a number")
    found = _parse_window(window) if window else None
    if found and not _SLICED.fullmatch(metric):
        raise ValueError(f"{metric} is of the whole run: it takes no window")
    return Condition(text=text, metric=metric, sign=sign, limit=float(limit), window=found)


def parse_abort(text: str) -> Condition:
    """Return a condition on a load under way, such as `error.share > 0.5`.

    Raises ValueError, in words that follow the text at fault.
    """
    condition = parse_condition(text)
    if condition.window or not _LIVE.fullmatch(condition.metric):
        raise ValueError(
            "under the load there are only OUTCOME.count, OUTCOME.share and"
            " all.response.STAT with STAT such as p99 or max, and no window"
        )
    return condition


def parse_change(text: str) -> Condition:
    """Return a condition on a metric's change: `accepted.response.p99 > +10%`, or `oversold > 0` in its unit.

    Raises ValueError, in words that follow the text at fault.
    """
    metric, sign, limit, window = _split(text)
    if window:
        raise ValueError("a change is of the whole run: it takes no window")
    if not re.fullmatch(rf"[-+]?{_NUMBER}%?", limit):
        raise ValueError(f"{limit!r} is not a change, such as +10% or -5")
    return Condition(
        text=text, metric=metric, sign=sign, limit=float(limit.rstrip("%")), relative=limit.endswith("%")
    )


def scale_window(text: str, time: float) -> str:
    """Return a condition's text for a run `time` times as long: its seconds, if it has any, times that."""
    return _BETWEEN.sub(
        lambda found: f"between {float(found[1]) * time:g}s {float(found[2]) * time:g}s", text
    )


def quantile_of(stat: str) -> float:
    """Return the share of values below a percentile: 0.999 for p999, 1 for the maximum."""
    if stat == "max":
        return 1.0
    digits = stat.removeprefix("p")
    return float(f"{digits[:2]}.{digits[2:]}") / 100


def unit_of(metric: str) -> str:
    """Return the metric's unit: ms, s, /s, MiB or nothing."""
    units = {"_s": "s", "rps": "/s", "_mib": "MiB", _STAT: "ms"}
    return next((unit for ending, unit in units.items() if re.search(f"{ending}$", metric)), "")


def _split(text: str) -> tuple[str, str, str, str]:
    found = _COMPARISON.fullmatch(text.strip())
    if found is None:
        raise ValueError("must be a metric, a sign and a limit, as in accepted.response.p99 < 50")
    metric, sign, limit, window = found.groups(default="")
    return check_metric(metric), sign, limit, window


def _list_metrics() -> list[str]:
    """Return the metrics that a misspelt one is likely to mean."""
    stats = ("p50", "p90", "p99", "p999", "max", "mean")
    times = [
        f"{outcome}.{kind}.{stat}"
        for outcome in (*OUTCOMES, *READS)
        for kind in ("response", "service")
        for stat in stats
    ]
    counts = [f"{outcome}.{word}" for outcome in OUTCOMES for word in ("count", "share")]
    return [*times, *counts, *(f"fulfilment.lag_{stat}" for stat in stats), *WHOLE]


def check_metric(metric: str) -> str:
    """Return the name of a metric. Raises ValueError if there is none of that name."""
    if metric not in WHOLE and not _SLICED.fullmatch(metric):
        raise ValueError(
            f"there is no metric {metric!r}{suggest(metric, _list_metrics())}; there are:"
            " OUTCOME.response.STAT, OUTCOME.service.STAT,"
            f" OUTCOME.count, OUTCOME.share with OUTCOME one of {', '.join(OUTCOMES)} and STAT such as p99 or"
            f" max; the times of {' and '.join(READS)}; fulfilment.lag_STAT; {', '.join(WHOLE)}"
        )
    return metric


def _parse_window(text: str) -> Window:
    if found := _BETWEEN.fullmatch(text):
        first, last = float(found[1]), float(found[2])
        if first >= last:
            raise ValueError(f"{text!r} ends before it begins")
        return Window("between", seconds=(first, last))
    if found := _SPAN.fullmatch(text):
        return Window(found[1], found[2].strip())
    raise ValueError(f"{text!r} is not a window; there are: during NAME, after NAME, between 5s 10s")
