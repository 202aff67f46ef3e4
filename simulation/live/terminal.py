"""The live view of a run: a panel that redraws itself on a terminal, one plain line a second elsewhere."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, NamedTuple

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from simulation.drive.progress import Progress
from simulation.model.events import Interval
from simulation.scenario.schema import Scenario
from simulation.target.probes import Sample

REFRESH_S: Final = 0.5
LINE_S: Final = 1.0
WINDOW_S: Final = 1.0
"""The span over which rates are taken."""
_BARS: Final = " ▁▂▃▄▅▆▇█"
_SPARKS: Final = 60


class Figures(NamedTuple):
    """What the view shows; None where it isn't known."""

    t_s: float
    phase: str
    share: float
    """Of the arrival curve that has passed, 0 to 1."""
    planned: int
    intended: int
    """Requests whose intended start has passed."""
    done: int
    intended_rps: float
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
    healed: Sequence[Interval] = ()
    """The faults that were done and are over."""


class Gauges:
    """Makes figures out of the driver's progress and the probes' samples."""

    def __init__(self, scenario: Scenario) -> None:
        self._phases = scenario.phases()
        self._duration_s = scenario.duration_s()
        self._recent: deque[tuple[float, ...]] = deque()

    def read(self, progress: Progress | None, sample: Sample | None, now_ns: int) -> Figures:
        """The figures at `now_ns` on time.monotonic_ns()."""
        t_s = (now_ns - progress.t0_ns) / 1e9 if progress else 0.0
        intended, done = (progress.intended, progress.done) if progress else (0, 0)
        outcomes = progress.outcomes if progress else {}
        accepted, sold_out = outcomes.get("ACCEPTED", 0), outcomes.get("SOLD_OUT", 0)
        errors = sum(outcomes.values()) - accepted - sold_out
        rates = self._rates(progress.t_s if progress else t_s, intended, done, accepted, sold_out, errors)
        driving = progress is not None and progress.done < progress.planned
        intended_rps, done_rps, accepted_rps, sold_out_rps, errors_rps = rates if driving else [0.0] * 5
        return Figures(
            t_s=t_s,
            phase=self._phase(t_s, driving),
            share=min(max(t_s / self._duration_s, 0.0), 1.0),
            planned=progress.planned if progress else 0,
            intended=intended,
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
            others={name: n for name, n in outcomes.items() if n and name not in ("ACCEPTED", "SOLD_OUT")},
            stock=sample.stock_remaining if sample else None,
            pending=sample.pending_orders if sample else None,
            outbox=sample.outbox_entries if sample else None,
            queue=sample.queue_messages if sample else None,
            confirmed=sample.ledger_confirmed if sample else None,
            failed=sample.ledger_failed if sample else None,
        )

    def _rates(self, t_s: float, *counts: int) -> list[float]:
        """How fast each count grew in the last second."""
        recent = self._recent
        if not recent or t_s > recent[-1][0]:
            recent.append((t_s, *counts))
        while len(recent) > 2 and recent[-1][0] - recent[1][0] >= WINDOW_S:
            recent.popleft()
        span_s, *grown = (new - old for new, old in zip(recent[-1], recent[0], strict=True))
        return [count / span_s if span_s > 0 else 0.0 for count in grown]

    def _phase(self, t_s: float, driving: bool) -> str:
        if not driving:
            return "getting ready" if t_s <= 0 else "draining"
        for name, start, end in self._phases:
            if start <= t_s < end:
                return name
        return "getting ready" if t_s < 0 else "last answers"


def sparkline(values: list[float]) -> str:
    """The values as bars, the largest one full."""
    top = max(values, default=0.0)
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] if top else _BARS[0] for value in values)


def format_line(figures: Figures) -> str:
    """The figures as one plain line."""
    return (
        f"{figures.t_s:6.1f} s  {figures.phase:13}  intended {figures.intended_rps:7,.0f}/s"
        f"  done {figures.done_rps:7,.0f}/s  p50 {_ms(figures.p50_ms):>8}  p99 {_ms(figures.p99_ms):>8}"
        f"  accepted {figures.accepted:,}  sold out {figures.sold_out:,}  errors {figures.errors:,}"
        f"  stock {_count(figures.stock)}  pending {_count(figures.pending)}  outbox {_count(figures.outbox)}"
        f"  queue {_count(figures.queue)}  confirmed {_count(figures.confirmed)}"
    )


class LiveView(AbstractContextManager["LiveView"]):
    """Shows a run while it goes on. `update` is cheap to call often; `also` hears the figures each time."""

    def __init__(
        self, scenario: Scenario, console: Console, also: Callable[[Figures], None] | None = None
    ) -> None:
        self._also = also
        self._title = scenario.name
        self._gauges = Gauges(scenario)
        self._rates: deque[float] = deque(maxlen=_SPARKS)
        self._console = console
        self._live = (
            Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None
        )
        self._shown_ns = 0

    def __enter__(self) -> "LiveView":
        (self._live or nullcontext()).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def update(
        self,
        progress: Progress | None,
        sample: Sample | None,
        ended: Sequence[Interval] = (),
        now_ns: int | None = None,
    ) -> None:
        """Show the latest progress, sample and ended faults, if the last time is long enough ago.

        `now_ns` is on time.monotonic_ns().
        """
        now_ns = time.monotonic_ns() if now_ns is None else now_ns
        figures = self._gauges.read(progress, sample, now_ns)
        if self._also:
            self._also(figures._replace(healed=ended))
        if (now_ns - self._shown_ns) / 1e9 < (REFRESH_S if self._live else LINE_S):
            return
        self._shown_ns = now_ns
        if self._live:
            self._rates.append(figures.done_rps)
            self._live.update(self._draw(figures), refresh=True)
        else:
            self._console.print(format_line(figures), soft_wrap=True, highlight=False)

    def _draw(self, figures: Figures) -> RenderableType:
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(style="dim")
            table.add_column(justify="right", min_width=10)
        rows = [
            ("intended", f"{figures.intended_rps:,.0f}/s", "accepted", f"{figures.accepted:,}"),
            ("done", f"{figures.done_rps:,.0f}/s", "sold out", f"{figures.sold_out:,}"),
            ("p50", _ms(figures.p50_ms), "errors", f"{figures.errors:,}"),
            ("p99", _ms(figures.p99_ms), "stock left", _count(figures.stock)),
        ]
        ends = [
            ("outbox", _count(figures.outbox)),
            ("queue", _count(figures.queue)),
            ("pending", _count(figures.pending)),
            ("confirmed", _count(figures.confirmed)),
        ]
        for row, end in zip(rows, ends, strict=True):
            table.add_row(*row, *end)
        where = Table.grid(padding=(0, 1))
        where.add_row(
            ProgressBar(total=1.0, completed=figures.share, width=_SPARKS),
            Text(f"{figures.t_s:5.1f} s  {figures.phase}"),
        )
        rate = Text(sparkline(list(self._rates)).rjust(_SPARKS), style="cyan")
        return Panel(Group(table, rate, where), title=self._title, width=2 * _SPARKS - 20)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"


def _count(value: int | None) -> str:
    return "–" if value is None else f"{value:,}"
