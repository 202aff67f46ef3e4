"""The live view in a terminal: a panel that redraws itself, or one plain line a second without a terminal."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count as numbers
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from simulation.live.figures import Figures, Show
from simulation.report.words import count, ms
from simulation.run import TICK_S
from simulation.scenario.schema import Scenario

_BARS: Final = " ▁▂▃▄▅▆▇█"
_SPARKS: Final = 60


@contextmanager
def open_view(scenario: Scenario, console: Console) -> Iterator[Show]:
    """Show figures of a run of the scenario on the console until the end of the block."""
    if not console.is_terminal:
        ticks = numbers()

        def print_line(figures: Figures) -> None:
            if next(ticks) % round(1 / TICK_S) == 0:
                console.print(format_line(figures), soft_wrap=True, highlight=False)

        yield print_line
        return
    rates: deque[float] = deque(maxlen=_SPARKS)

    def draw(figures: Figures) -> None:
        rates.append(figures.done_rps)
        live.update(_draw(scenario, figures, rates), refresh=True)

    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield draw


def sparkline(values: list[float]) -> str:
    """Return the values as bars, the largest one full."""
    top = max(values, default=0.0)
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] if top else _BARS[0] for value in values)


def format_line(figures: Figures) -> str:
    """Return the figures as one plain line."""
    return (
        f"{figures.t_s:6.1f} s  {figures.phase:13}  intended {figures.intended_rps:7,.0f}/s"
        f"  done {figures.done_rps:7,.0f}/s  p50 {ms(figures.p50_ms):>8}  p99 {ms(figures.p99_ms):>8}"
        f"  accepted {figures.accepted:,}  sold out {figures.sold_out:,}  errors {figures.errors:,}"
        f"  stock {count(figures.stock)}  pending {count(figures.pending)}"
        + ("" if figures.outbox is None else f"  outbox {count(figures.outbox)}")
        + f"  queue {count(figures.queue)}  confirmed {count(figures.confirmed)}"
        + (f"  reads {figures.reads:,}" if figures.reads else "")
    )


def _draw(scenario: Scenario, figures: Figures, rates: deque[float]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for _ in range(3):
        table.add_column(style="dim")
        table.add_column(justify="right", min_width=10)
    rows = [
        ("intended", f"{figures.intended_rps:,.0f}/s", "accepted", "outbox"),
        ("done", f"{figures.done_rps:,.0f}/s", "sold_out", "queue"),
        ("p50", ms(figures.p50_ms), "errors", "pending"),
        ("p99", ms(figures.p99_ms), "stock", "confirmed"),
    ]
    for name, value, *counted in rows:
        cells = {each.replace("_", " "): count(getattr(figures, each)) for each in counted}
        if figures.outbox is None and "outbox" in cells:
            cells = {**cells, "outbox": ""}
        table.add_row(name, value, *(word for cell in cells.items() for word in cell))
    passed = ProgressBar(total=scenario.duration_s(), completed=max(figures.t_s, 0.0), width=_SPARKS)
    rate = Text(sparkline(list(rates)).rjust(_SPARKS), style="cyan")
    where = f"{figures.t_s:.1f} s  {figures.phase}"
    return Panel(Group(table, rate, passed), title=scenario.name, subtitle=where, width=2 * _SPARKS - 20)
