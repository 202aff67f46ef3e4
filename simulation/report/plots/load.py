"""The plots of the load over time: what was in flight, how late the driver was, and what went wrong."""

from collections import Counter
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.numbers.latency import Floats, lag_ms
from simulation.report.page import LIGHT, SERIES
from simulation.report.plots.canvas import DASHED, FILL, Canvas, Course
from simulation.report.plots.latency import percentile_steps
from simulation.report.plots.run import last_second, time_edges
from simulation.report.words import count
from simulation.scenario.schema import DriverOptions

_MOST_CAUSES: Final = len(SERIES) - 2
_COLOURS: Final = ("pink", "orange", "blue", "olive", "green", "sky")
Moments = npt.NDArray[np.int64]

_LAGS: Final = {"p50": (50.0, "sky", 1.6), "p99": (99.0, "blue", 2.2), "max": (100.0, "muted", 0.8)}


class Cause(NamedTuple):
    """Requests that went wrong in one way."""

    status: int
    outcome: str
    end: str
    number: int
    first_s: float
    last_s: float
    op: int
    """The first of them."""

    def __str__(self) -> str:
        if self.status:
            return f"{self.status} {self.outcome.lower()}"
        return {"timeout": "no answer in time", "refused": "connection refused"}.get(self.end, self.end)


def end_ns(history: pd.DataFrame, timeout_ms: float) -> "pd.Series[int]":
    """Return when each request was over: answered, or given up after the whole timeout.

    When a connection was reset is not recorded: such a request counts as over when it was sent.
    """
    sent_ns = history["sent_ns"].fillna(history["intended_ns"])
    waited_ns = (history["end"] != "reset") * round(timeout_ms * 1e6)
    over: pd.Series[int] = history["done_ns"].fillna(sent_ns + waited_ns).astype("int64")
    return over


def select_wrong(history: pd.DataFrame, timeout_ms: float) -> pd.DataFrame:
    """Return the requests that were not decided: unavailable, invalid, without an answer, or never sent;
    `at_s` is when they were over, in seconds from the run's start."""
    unheard = history["sent_ns"].isna() | history["done_ns"].isna()
    wrong = history[history["outcome"].isin(["UNAVAILABLE", "UNKNOWN", "INVALID"]) | unheard]
    why = wrong["end"].astype("str").fillna("no answer")
    return wrong.assign(at_s=end_ns(wrong, timeout_ms) / 1e9, end=why)


def list_causes(history: pd.DataFrame, timeout_ms: float) -> list[Cause]:
    """Return the ways in which requests went wrong, the most frequent first."""
    wrong = select_wrong(history, timeout_ms)
    ways = Counter(zip(wrong["status"], wrong["outcome"], wrong["end"], strict=True))
    causes = []
    for (status, outcome, end), number in ways.most_common():
        mine = wrong[(wrong["status"] == status) & (wrong["outcome"] == outcome) & (wrong["end"] == end)]
        at_s = mine["at_s"]
        first = int(mine["op"].iloc[int(at_s.to_numpy().argmin())])
        causes.append(Cause(int(status), outcome, end, number, float(at_s.min()), float(at_s.max()), first))
    return causes


def draw_errors(history: pd.DataFrame, course: Course, timeout_ms: float) -> Canvas | None:
    """Draw the requests that went wrong per second, by status and cause, when they were over."""
    causes = list_causes(history, timeout_ms)
    if not causes:
        return None
    wrong, end_s = select_wrong(history, timeout_ms), last_second(history)
    edges = time_edges(max(end_s, float(wrong["at_s"].max())))
    words = [str(cause) for cause in causes]
    shown = list(dict.fromkeys(words))[:_MOST_CAUSES]
    names = {(cause.status, cause.outcome, cause.end): str(cause) for cause in causes}
    said = pd.Series(
        [names[key] for key in zip(wrong["status"], wrong["outcome"], wrong["end"], strict=True)], wrong.index
    )
    canvas = Canvas({"Went wrong, per second": 150})
    [axes] = canvas.panels
    step_s = edges[1] - edges[0]
    for word, colour in zip([*shown, "other"], [*_COLOURS, "muted"], strict=False):
        mine = wrong.loc[(said == word) if word != "other" else ~said.isin(shown), "at_s"]
        if len(mine):
            counts, _ = np.histogram(mine, edges)
            look, label = LIGHT[colour], f"{word}, {count(len(mine))}"
            axes.stairs(counts / step_s, edges, color=look, lw=1.6, label=label)
            axes.stairs(counts / step_s, edges, color=look, fill=True, alpha=FILL, lw=0)
    canvas.time_axis(float(edges[-1]), course)
    return canvas


