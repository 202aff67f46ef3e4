"""Mutants: does the checker find a bug that is known to be there?

Each file of mutations/ describes one deliberate bug of the engine. It is put into a private copy of the
package, and a run's own engine is started from that copy; driver, faults, probes and checker stay as they
are. The same scenario must pass with an unchanged copy, or the result says nothing (Jia and Harman, "An
Analysis and Survey of the Development of Mutation Testing", 2011: a mutant that no check kills has survived).
"""

import shutil
import tempfile
import tomllib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

import engine
from simulation.campaign.series import Say, judge_one
from simulation.errors import MutationError, SimulationError
from simulation.report.page import write_tables
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.engine_process import private_services
from simulation.target.machine import describe_machine, read_commit
from simulation.target.services import Services

FOLDER: Final = Path(__file__).with_name("mutations")
PACKAGE: Final = Path(engine.__file__).parent
SMALL: Final[dict[str, Any]] = {
    "arrivals.0.seconds": 6,
    "arrivals.0.rate_rps": 1_000,
    "sales.0.stock": 4_000,
    "drain_s": 10,
}
"""Makes single-fault as small as a bug allows."""
UNCHANGED: Final = "unchanged"
TRIES: Final = 2
"""A load that was not as planned says nothing about the engine, and is driven once more."""

Outcome = Literal["caught", "survived", "void"]


class Edit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A piece of the engine's source that is replaced."""

    file: str
    """Its path inside the package."""
    find: Annotated[str, Meta(min_length=1)]
    """It must be there exactly once."""
    replace: str


class Mutation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A deliberate bug, and the run that should find it."""

    name: str
    text: str
    """What the engine does wrong, in plain words."""
    breaks: Annotated[list[str], Meta(min_length=1)]
    """The checks of which at least one must find it, by their names."""
    edits: Annotated[list[Edit], Meta(min_length=1)]
    scenario: str = "single-fault"
    changes: dict[str, Any] = {}
    """Dotted keys of the scenario and their values, as `flashsim run --set` takes them."""

    def load_scenario(self) -> Scenario:
        """The scenario with its changes. Raises ScenarioError."""
        return load_scenario(self.scenario, SMALL | self.changes)


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One mutation: what a run with it gave."""

    name: str
    text: str
    scenario: str
    """Its name, and the faults that it does."""
    outcome: Outcome
    """Void where the run with an unchanged engine did not pass, or none was as planned."""
    verdict: str | None
    caught_by: list[str]
    """The checks that are broken, those that were to be first."""
    detail: str
    """What the first of them found, or why there is no result."""


class Mutants(msgspec.Struct, frozen=True, kw_only=True):
    """All trials, and where they come from."""

    command: str
    started_at: datetime
    commit: str
    machine: dict[str, str | int]
    trials: list[Trial]


