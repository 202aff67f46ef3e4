"""JSON Schemas, written from the types that the program itself uses."""

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
    schema = dialect | msgspec.json.schema(KINDS[name])
    return format_json(schema)
