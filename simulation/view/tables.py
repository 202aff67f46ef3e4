"""The result of many runs: as JSON, and as one table in Markdown and in HTML."""

from pathlib import Path

import jinja2
import msgspec

from simulation.view.canvas import DARK, LIGHT


def write_tables(name: str, result: msgspec.Struct, folder: Path, *, good: int, total: int) -> None:
    """Writes NAME.json, NAME.md and NAME.html; `good` of the result's `total` rows are as they should be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True)
    pages.undefined = jinja2.StrictUndefined
    for file in (f"{name}.md", f"{name}.html"):
        text = pages.get_template(file).render(result=result, good=good, total=total, light=LIGHT, dark=DARK)
        (folder / file).write_text(text, encoding="utf-8")