def list_mutations() -> list[str]:
    """The names of all mutations."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_mutation(name: str, folder: Path = FOLDER) -> Mutation:
    """The mutation of that name. Raises MutationError in one line."""
    path = folder / f"{name}.toml"
    try:
        return msgspec.convert({"name": name} | tomllib.loads(path.read_text(encoding="utf-8")), Mutation)
    except FileNotFoundError:
        raise MutationError(f"no mutation {name!r}; there are: {', '.join(list_mutations())}") from None
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise MutationError(f"{path}: {error}") from None


def copy_engine(folder: Path, source: Path = PACKAGE) -> None:
    """Copies the package, without its tests, to `folder`/engine."""
    shutil.copytree(source, folder / "engine", ignore=shutil.ignore_patterns("tests", "__pycache__"))


def mutate(mutation: Mutation, folder: Path) -> list[Path]:
    """Makes the edits in the copy of the package at `folder`/engine; the files that changed.

    Raises MutationError, in one line, where a piece is not there exactly once, or an edit changes nothing.
    """
    changed = []
    for number, edit in enumerate(mutation.edits):
        place = f"{mutation.name}: edits.{number}"
        path = folder / "engine" / edit.file
        if not path.is_file():
            raise MutationError(f"{place}.file: the engine has no {edit.file}")
        source = path.read_text(encoding="utf-8")
        if (found := source.count(edit.find)) != 1:
            raise MutationError(
                f"{place}.find: must be in {edit.file} once, is there {found} times: {edit.find}"
            )
        mutated = source.replace(edit.find, edit.replace)
        if mutated == source:
            raise MutationError(f"{place}.replace: changes nothing")
        path.write_text(mutated, encoding="utf-8")
        changed.append(path)
    return changed


def make_copies(mutations: Sequence[Mutation], folder: Path) -> None:
    """Makes an unchanged copy of the package, and one with each mutation, by name. Raises MutationError."""
    # All from the first: the working tree may change meanwhile.
    copy_engine(folder / UNCHANGED)
    for mutation in mutations:
        copy_engine(folder / mutation.name, folder / UNCHANGED / "engine")
        mutate(mutation, folder / mutation.name)


async def run_mutants(mutations: Sequence[Mutation], folder: Path, say: Say, command: str) -> None:
    """Runs each of the mutations and writes the tables; raises what `run` raises, and MutationError."""
    result = Mutants(
        command=command,
        started_at=datetime.now(UTC),
        commit=read_commit(),
        machine=describe_machine(),
        trials=[],
    )
    with tempfile.TemporaryDirectory(prefix="flashsim-mutants-") as place:
        make_copies(mutations, copies := Path(place))
        async with private_services(say) as services:
            laboratory = Laboratory(copies, folder, services)
            for number, mutation in enumerate(mutations, 1):
                result.trials.append(trial := await laboratory.attempt(mutation))
                by = f" by: {', '.join(trial.caught_by)}" if trial.caught_by else f": {trial.detail}"
                say(f"{number} of {len(mutations)}: {mutation.name} {trial.outcome}{by}")
                # Written after each: what was found stays if it is interrupted.
                write_mutants(result, folder)


class Laboratory:
    """Runs the copies of `make_copies` on one set of services; what fails leaves its record in `folder`."""

    def __init__(self, copies: Path, folder: Path, services: Services) -> None:
        self._copies = copies
        self._folder = folder
        self._services = services
        self._controls: list[tuple[Scenario, dict[str, Any]]] = []

    async def attempt(self, mutation: Mutation) -> Trial:
        """Runs a mutation, and what it is compared with."""
        scenario = mutation.load_scenario()
        try:
            control = await self._control(scenario, mutation.name)
            if control["verdict"] != "pass":
                return judge_trial(mutation, scenario, None, f"unchanged: {_explain(control)}")
            summary = await self._run(scenario, mutation.name, self._copies / mutation.name)
        except SimulationError as error:
            return judge_trial(mutation, scenario, None, str(error))
        return judge_trial(mutation, scenario, summary, _explain(summary))

    async def _control(self, scenario: Scenario, name: str) -> dict[str, Any]:
        """What the unchanged engine makes of the scenario; each is run once."""
        for known, summary in self._controls:
            if known == scenario:
                return summary
        summary = await self._run(scenario, name, self._copies / UNCHANGED)
        self._controls.append((scenario, summary))
        return summary

    async def _run(self, scenario: Scenario, name: str, code: Path) -> dict[str, Any]:
        """The summary of a run for the mutation of that name."""
        summary: dict[str, Any] = {}
        label = name if code.name == name else f"{name}-{code.name}"
        for number in range(1, TRIES + 1):
            place = self._folder / (label if number == 1 else f"{label}-{number}")
            summary = await judge_one(scenario, place, self._services, f"flashsim mutants {name}", code=code)
            if summary["verdict"] != "unknown":
                break
        return summary


def judge_trial(
    mutation: Mutation, scenario: Scenario, summary: dict[str, Any] | None, explanation: str
) -> Trial:
    """The result of a mutation whose run gave `summary`; None where there is nothing to compare it with."""
    checks = summary["checks"] if summary else []
    broken = {check["name"]: check["detail"] for check in checks if check["holds"] is False}
    caught_by = sorted(broken, key=lambda name: name not in mutation.breaks)
    faults = [f"{fault.kind} {fault.on}" for fault in scenario.timeline()]
    outcome: Outcome = "void"
    if broken.keys() & set(mutation.breaks):
        outcome = "caught"
    elif summary and summary["verdict"] != "unknown":
        outcome = "survived"
    return Trial(
        name=mutation.name,
        text=mutation.text,
        scenario=", ".join([scenario.name, *faults]),
        outcome=outcome,
        verdict=summary["verdict"] if summary else None,
        caught_by=caught_by,
        detail=broken[caught_by[0]] if caught_by else explanation,
    )


def write_mutants(result: Mutants, folder: Path) -> None:
    """Writes the result as JSON, Markdown and HTML."""
    caught = sum(trial.outcome == "caught" for trial in result.trials)
    write_tables("mutants", result, folder, good=caught, total=len(result.trials))


def _explain(summary: dict[str, Any]) -> str:
    return " ".join(filter(None, [summary["verdict_in_words"], summary["load"]["reason"]]))
