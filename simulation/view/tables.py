"""The result of many runs: as JSON, and as one table in Markdown and in HTML."""

from pathlib import Path
from typing import Any

import jinja2
import msgspec


def write_tables(name: str, result: msgspec.Struct, folder: Path, **values: Any) -> None:
    """Writes NAME.json, NAME.md and NAME.html; the templates see the result by that name, and the values."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    pages = jinja2.Environment(loader=loader, autoescape=jinja2.select_autoescape(), trim_blocks=True)
    pages.undefined = jinja2.StrictUndefined
    for file in (f"{name}.md", f"{name}.html"):
        text = pages.get_template(file).render({name: result}, **values)
        (folder / file).write_text(text, encoding="utf-8")
