"""What differs between the set-ups of runs that are compared, before anything is measured."""

from collections.abc import Sequence
from itertools import islice
from typing import Any, Final

import msgspec

from simulation.judge.figures import Side

_UNNAMED: Final = ("name", "text", "seed")
"""Keys of a scenario that change nothing, or are named apart."""


def find_differences(sides: Sequence[Side]) -> list[tuple[str, list[str]]]:
    """Return what differs between the set-ups of the runs, of a side as well: the keys of the scenarios, then
    the machines."""
    sizes = [len(side.runs) for side in sides]
    runs = [run for side in sides for run in side.runs]
    asked = [
        {key: each for key, each in msgspec.to_builtins(run.scenario).items() if key not in _UNNAMED}
        for run in runs
    ]
    facts = [
        {
            "driver": run.summary["driver"],
            "commit": run.summary["commit"][:12],
            **run.summary["machine"],
            **run.summary["versions"],
        }
        for run in runs
    ]
    found = [(name, _gather(values, sizes)) for name, values in [*_differ("", asked), *_differ("", facts)]]
    named = [
        {
            "seeds": ", ".join(str(run.summary["seed"]) for run in side.runs),
            "command": side.runs[0].summary["command"],
        }
        for side in sides
    ]
    return [*found, *_differ("", named)]


def _gather(values: Sequence[str], sizes: Sequence[int]) -> list[str]:
    """Return for each side what its runs have, each value once."""
    rest = iter(values)
    return [" / ".join(dict.fromkeys(islice(rest, size))) for size in sizes]


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
