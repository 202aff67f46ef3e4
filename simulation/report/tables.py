"""The result of many runs: as JSON, and as one table in Markdown and in HTML."""

from pathlib import Path

import jinja2
import msgspec

from simulation.report.page import fill_page


def write_tables(name: str, result: msgspec.Struct, folder: Path, *, good: int, total: int) -> None:
    """Writes NAME.json, NAME.md and NAME.html; `good` of the result's `total` rows are as they should be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    (folder / f"{name}.html").write_text(
        fill_page(f"{name}.html", result=result, good=good, total=total), encoding="utf-8"
    )
    # In Markdown nothing is escaped.
    plain = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    text = plain.get_template(f"{name}.md").render(result=result, good=good, total=total)
    (folder / f"{name}.md").write_text(text, encoding="utf-8")
