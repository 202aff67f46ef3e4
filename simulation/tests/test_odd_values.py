"""Whatever is read, be it ever so odd, is understood or refused on purpose: nothing else is raised."""

import tomllib
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation.cli.running import parse_override
from simulation.drive.response import parse_response
from simulation.errors import BadResponse, RunError, SimulationError
from simulation.model.places import find_in
from simulation.record.facts import RunFacts, read_part, read_timeline
from simulation.record.history import read_history
from simulation.record.manifest import MANIFEST, read_manifest
from simulation.record.series import SERIES, SeriesRecord
from simulation.record.state import read_state
from simulation.record.summary import read_summary
from simulation.scenario.condition import parse_abort, parse_change, parse_condition
from simulation.scenario.loading import FOLDER, parse_toml, read_scenario
from simulation.scenario.traces import read_trace
from simulation.target.foreign.checks import find_faults
from simulation.target.foreign.loading import LIBRARY, read_description
from simulation.target.foreign.tokens import read_tokens

few = settings(
    max_examples=settings().max_examples * 3 // 2, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = ["0", "-1", "20000000", "1795939200", "1e400", "nan", "9" * 400, "9" * 5_000, "²", "٣", "1_0"]
WORDS = [
    "GET\n",
    "CONNECT",
    "{user_id}",
    "{{x}",
    "$.a",
    "a[0]",
    "\ud800",
    "\x00",
    "[" * 2_000,
    '"',
    "2026-11-29",
]
odd_texts = st.sampled_from(NUMBERS + WORDS) | st.text(st.characters(codec="utf-8"), max_size=12)
odd_values = st.recursive(
    odd_texts
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.sampled_from([10**400, -(2**63), 2**63, date(2026, 11, 29)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(odd_texts, inner, max_size=3),
    max_leaves=4,
)
odd_lines = st.lists(st.lists(odd_texts, max_size=4).map(",".join), max_size=5).map("\n".join)
odd_bytes = st.binary(max_size=40) | odd_lines.map(lambda text: text.encode("utf-8", "surrogatepass"))


def list_places(tree: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every key of a tree, and a new one in each table."""
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    found = [(*place, "odd")] if isinstance(tree, dict) else []
    for name, each in pairs:
        found += [(*place, name), *list_places(each, (*place, name))]
    return found


def spoil(tree: dict[str, Any], places: list[tuple[Any, ...]], values: list[Any]) -> dict[str, Any]:
    spoilt = deepcopy(tree)
    for (*parents, last), value in zip(places, values, strict=False):
        part: Any = spoilt
        with suppress(LookupError, TypeError):  # spoilt before
            for name in parents:
                part = part[name]
            part[last] = value
    return spoilt


SCENARIO = tomllib.loads((FOLDER / "spike.toml").read_text())
SCENARIO |= {
    "faults": [{"kind": "command", "on": "shop", "at_s": 1, "seconds": 1, "begin": "true"}],
    "restocks": [{"at_s": 1, "product_id": 1, "stock": 5}],
    "abort_when": ["error.share > 0.5"],
    "engine": {"workers": 1},
}
READS = """
[stock]
path = "/stock"
remaining = "left"
[order]
path = "/{order_id}"
status = "state"
words = { PAID = "CONFIRMED" }
"""
DESCRIPTION = tomllib.loads((LIBRARY / "textbook.toml").read_text()) | tomllib.loads(READS)


@few
@given(st.lists(st.sampled_from(list_places(SCENARIO)), max_size=2), st.lists(odd_values, min_size=2))
def test_an_odd_scenario_is_refused_on_purpose(places: list[Any], values: list[Any]) -> None:
    with suppress(SimulationError):
        read_scenario(spoil(SCENARIO, places, values))


@few
@given(st.lists(st.sampled_from(list_places(DESCRIPTION)), max_size=2), st.lists(odd_values, min_size=2))
def test_an_odd_description_is_refused_on_purpose(places: list[Any], values: list[Any]) -> None:
    with suppress(SimulationError):
        described = read_description(spoil(DESCRIPTION, places, values), "shop.toml", "")
        assert list(find_faults(described)) == []


@few
@given(st.lists(odd_texts, max_size=4).map("=".join))
def test_an_odd_word_of_the_command_line_is_refused_on_purpose(text: str) -> None:
    with suppress(SimulationError):
        parse_override(text)
    parsers: list[Callable[[str], Any]] = [parse_toml, parse_condition, parse_abort, parse_change]
    for parse in parsers:
        with suppress(ValueError):
            parse(text)


@few
@given(odd_bytes)
def test_an_odd_file_is_refused_on_purpose(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "odd"
    file.write_bytes(content)
    for read in (read_trace, read_tokens):
        with suppress(SimulationError):
            read(file)


@few
@given(odd_bytes)
def test_an_odd_record_is_refused_on_purpose(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "final").mkdir(exist_ok=True)
    for name in (
        "history.parquet",
        "timeline.csv",
        "run.json",
        "summary.json",
        MANIFEST,
        SERIES,
        "final/final_state.json",
    ):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RunError):
        read_history(tmp_path / "history.parquet")
    for name, kind in (("run.json", RunFacts), (SERIES, SeriesRecord)):
        with pytest.raises(RunError):
            read_part(tmp_path, name, kind)
    for read in (read_state, read_summary, read_manifest, read_timeline):
        with suppress(RunError):
            read(tmp_path)


@few
@given(odd_texts, odd_bytes)
def test_an_odd_answer_is_read(place: str, content: bytes) -> None:
    find_in(place, content, content)
    with suppress(BadResponse):
        parse_response(b"HTTP/1.1 200 OK\r\n" + content, closed=True)
