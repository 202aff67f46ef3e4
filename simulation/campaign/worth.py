"""What the design is worth: the same crowd and faults at the textbook and at Flashgrid, and both rates.

Writes worth.json, worth.md and worth.html into its folder, beside the record of each run and a brief report.
"""

import asyncio
import json
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import pandas as pd

from engine.bus.connection import connect_bus
from simulation.campaign.suite import Suite, empty_services, tell_duration
from simulation.errors import RunError
from simulation.record.facts import read_facts, read_part
from simulation.record.history import read_history
from simulation.record.series import drop_record
from simulation.report.page import write_tables
from simulation.run import Say, run
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.foreign.engine import FLASHGRID_ENGINE, Engine, find_engine
from simulation.target.services import Services
from simulation.verdict import judge_run, write_products

RUN_S: Final = 30
"""What a run takes, with its start and its end."""
RATE: Final = 600.0
"""Purchases a second of the runs that are judged: what both engines can do."""
TRIES: Final = 5
"""How often a fault is done again, with another seed, while the textbook passes it."""
_CROWD: Final[dict[str, Any]] = {
    "arrivals.0.seconds": 9,
    "population.keyed_share": 0.0,
    "driver.timeout_ms": 8_000,
    "driver.late_p99_ms": 60_000,
    "drain_s": 30,
}
"""Changes of the scenario single-fault. It is about units: a late request is as good as any."""
_PATIENCE: Final[dict[str, Any]] = {
    "driver.timeout_ms": 1_500,
    "population.patience": {"after": ["UNKNOWN", "UNAVAILABLE"], "pause_ms": 500.0, "most": 5},
    "faults": [{"kind": "freeze", "on": "redis", "at_s": 2.0, "seconds": 3.0}],
}
NO_FAULT: Final = "spike without faults"
KILL: Final = "front door killed in mid-sale"
"""These two have scenarios of their own."""
CASES: Final[dict[str, dict[str, Any]]] = {
    NO_FAULT: {},
    KILL: {},
    "answers of Redis lost": {
        "faults": [{"kind": "drop_replies", "on": "redis", "at_s": 2.0, "seconds": 2.0, "share": 0.3}]
    },
    "bus restarted": {"faults": [{"kind": "restart", "on": "rabbitmq", "at_s": 2.0, "seconds": 0.5}]},
    "Redis emptied": {"faults": [{"kind": "flush", "on": "redis", "at_s": 2.0, "seconds": 1.5}]},
    "retries without keys": _PATIENCE,
    "retries with keys": {**_PATIENCE, "population.keyed_share": 1.0},
}
"""The changes of each case."""
OFFERED: Final = 12_000.0
"""Purchases a second when the rates are measured: more than the textbook can do."""
WINDOW_S: Final = (1.0, 4.0)
"""The part of that load in which answers are counted."""
STATES: Final = {"accepting": 10**6, "sold out": 0}
"""The stock in each state in which a rate is measured."""


