"""Loading a scenario: found by name or path, changed, scaled, validated."""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from simulation.errors import ScenarioError
from simulation.scenario.arrivals import peak_rps
from simulation.scenario.checks import check_scenario
from simulation.scenario.condition import scale_window
from simulation.scenario.schema import Scenario
from simulation.scenario.traces import fill_traces, read_text

FOLDER = Path(__file__).parent / "library"


def list_scenarios() -> list[str]:
    """Return the names of the scenarios of the library."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of a command line's `key=value`; a value that is not TOML is a plain string.

    Raises ScenarioError where key or `=` is missing.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ScenarioError(f"--set {text}: must be key=value, for example sales.0.stock=500")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


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

    Raises ScenarioError, in one line that names the key at fault.
    """
    path = _find(name_or_path)
    try:
        raw = tomllib.loads(read_text(path))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: is not TOML: {error}") from None
    named = {"sales.0.stock": stock, "seed": seed}
    changes = dict(overrides or {}) | {key: value for key, value in named.items() if value is not None}
    for key, value in changes.items():
        _override(raw, key, value)
    fill_traces(raw, path)
    scenario = read_scenario(raw, path.name)
    if rate_rps is None and duration_s is None:
        return scenario
    rate = 1.0 if rate_rps is None else rate_rps / peak_rps(scenario.arrivals)
    time = 1.0 if duration_s is None else duration_s / scenario.duration_s()
    for key, scale in (("rate", rate), ("duration", time)):
        if not 0 < scale < math.inf:
            raise ScenarioError(f"{path.name}: {key}: must be greater than 0")
    return scale_scenario(scenario, rate, time, path.name)


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


def read_scenario(raw: Mapping[str, Any], source: str = "scenario") -> Scenario:
    """Return the scenario in a tree of plain values. Raises ScenarioError, which names the key at fault."""
    if isinstance(population := raw.get("population"), dict):
        # TOML has no word for nothing: `reads = false` leaves a table out.
        given = {key: None if value is False else value for key, value in population.items()}
        raw = {**raw, "population": given}
    try:
        scenario = msgspec.convert(raw, Scenario)
        check_scenario(scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{source}: {_explain(raw, str(error))}") from None
    except ValueError as error:
        raise ScenarioError(f"{source}: {error}") from None
    sales = [sale for offer in scenario.sales for sale in offer.each()]
    return msgspec.structs.replace(scenario, sales=sales)


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return path
    if path.name not in list_scenarios():
        raise ScenarioError(f"no scenario {path.name!r}; there are: {', '.join(list_scenarios())}")
    return FOLDER / f"{path.name}.toml"


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set the value at a dotted key. Raises ScenarioError for a number that a list does not have."""
    *parents, last = key.split(".")
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


def _explain(raw: Any, message: str) -> str:
    """Return msgspec's message with the key in front and the value behind."""
    detail, _, where = message.partition(" - at `$")
    keys = re.findall(r"\w+", where)
    if found := re.match(r"Object (contains unknown|missing required) field `(.*)`", detail):
        keys.append(found[2])
        detail = "there is no such key" if found[1] == "contains unknown" else "is missing"
        return f"{'.'.join(keys)}: {detail}"
    value = raw
    for key in keys:
        value = value[int(key)] if isinstance(value, list) else value[key]
    # A message about a type or a misspelt word says by itself what it got.
    shown = f", got {value!r}" if re.match("Expected .* (of|<|>|>=|<=) |Expected.*match", detail) else ""
    return f"{'.'.join(keys) or 'scenario'}: {detail[:1].lower()}{detail[1:]}{shown}"
