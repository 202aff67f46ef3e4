"""bench.md and its plots: pure functions of what a run of the benchmark found."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import jinja2
import msgspec

from simulation.bench.plots import draw_front_door, draw_growth, draw_responses, draw_scaling
from simulation.bench.results import Bench, FrontDoor
from simulation.bench.samples import Spread
from simulation.bench.spellings import PROXIED
from simulation.errors import BenchError


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


_SHOWN: Final[dict[str, Callable[[float], str]]] = {
    "count": "{:,.0f}".format,
    "ratio": "{:.2f}".format,
    "ratio3": "{:.3f}".format,
    "short": _short,
    "ms": lambda value: f"{_short(value)} ms",
    "percent": "{:.1f} %".format,
    "seconds": "{:.2f} s".format,
}
"""How a number is written, by its kind."""


def read_bench(folder: Path) -> Bench:
    """Return what a run of the benchmark left in its folder. Raises BenchError."""
    try:
        return msgspec.json.decode((folder / "bench.json").read_bytes(), type=Bench)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BenchError(f"{folder} is no run of the benchmark: {error}") from None


def write_page(bench: Bench, folder: Path) -> None:
    """Write bench.md and plots/*.png."""
    (folder / "plots").mkdir(exist_ok=True)
    drawings = {
        "front_door": draw_front_door(bench.front_door),
        "responses": draw_responses(bench.responses),
        "growth": draw_growth(bench.growth),
        "scaling": draw_scaling(bench.scaling),
    }
    drawn = {name: canvas for name, canvas in drawings.items() if canvas is not None}
    for name, canvas in drawn.items():
        canvas.to_png(folder / "plots" / f"{name}.png")
    (folder / "bench.md").write_text(render(bench, list(drawn)), encoding="utf-8")


def render(bench: Bench, plots: Sequence[str] = (), template: str = "bench.md") -> str:
    """Return the page in Markdown, or by summary.md the tables of the README."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {**_SHOWN, "spread": _spread, "by": _by, "faults": _faults}
    return environment.get_template(template).render(bench=bench, plots=plots, proxied=PROXIED)


def _by(rows: Iterable[Any], name: str, value: str) -> dict[tuple[str, int], Spread]:
    """Return one field of the rows by another one and the number of connections."""
    return {(getattr(row, name), row.connections): getattr(row, value) for row in rows}


def _faults(rows: Iterable[FrontDoor]) -> list[str]:
    return sorted(
        {
            f"- {row.subject}, {row.connections} connections: {sample.fault}"
            for row in rows
            for sample in row.samples
            if sample.fault
        }
    )


def _spread(spread: Spread, kind: str = "count") -> str:
    """Write the median, with the lowest and the highest value in brackets."""
    show = _SHOWN[kind]
    if len(spread.values) == 1:
        return show(spread.median)
    return f"{show(spread.median)} ({show(spread.low)}–{show(spread.high)})"