class Plan(NamedTuple):
    """A scenario of the library, with changes."""

    scenario: str
    changes: Mapping[str, Any]
    rate_rps: float
    seed: int

    def load(self) -> Scenario:
        """Return the scenario."""
        return load_scenario(self.scenario, self.changes, rate_rps=self.rate_rps, seed=self.seed)

    def write_command(self, engine: Engine) -> str:
        """Return the command that runs it once more."""
        words = [
            "flashsim",
            "run",
            self.scenario,
            "--rate",
            f"{self.rate_rps:.15g}",
            "--seed",
            str(self.seed),
        ]
        words += ["--engine", engine.name] if engine.described else []
        for key, value in self.changes.items():
            words += ["--set", f"{key}={_write_toml(value)}"]
        return shlex.join(words)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one case gave at one engine."""

    engine: str
    folder: str
    """Where its record is."""
    seed: int
    tries: int
    verdict: str
    verdict_in_words: str
    broken: list[str]
    """The rules that are broken."""
    accepted: int
    sold: int | None
    lost: int
    """Units that are neither for sale nor in an order, or accepted purchases without an order."""
    oversold: int
    """Units confirmed, or promised to buyers, beyond the stock."""
    stranded: int
    """Purchases that never came to an end."""
    again: int
    """Orders beyond one for each purchase that somebody meant."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One case at both engines."""

    name: str
    textbook: Outcome
    flashgrid: Outcome


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Answers a second at both engines."""

    state: str
    offered_rps: float
    textbook_rps: float
    flashgrid_rps: float


class Worth(Suite, kw_only=True):
    """All cases and rates, and where they come from."""

    rate_rps: float
    cases: list[Case] = msgspec.field(default_factory=list)
    rates: list[Rate] = msgspec.field(default_factory=list)


async def run_worth(
    names: Sequence[str], rate_rps: float, folder: Path, services: Services, say: Say, command: str
) -> Worth:
    """Run each of the cases at both engines, measure the rates, write the page. Raises what `run` raises."""
    worth = Worth(command=command, rate_rps=rate_rps)
    engines = [find_engine("textbook", None), FLASHGRID_ENGINE]
    tell_duration(2 * (len(names) + len(STATES)), RUN_S, say)
    for name in names:
        first = await _try_case(name, rate_rps, engines[0], folder, services)
        second = await _run_case(name, rate_rps, first.seed, engines[1], folder, services, 1)
        worth.cases.append(Case(name=name, textbook=first, flashgrid=second))
        say(f"{name}: textbook {first.verdict}, Flashgrid {second.verdict}")
        write_worth(worth, folder)
    for state, stock in STATES.items():
        found = [await _measure_rate(state, stock, engine, folder, services) for engine in engines]
        worth.rates.append(
            Rate(state=state, offered_rps=OFFERED, textbook_rps=found[0], flashgrid_rps=found[1])
        )
        say(f"{state}: textbook {found[0]:,.0f}/s, Flashgrid {found[1]:,.0f}/s")
        write_worth(worth, folder)
    return worth


async def _try_case(name: str, rate_rps: float, engine: Engine, folder: Path, services: Services) -> Outcome:
    """Run a case; with a fault it is run again, with the next seed, until it shows or TRIES are over."""
    for tries in range(1, TRIES + 1):
        outcome = await _run_case(name, rate_rps, tries, engine, folder, services, tries)
        if outcome.verdict == "fail" or (outcome.verdict == "pass" and name == NO_FAULT):
            break
    return outcome


def plan_case(name: str, rate_rps: float, seed: int) -> Plan:
    """Return the scenario of a case."""
    if name == NO_FAULT:
        changes = {key: _CROWD[key] for key in ("driver.late_p99_ms", "drain_s")}
        return Plan("spike", changes | {"sales.0.stock": round(rate_rps * 2)}, rate_rps, seed)
    if name == KILL:
        # A rush of eight times that rate, for a second.
        return Plan("kill", {"sales.0.stock": round(rate_rps * 10)}, rate_rps * 8, seed)
    changes = _CROWD | {"sales.0.stock": round(rate_rps * 6)} | CASES[name]
    return Plan("single-fault", changes, rate_rps, seed)


def _write_toml(value: Any) -> str:
    """Return a value as `--set` takes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_write_toml(each)}" for key, each in value.items()) + "}"
    return f"[{', '.join(map(_write_toml, value))}]" if isinstance(value, list) else json.dumps(value)


async def _run_case(
    name: str, rate_rps: float, seed: int, engine: Engine, folder: Path, services: Services, tries: int
) -> Outcome:
    place = folder / f"{name.replace(' ', '-').lower()}-{engine.name}"
    summary = await _run_one(plan_case(name, rate_rps, seed), engine, place, services)
    (place / "engine.log").unlink(missing_ok=True)
    return make_outcome(summary, engine.name, place.name, seed, tries)


