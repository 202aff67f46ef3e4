"""What differs between the set-ups of runs that are compared, before anything is measured."""

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from simulation.judge.figures import Side

_UNNAMED: Final = ("name", "text", "seed")
"""Keys of a scenario that change nothing, or are named apart."""


def find_differences(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """Return what differs between the set-ups of the sides: the keys of the scenarios, then the machines."""
    first = [side.runs[0] for side in sides]
    scenarios = [msgspec.to_builtins(run.scenario) for run in first]
    facts = [
        {
            "driver": run.summary["driver"],
            "seeds": ", ".join(str(each.summary["seed"]) for each in side.runs),
            "commit": run.summary["commit"][:12],
            **run.summary["machine"],
            **run.summary["versions"],
            "command": run.summary["command"],
        }
        for run, side in zip(first, sides, strict=True)
    ]
    asked = [{key: each[key] for key in each if key not in _UNNAMED} for each in scenarios]
    return [*_differ("", asked), *_differ("", facts)]


def _differ(name: str, values: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """Return the leaves that differ, by their dotted names; a value that one side lacks is None."""
    if all(value == values[0] for value in values):
        return []
    if all(isinstance(value, list) for value in values):
        values = [{str(number): each for number, each in enumerate(value)} for value in values]
    if not all(isinstance(value, dict) for value in values):
        return [(name, [_write(value) for value in values])]
    keys = dict.fromkeys(key for value in values for key in value)
    parts = (_differ(f"{name}.{key}".strip("."), [value.get(key) for value in values]) for key in keys)
    return [each for part in parts for each in part]


def _write(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_write(each)}" for key, each in value.items() if each is not None)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.10g}"
    return "–" if value is None else str(value)
