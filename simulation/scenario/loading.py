"""Loading a scenario: found by name or path, changed, scaled, validated."""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from simulation.errors import ScenarioError, suggest
from simulation.scenario.arrivals import peak_rps
from simulation.scenario.checks import check_scenario, list_bad_conditions
from simulation.scenario.condition import scale_window
from simulation.scenario.schema import Scenario
from simulation.scenario.traces import fill_traces, read_text

FOLDER = Path(__file__).parent / "library"
MOST_ERRORS = 10
MOST_DEPTH = 20
TOO_MUCH = f"a number has thousands of digits, or more than {MOST_DEPTH} tables and lists are within another"
MOST_SHOWN = 100
"""Most characters of a value at fault: a trace may have a week of them."""
UNKNOWN_KEY = "there is no such key"
_FITTING: tuple[Any, ...] = (1, 0.5, "x", [], {}, "constant", 200, "/", "GET", "front-door")
"""Values of each type, to go on behind one that is at fault."""


def list_scenarios() -> list[str]:
    """Return the names of the scenarios of the library."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_scenario(
    name_or_path: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    rate_rps: float | None = None,
    duration_s: float | None = None,
    stock: int | None = None,
    seed: int | None = None,
) -> Scenario:
    """Return the scenario of that name, or in that TOML file, with changes.

    `overrides` are dotted keys ("sales.0.stock", "driver.connections") and their values; `stock` is that of
    the first sale. `rate_rps` scales the arrival curve to that peak, `duration_s` to that length.

    Raises ScenarioError, with a line for each key at fault.
    """
    path = _find(name_or_path)
    try:
        raw, text = read_toml(path)
    except ValueError as error:
        raise ScenarioError(str(error)) from None
    named = {"sales.0.stock": stock, "seed": seed}
    changes = dict(overrides or {}) | {key: value for key, value in named.items() if value is not None}
    for key, value in changes.items():
        _override(raw, key, value)
    try:
        fill_traces(raw, path)
    except ValueError as error:
        raise ScenarioError(locate_errors([str(error)], path.name, text, tuple(changes))) from None
    scenario = read_scenario(raw, path.name, text, tuple(changes))
    if rate_rps is None and duration_s is None:
        return scenario
    rate = 1.0 if rate_rps is None else rate_rps / peak_rps(scenario.arrivals)
    time = 1.0 if duration_s is None else duration_s / scenario.duration_s()
    for key, scale in (("rate", rate), ("duration", time)):
        if not 0 < scale < math.inf:
            raise ScenarioError(f"{path.name}: {key}: must be greater than 0")
    return scale_scenario(scenario, rate, time, path.name)


def read_toml(path: Path) -> tuple[dict[str, Any], str]:
    """Return what a TOML file says, and its text. Raises ValueError, which names the file and the line."""
    text = ""
    try:
        text = read_text(path)
        return parse_toml(text), text
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:
        last = f"at line {len(text.splitlines())}, the end"
        said = str(error).replace("at end of document", last)
        raise ValueError(f"{path}: is not TOML: {said}") from None


def parse_toml(text: str) -> dict[str, Any]:
    """Return what a TOML text says. Raises ValueError, also for what is of no use in any key."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise
    except (ValueError, RecursionError):
        raise ValueError(TOO_MUCH) from None
    level: list[Any] = [raw]
    for _ in range(MOST_DEPTH):
        level = [each for part in level for each in (part.values() if isinstance(part, dict) else part)]
        if any(isinstance(each, str) and "\0" in each for each in level):
            raise ValueError("a text has a NUL character")
        level = [each for each in level if isinstance(each, dict | list)]
    if level:
        raise ValueError(TOO_MUCH)
    return raw


def scale_scenario(scenario: Scenario, rate: float, time: float, source: str = "scenario") -> Scenario:
    """Return the scenario with its rates times `rate`, and its lengths and moments times `time`.

    Raises ScenarioError where a scaled value is out of bounds.
    """
    raw = msgspec.to_builtins(scenario)
    factors = dict.fromkeys(("rate_rps", "to_rps"), rate)
    factors |= dict.fromkeys(("seconds", "period_s", "at_s", "starts_in_s", "ends_in_s"), time)
    for table in raw["arrivals"] + raw["sales"] + raw["restocks"] + raw["faults"]:
        for key, factor in factors.items():
            if table.get(key) is not None:
                table[key] *= factor
    raw["thresholds"] = [scale_window(text, time) for text in scenario.thresholds]
    return read_scenario(raw, source)


