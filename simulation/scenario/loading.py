"""Loading a scenario: found by name or path, changed, scaled, validated."""

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from engine.errors import SettingsError
from engine.settings import read_settings
from simulation.errors import ScenarioError
from simulation.scenario.arrivals import expected_requests, peak_rps, read_trace
from simulation.scenario.condition import parse_abort, parse_condition
from simulation.scenario.fault import check_faults
from simulation.scenario.schema import MAX_ID, SaleOffer, Scenario

FOLDER = Path(__file__).parent / "library"


MAX_REQUESTS = 50_000_000
"""Most requests of a scenario: its plan and history are held in memory."""


def _scale_start(sale: SaleOffer, time: float) -> SaleOffer:
    start_s = sale.starts_in_s
    return sale if start_s is None else msgspec.structs.replace(sale, starts_in_s=start_s * time)


def list_scenarios() -> list[str]:
    """The names that `load_scenario` knows by themselves."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def parse_override(text: str) -> tuple[str, Any]:
    """`key=value` as it is given on a command line; the value is TOML, or else a plain string.

    Raises ScenarioError if there is no `=`.
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
    """The scenario of that name, or in that TOML file, with changes.

    `overrides` are dotted keys ("sales.0.stock", "driver.connections") and their values. `rate_rps` scales
    the arrival curve so that its peak is that rate, `duration_s` scales its length; `stock` is the first
    sale's.

    Raises ScenarioError, in one line that names the key at fault.
    """
    path = _find(name_or_path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path}: is not TOML: {error}") from None
    changes = dict(overrides or {})
    if stock is not None:
        changes["sales.0.stock"] = stock
    if seed is not None:
        changes["seed"] = seed
    for key, value in changes.items():
        _override(raw, key, value)
    _read_traces(raw, path)
    scenario = read_scenario(raw, path.name)
    if rate_rps is None and duration_s is None:
        return scenario
    peak = peak_rps(scenario.arrivals)
    rate = 1.0 if rate_rps is None else rate_rps / peak if peak else math.nan
    time = 1.0 if duration_s is None else duration_s / scenario.duration_s()
    for key, scale in (("rate", rate), ("duration", time)):
        if not (math.isfinite(scale) and scale > 0):
            raise ScenarioError(f"{path.name}: {key}: must be greater than 0")
    scaled = [segment.scaled(rate, time) for segment in scenario.arrivals]
    faults = [fault.scaled(time) for fault in scenario.faults]
    sales = [_scale_start(sale, time) for sale in scenario.sales]
    restocks = [msgspec.structs.replace(each, at_s=each.at_s * time) for each in scenario.restocks]
    thresholds = [str(parse_condition(text).scaled(time)) for text in scenario.thresholds]
    # Once more through validation: a scaled segment may be out of bounds.
    changed = msgspec.structs.replace(
        scenario, arrivals=scaled, sales=sales, faults=faults, restocks=restocks, thresholds=thresholds
    )
    return read_scenario(msgspec.to_builtins(changed), path.name)


def read_scenario(raw: Mapping[str, Any], source: str = "scenario") -> Scenario:
    """The scenario in a tree of plain values. Raises ScenarioError, which names the key at fault."""
    try:
        scenario = msgspec.convert(raw, Scenario)
    except msgspec.ValidationError as error:
        raise ScenarioError(f"{source}: {_explain(raw, str(error))}") from None
    known: set[int] = set()
    for number, offer in enumerate(scenario.sales):
        for sale in offer.each():
            if sale.product_id in known:
                raise ScenarioError(
                    f"{source}: sales.{number}.product_id: {sale.product_id} is on sale already"
                )
            if (start_s := sale.starts_in_s or 0) >= scenario.duration_s():
                raise ScenarioError(
                    f"{source}: sales.{number}.starts_in_s: the load lasts {scenario.duration_s():g} s,"
                    f" got {start_s:g}"
                )
            known.add(sale.product_id)
    bots = scenario.population.bots
    if bots and scenario.population.users + bots.users > MAX_ID:
        raise ScenarioError(f"{source}: population.bots.users: there are not so many ids, got {bots.users}")
    scenario = msgspec.structs.replace(
        scenario, sales=[sale for offer in scenario.sales for sale in offer.each()]
    )
    expected = expected_requests(scenario.arrivals)
    if not 1 <= expected <= MAX_REQUESTS:
        raise ScenarioError(f"{source}: arrivals: {expected:,.0f} requests; must be 1 to {MAX_REQUESTS:,}")
    if scenario.chaos and scenario.faults:
        raise ScenarioError(f"{source}: chaos: draws all faults; leave either it or faults out")
    try:
        check_faults(scenario.timeline(), scenario.duration_s())
    except ValueError as error:
        raise ScenarioError(f"{source}: {error}") from None
    for number, restock in enumerate(scenario.restocks):
        if restock.product_id not in known:
            raise ScenarioError(
                f"{source}: restocks.{number}.product_id: {restock.product_id} is not on sale before"
            )
        if restock.at_s >= scenario.duration_s():
            raise ScenarioError(
                f"{source}: restocks.{number}.at_s: the load lasts {scenario.duration_s():g} s,"
                f" got {restock.at_s:g}"
            )
    for number, text in enumerate(scenario.abort_when):
        try:
            parse_abort(text)
        except ValueError as error:
            raise ScenarioError(f"{source}: abort_when.{number}: {text!r}: {error}") from None
    for number, text in enumerate(scenario.thresholds):
        try:
            condition = parse_condition(text)
            if condition.window:
                condition.window.find(scenario.spans(), scenario.duration_s())
        except ValueError as error:
            raise ScenarioError(f"{source}: thresholds.{number}: {text!r}: {error}") from None
    for name, value in scenario.engine.items():
        try:
            read_settings({}, **{name: value})
        except SettingsError as error:
            raise ScenarioError(f"{source}: engine.{name}: {str(error).partition(': ')[2]}") from None
    return scenario


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix == ".toml" or len(path.parts) > 1:
        return path
    if path.name not in list_scenarios():
        raise ScenarioError(f"no scenario {path.name!r}; there are: {', '.join(list_scenarios())}")
    return FOLDER / f"{path.name}.toml"


def _read_traces(raw: Mapping[str, Any], path: Path) -> None:
    """Puts the counts of recorded arrivals into the scenario, so that they are wherever it is."""
    arrivals = raw.get("arrivals")
    for number, segment in enumerate(arrivals if isinstance(arrivals, list) else []):
        if not isinstance(segment, dict) or segment.get("shape") != "trace" or "counts" in segment:
            continue
        if not isinstance(file := segment.get("file"), str):
            raise ScenarioError(f"{path.name}: arrivals.{number}.file: must name the CSV file of a trace")
        counts = read_trace(path.parent / file)
        segment["counts"] = counts
        segment.setdefault("seconds", float(len(counts)))
        segment.setdefault("rate_rps", max(counts))


def _override(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    place: Any = raw
    for part in parents:
        place = _step(place, part, key)
    if isinstance(place, dict):
        place[last] = value
    else:
        _step(place, last, key)
        place[int(last)] = value


def _step(place: Any, part: str, key: str) -> Any:
    if isinstance(place, dict):
        return place.setdefault(part, {})
    if not isinstance(place, list):
        raise ScenarioError(f"{key}: there is no such key")
    if not part.isascii() or not part.isdigit() or int(part) >= len(place):
        raise ScenarioError(f"{key}: {part!r} must be a number below {len(place)}")
    return place[int(part)]


def _explain(raw: Any, message: str) -> str:
    """msgspec's message with the key in front and the value behind."""
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
