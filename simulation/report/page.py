"""Pages: every page of the simulation is filled from a template, in one style."""

from pathlib import Path
from typing import Any, Final

import jinja2

from simulation.judge.numbers.latency import is_trusted
from simulation.report.canvas import DARK, LIGHT, milliseconds

MARKS: Final = {"pass": "✓", "fail": "✕", "unknown": "?", True: "✓", False: "✕", None: "?"}


STATES: Final = {True: "pass", False: "fail", None: "unknown"}


def fill_page(template: str, **values: Any) -> str:
    """A page of the simulation's, in its one style."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "ms": ms, "seconds": seconds}
    environment.tests |= {"trusted": is_trusted, "server_error": is_server_error}
    look = {"light": LIGHT, "dark": DARK, "marks": MARKS, "states": STATES}
    return environment.get_template(template).render(**values, **look)


def is_server_error(word: str) -> bool:
    """Whether an answer is one that no request may cause: 5xx, other than 503."""
    return word.startswith("5") and word != "503"


def count(value: float | None) -> str:
    """A whole number with thousands separators, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def ms(value: float | None) -> str:
    """A duration given in milliseconds, or a dash."""
    return "–" if value is None else milliseconds(value)


def seconds(value: float | None) -> str:
    """A duration given in seconds, or a dash."""
    return "–" if value is None else milliseconds(value * 1e3)