def make_outcome(summary: dict[str, Any], engine: str, folder: str, seed: int, tries: int) -> Outcome:
    """Return what a run gave, from its summary."""
    checks = {check["name"]: check for check in summary["checks"]}
    broken = {name: check["violations"] for name, check in checks.items() if check["state"] == "broken"}
    stock, retries = summary["stock"], summary["retries"]
    return Outcome(
        engine=engine,
        folder=folder,
        seed=seed,
        tries=tries,
        verdict=summary["verdict"],
        verdict_in_words=summary["verdict_in_words"],
        broken=sorted(broken),
        accepted=summary["outcomes"]["accepted"],
        sold=stock["sold"],
        lost=broken.get("units are conserved", 0) + broken.get("accepted is settled", 0),
        oversold=(stock["oversold"] or 0) + (summary["fulfilment"]["rejected"] or 0),
        stranded=broken.get("nothing is stranded", 0),
        again=(retries["keyed_bought_again"] or 0) + (retries["unkeyed_bought_again"] or 0),
    )


async def _run_one(plan: Plan, engine: Engine, place: Path, services: Services) -> dict[str, Any]:
    """Run a scenario on emptied services, in a new folder, and write its summary and a brief report."""
    shutil.rmtree(place, ignore_errors=True)
    if engine.described and engine.described.sql and engine.described.sql.queue:
        async with (
            await connect_bus(str(services.amqp_url), "worth") as bus,
            bus.channel() as channel,
        ):
            await channel.queue_delete(engine.described.sql.queue)
    async with empty_services(services) as fresh:
        command = plan.write_command(engine)
        await run(plan.load(), place, lambda _: None, services=fresh, engine=engine, command=command)
    summary = await asyncio.to_thread(judge_run, place)
    await asyncio.to_thread(write_products, place, summary, True)
    return summary


async def _measure_rate(state: str, stock: int, engine: Engine, folder: Path, services: Services) -> float:
    """Return the answers a second of an engine that is offered more than it can do."""
    changes = _CROWD | {
        "arrivals.0.seconds": WINDOW_S[1] + 0.5,
        "sales.0.stock": stock,
        "driver.connections": 256,
        "driver.timeout_ms": 2_000,
        "driver.may_give_up": True,
    }
    place = folder / f"rate-{state.replace(' ', '-')}-{engine.name}"
    await _run_one(Plan("single-fault", changes, OFFERED, 1), engine, place, services)
    rate = count_answers(read_history(place / "history.parquet"))
    drop_record(place)
    return rate


def count_answers(history: pd.DataFrame) -> float:
    """Return the purchases that were decided a second within WINDOW_S."""
    decided = history[history["outcome"].isin(["ACCEPTED", "SOLD_OUT"])]
    done_s = decided["done_ns"].astype("float64") / 1e9
    return round(float(done_s.between(*WINDOW_S).sum()) / (WINDOW_S[1] - WINDOW_S[0]), 1)


def draw_again(folder: Path) -> None:
    """Write the page, and the report of each run whose record is kept, from what is in the folder.

    Raises RunError if it can't be read.
    """
    worth = read_part(folder, "worth.json", Worth)
    if worth is None:
        raise RunError(f"{folder}: has no worth.json")
    for case in worth.cases:
        for outcome, engine in (
            (case.textbook, find_engine("textbook", None)),
            (case.flashgrid, FLASHGRID_ENGINE),
        ):
            place, plan = folder / outcome.folder, plan_case(case.name, worth.rate_rps, outcome.seed)
            # An older record may name a command that repeats another scenario.
            repeats = plan.load() == read_facts(place).scenario
            changes = {"command": plan.write_command(engine)} if repeats else {}
            write_products(place, judge_run(place) | changes, brief=True)
    write_worth(worth, folder)


def write_worth(worth: Worth, folder: Path) -> None:
    """Write all as JSON, Markdown and HTML."""
    verdicts = [case.flashgrid.verdict for case in worth.cases]
    write_tables("worth", worth, folder, good=verdicts.count("pass"), total=len(verdicts))
