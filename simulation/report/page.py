"""Pages: every page of the simulation is filled from a template in pages/, in one style and one palette."""

from pathlib import Path
from typing import Any, Final

import jinja2
import msgspec

from simulation.judge.numbers.latency import is_trusted
from simulation.report.words import OUTCOMES, count, ms, name_questions, seconds

# Okabe and Ito's colour-blind safe palette, darkened until text in it reads on white.
LIGHT: Final = {
    "ink": "#1c2126",
    "muted": "#5d6771",
    "grid": "#d8dde2",
    "shade": "#eff2f4",
    "fault": "#f9dfd3",
    "paper": "#ffffff",
    "blue": "#0072b2",
    "orange": "#b85c00",
    "green": "#00805d",
    "pink": "#a8417e",
    "sky": "#3a8fbf",
    "olive": "#7d7400",
    "heat1": "#d5e8f3",
    "heat2": "#a6cfe6",
    "heat3": "#70b3d6",
    "heat4": "#3891c2",
    "heat5": "#10669a",
    "heat6": "#073c60",
}
DARK: Final = {
    "ink": "#e6e9ec",
    "muted": "#98a3ad",
    "grid": "#343c44",
    "shade": "#1e242a",
    "fault": "#472a20",
    "paper": "#14181c",
    "blue": "#56b4e9",
    "orange": "#e69f00",
    "green": "#2fc296",
    "pink": "#e08fbd",
    "sky": "#8fcdf0",
    "olive": "#d9cf45",
    "heat1": "#1b3445",
    "heat2": "#1d4f6e",
    "heat3": "#23739e",
    "heat4": "#419fcf",
    "heat5": "#8ccbee",
    "heat6": "#e6f5ff",
}
HEAT: Final = ("heat1", "heat2", "heat3", "heat4", "heat5", "heat6")
"""From few to many: away from the colour of the paper, in either theme."""
SERIES: Final = ("blue", "orange", "green", "pink", "olive", "sky", "ink", "muted")

MARKS: Final = {"pass": "✓", "fail": "✕", "unknown": "?", "idle": "–"}
STATES: Final = {"held": "pass", "broken": "fail", "not judged": "unknown", "not exercised": "idle"}
"""The state of a check (simulation.judge.verdict.State), and the mark and colour that shows it."""


def fill_page(template: str, form: str = "html", **values: Any) -> str:
    """Return a template filled with values, as "html" or, where the template allows it, as "md"."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=jinja2.select_autoescape(default=form == "html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": count, "ms": ms, "seconds": seconds, "questions": name_questions}
    environment.tests["trusted"] = is_trusted
    environment.globals |= {
        "light": LIGHT, "dark": DARK, "marks": MARKS, "states": STATES, "names": OUTCOMES, "form": form,
    }  # fmt: skip
    return environment.get_template(template).render(**values)


def write_tables(name: str, result: msgspec.Struct, folder: Path, *, good: int, total: int) -> None:
    """Write the result of many runs as NAME.json, NAME.md and NAME.html.

    `good` of its `total` rows are as they should be. Raises OSError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    for form in ("md", "html"):
        text = fill_page(f"{name}.jinja", form, result=result, good=good, total=total)
        (folder / f"{name}.{form}").write_text(text, encoding="utf-8")
