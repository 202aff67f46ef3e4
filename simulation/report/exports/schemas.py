"""JSON Schemas, written from the types that the program itself uses."""

import inspect
from pathlib import Path
from typing import Any, Final

import msgspec

import simulation.record
import simulation.scenario
from simulation.record.facts import format_json
from simulation.record.summary import Summary
from simulation.scenario.schema import Scenario

KINDS: Final[dict[str, Any]] = {"scenario": Scenario, "summary": Summary}
FILES: Final = {
    "scenario": Path(simulation.scenario.__path__[0]) / "scenario.schema.json",
    "summary": Path(simulation.record.__path__[0]) / "summary.schema.json",
}
"""Where the repository keeps them, for editors and other tools."""


def write_schema(name: str) -> bytes:
    """Return the schema of "scenario" or "summary"."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return format_json(dialect | _dedent(msgspec.json.schema(KINDS[name])))


def _dedent(schema: Any) -> Any:
    """Return the schema with the docstrings in it as Python 3.13 and later keep them, without indentation."""
    if isinstance(schema, dict):
        return {
            name: inspect.cleandoc(value)
            if name == "description" and isinstance(value, str)
            else _dedent(value)
            for name, value in schema.items()
        }
    return [*map(_dedent, schema)] if isinstance(schema, list) else schema