def draw_flight(history: pd.DataFrame, course: Course, options: DriverOptions) -> Canvas | None:
    """Draw how many requests were in flight over time, each on a connection of its own, and how many waited
    for one. `history` has purchases and reads."""
    sent = history[history["sent_ns"].notna()]
    if sent.empty:
        return None
    due_ns = history["intended_ns"].to_numpy("int64")
    over_ns = np.asarray(end_ns(history, options.timeout_ms), np.int64)
    sent_ns = history["sent_ns"].fillna(pd.Series(over_ns, history.index)).to_numpy("int64")
    end_s = last_second(history)
    edges = time_edges(end_s)
    flying = count_most(sent_ns, over_ns, edges)
    waiting = count_most(due_ns, sent_ns, edges)
    canvas = Canvas({"Requests, the most at once": 130})
    [axes] = canvas.panels
    label = f"in flight, most {count(flying.max())}"
    axes.stairs(flying, edges, color=LIGHT["blue"], fill=True, alpha=FILL, lw=0)
    axes.stairs(flying, edges, color=LIGHT["blue"], lw=1.6, label=label)
    label = f"due and not sent, most {count(waiting.max())}"
    axes.stairs(waiting, edges, color=LIGHT["orange"], lw=1.4, label=label)
    limit = options.processes * options.connections
    if limit <= 2 * flying.max():
        axes.axhline(limit, color=LIGHT["ink"], lw=0.9, ls=DASHED, label=f"all {count(limit)} connections")
    canvas.time_axis(end_s, course)
    return canvas


def count_most(begin_ns: Moments, end_ns: Moments, edges: Floats) -> Floats:
    """Return for each bin the most that were under way at the same time: from a begin until its end."""
    begin_ns, end_ns = np.sort(begin_ns), np.sort(end_ns)
    edges_ns = edges * 1e9
    # The number only rises where one begins: there, and at the start of the bin, the most is found.
    at_begin = np.arange(1, len(begin_ns) + 1) - np.searchsorted(end_ns, begin_ns, "right")
    most = np.searchsorted(begin_ns, edges_ns[:-1], "right") - np.searchsorted(end_ns, edges_ns[:-1], "right")
    bins = np.searchsorted(edges_ns, begin_ns, "right") - 1
    inside = bins < len(most)
    np.maximum.at(most, bins[inside], at_begin[inside])
    return most.astype("float64")


def draw_lag(history: pd.DataFrame, course: Course) -> Canvas | None:
    """Draw sent − intended over the intended start, of purchases and reads that were sent."""
    sent = history[history["sent_ns"].notna()]
    if sent.empty:
        return None
    end_s = last_second(history)
    edges = time_edges(end_s, 80)
    at_s, late = sent["intended_ns"].to_numpy("float64") / 1e9, np.maximum(lag_ms(sent), 1e-3)
    canvas = Canvas({"Sent − intended": 120})
    [axes] = canvas.panels
    for word, (percentile, colour, width) in _LAGS.items():
        steps = percentile_steps(at_s, late, edges, percentile)
        axes.stairs(steps, edges, baseline=None, color=LIGHT[colour], lw=width, label=word)
    canvas.log_axis("y", 1.5, 4 if course.faults or course.moments else 2.4)
    canvas.time_axis(end_s, course)
    return canvas