def read_scenario(
    raw: Mapping[str, Any], source: str = "scenario", text: str = "", changed: Sequence[str] = ()
) -> Scenario:
    """Return the scenario in a tree of plain values.

    Raises ScenarioError with a line for each key at fault; it names the line of the TOML `text` where one is,
    but not for keys that were `changed` since.
    """
    if isinstance(population := raw.get("population"), dict):
        # TOML has no word for nothing: `reads = false` leaves a table out.
        given = {key: None if value is False else value for key, value in population.items()}
        raw = {**raw, "population": given}
    try:
        scenario = msgspec.convert(raw, Scenario)
        check_scenario(scenario)
    except msgspec.ValidationError:
        found = [*find_errors(raw, Scenario), *list_bad_conditions(raw)]
        raise ScenarioError(locate_errors(found, source, text, changed)) from None
    except ValueError as error:
        raise ScenarioError(locate_errors(str(error).splitlines(), source, text, changed)) from None
    sales = [sale for offer in scenario.sales for sale in offer.each()]
    return msgspec.structs.replace(scenario, sales=sales)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return path
    if path.name not in list_scenarios():
        names = list_scenarios()
        raise ScenarioError(
            f"no scenario {path.name!r}{suggest(path.name, names)}; there are: {', '.join(names)}"
        )
    return FOLDER / f"{path.name}.toml"


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key. Raises ScenarioError for a number that a list does not have."""
    *parents, last = key.split(".", MOST_DEPTH)
    place: Any = raw
    for part in parents:
        place = place.setdefault(part, {}) if isinstance(place, dict) else place[_index(place, part, key)]
    place[last if isinstance(place, dict) else _index(place, last, key)] = value


def _index(place: Any, part: str, key: str) -> int:
    if not isinstance(place, list):
        raise ScenarioError(f"{key}: there is no such key")
    if not part.isascii() or not part.isdigit() or int(part) >= len(place):
        raise ScenarioError(f"{key}: {part!r} must be a number below {len(place)}")
    return int(part)


def find_errors(raw: Mapping[str, Any], kind: type) -> list[str]:
    """Return each key that makes the tree no scenario, or none of another kind, and why: msgspec stops at the
    first one.

    So the value at fault is replaced by one that fits, or its key is dropped, until no more is found.
    """
    tree, found = deepcopy(dict(raw)), list[str]()
    while len(found) < MOST_ERRORS and (message := _find_error(tree, kind)):
        keys, detail = _locate(message)
        found.append(_explain(tree, keys, detail, kind))
        if not keys:
            break
        *parents, last = keys
        place: Any = tree
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        if detail == UNKNOWN_KEY:
            del place[last]
            continue
        at: Any = int(last) if isinstance(place, list) else last
        if "object" in detail or (detail != "is missing" and isinstance(place[at], dict)):
            break  # nothing fits in place of a table
        for value in (*_list_words(kind, keys), *_FITTING):
            place[at] = deepcopy(value)
            if _locate(_find_error(tree, kind))[0] != keys:
                break
        else:
            break
    return found


def locate_errors(errors: Sequence[str], source: str, text: str, changed: Sequence[str] = ()) -> str:
    """Return errors that begin with a key, a line each, behind the source and the line of its text, which a
    key that was `changed` since has none of."""
    return "\n".join(f"{source}{_find_line(text, error, changed)}: {error}" for error in errors)


def _find_error(tree: Any, kind: type) -> str:
    """Return msgspec's first complaint about a tree; nothing where it is of that kind."""
    try:
        msgspec.convert(tree, kind)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        return str(error)
    return ""


def _locate(message: str) -> tuple[list[str], str]:
    """Return the keys that lead to what msgspec complains about, and the complaint."""
    detail, _, where = message.partition(" - at `$")
    keys = re.findall(r"\w+", where)
    if found := re.match(r"Object (contains unknown|missing required) field `(.*)`", detail):
        return [*keys, found[2]], UNKNOWN_KEY if found[1] == "contains unknown" else "is missing"
    return keys, detail


def _explain(raw: Any, keys: list[str], detail: str, kind: type) -> str:
    """Return a complaint with the key in front, and behind it the value, or a key that may be meant."""
    if detail in (UNKNOWN_KEY, "is missing"):
        more = suggest(keys[-1], sorted(_list_keys(kind) - {keys[-1]})) if detail == UNKNOWN_KEY else ""
        if words := _list_words(kind, keys):
            more = f"; there are: {', '.join(map(str, words))}"
        return f"{'.'.join(keys)}: {detail}{more}"
    value = raw
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value[key]
    if keys == ["arrivals"]:
        return "arrivals: must be tables [[arrivals]], one for each segment or trace"
    if words := _list_words(kind, keys):
        return f"{'.'.join(keys)}: must be one of {', '.join(map(str, words))}, got {value!r}"
    # A message about a type or a misspelt word says by itself what it got.
    is_bare = re.match("Expected .* (of|<|>|>=|<=) |Expected.*match", detail)
    shown = f", got {repr(value)[:MOST_SHOWN]}" if is_bare else ""
    return f"{'.'.join(keys) or 'scenario'}: {detail[:1].lower()}{detail[1:]}{shown}"


@cache
def _list_keys(kind: type) -> set[str]:
    """Return every key that a scenario, or what is of that kind, may have, of all its tables."""
    tables = msgspec.json.schema(kind)["$defs"].values()
    return {name for table in tables for name in table.get("properties", ())}


def _list_words(kind: type, keys: Sequence[str]) -> list[Any]:
    """Return the values that there are for a key; nothing where it may have any."""
    schema = msgspec.json.schema(kind)
    parts = [schema]
    for key in [*keys, None]:
        # Of a part its own schema, or that of each of its kinds.
        parts = [each for part in parts for each in part.get("anyOf", [part])]
        parts = [
            schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part for part in parts
        ]
        if key is not None:
            parts = [part.get("items") or part.get("properties", {}).get(key, {}) for part in parts]
    return sorted(word for part in parts for word in part.get("enum", ()))


def _find_line(text: str, error: str, changed: Sequence[str]) -> str:
    """Return ":17" where the key that an error begins with stands in that line of a TOML text, or of its
    table; nothing where it stands in none, or was `changed`."""
    keys = error.partition(":")[0].split(".")
    if any(keys[: len(given)] == given for given in (key.split(".") for key in changed)):
        return ""
    table: list[str] = []
    tables: Counter[str] = Counter()
    nearest = ""
    for number, line in enumerate(text.splitlines(), 1):
        if found := re.match(r"\s*\[(\[?)([\w.]+)", line):
            name = found[2]
            table = [*name.split("."), *([str(tables[name])] if found[1] else [])]
            tables[name] += 1
            if table == keys[: len(table)]:
                nearest = f":{number}"
        elif found := re.match(r"\s*([\w.]+)\s*=", line):
            path = [*table, *found[1].split(".")]
            if path == keys[: len(path)]:
                return f":{number}"
    return nearest
