"""Mutants: does the judge find a bug that is known to be there?

Each mutation is put into a private copy of the engine's package, and a run starts its engine from that copy;
driver, faults, probes and judge stay as they are. The same scenario must pass with an unchanged copy, or the
result says nothing (Jia and Harman, "An Analysis and Survey of the Development of Mutation Testing", 2011: a
mutant that no check kills has survived).
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from simulation.campaign.mutation import Mutation, copy_engine, mutate
from simulation.campaign.suite import Suite, explain, judge_planned, tell_duration
from simulation.errors import SimulationError
from simulation.record.manifest import UNTOUCHED
from simulation.report.page import write_tables
from simulation.run import Say
from simulation.scenario.schema import Scenario
from simulation.target.services import Services

UNCHANGED: Final = "unchanged"
RUN_S: Final = 20
"""What a bug takes: its own run, and mostly one without it."""

Outcome = Literal["caught", "survived", "void"]


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One mutation: what a run with it gave."""

    name: str
    text: str
    scenario: str
    """Its name, and the faults that it does."""
    outcome: Outcome
    """Void if the run with an unchanged engine did not pass, or no load was as planned."""
    verdict: str | None
    caught_by: list[str]
    """The checks that are broken; first those that should be."""
    detail: str
    """What the first of these checks found, or why there is no result."""
    folder: str = ""
    """Where the report of its run is, beside the table; empty without one."""

    @property
    def alone(self) -> bool:
        """Whether one check alone catches the bug: without it nobody would notice."""
        return self.outcome == "caught" and len(self.caught_by) == 1


class Mutants(Suite, kw_only=True):
    """All trials, and where they come from."""

    trials: list[Trial] = msgspec.field(default_factory=list)
    rules: list[str] = msgspec.field(default_factory=list)
    """Every check that judged a run; but for that of the record, which no engine can break."""

    def coverage(self) -> dict[str, tuple[list[str], list[str]]]:
        """Return by rule the bugs that it alone catches, and those that it catches together with others."""
        return {
            rule: (
                [trial.name for trial in self.trials if trial.alone and rule in trial.caught_by],
                [trial.name for trial in self.trials if not trial.alone and rule in trial.caught_by],
            )
            for rule in self.rules
        }


async def run_mutants(
    mutations: Sequence[Mutation], folder: Path, services: Services, say: Say, command: str
) -> Mutants:
    """Run each of the mutations and write the tables; of a run that can't be made they say why."""
    result = Mutants(command=command)
    tell_duration(len(mutations), RUN_S, say)
    controls: dict[bytes, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="flashsim-mutants-") as place:
        copies = Path(place)
        # All copies are of this one: the working tree may change meanwhile.
        copy_engine(copies / UNCHANGED)
        for number, mutation in enumerate(mutations, 1):
            trial = await _attempt(mutation, copies, folder, services, controls)
            result.trials.append(trial)
            judged = [check["name"] for summary in controls.values() for check in summary["checks"]]
            result.rules = [name for name in dict.fromkeys(judged) if name != UNTOUCHED]
            alone = "alone " if trial.alone else ""
            by = f" {alone}by: {', '.join(trial.caught_by)}" if trial.caught_by else f": {trial.detail}"
            say(f"{number} of {len(mutations)}: {mutation.name} {trial.outcome}{by}")
            # Written after each: what was found stays if the suite is interrupted.
            write_mutants(result, folder)
    return result


async def _attempt(
    mutation: Mutation,
    copies: Path,
    folder: Path,
    services: Services,
    controls: dict[bytes, dict[str, Any]],
) -> Trial:
    """Run a mutation, after the unchanged engine has run the same scenario.

    `controls` keeps the summaries of the unchanged engine by scenario: it runs each of them once.
    """
    scenario, command = mutation.load_scenario(), f"flashsim mutants {mutation.name}"

    def is_caught(summary: dict[str, Any]) -> bool:
        broken = {check["name"] for check in summary["checks"] if check["state"] == "broken"}
        return not broken.isdisjoint(mutation.breaks)

    try:
        key = msgspec.json.encode(scenario)
        if key not in controls:
            place = folder / f"{mutation.name}-{UNCHANGED}"
            passed = await judge_planned(scenario, place, services, command, copies / UNCHANGED)
            controls[key] = passed.summary
        control = controls[key]
        if control["verdict"] != "pass":
            return judge_trial(mutation, scenario, None, f"unchanged: {explain(control)}")
        copy_engine(copies / mutation.name, copies / UNCHANGED / "engine")
        mutate(mutation, copies / mutation.name)
        place = folder / mutation.name
        judged = await judge_planned(
            scenario, place, services, command, copies / mutation.name, is_expected=is_caught
        )
    except SimulationError as error:
        return judge_trial(mutation, scenario, None, str(error))
    trial = judge_trial(mutation, scenario, judged.summary, explain(judged.summary))
    return msgspec.structs.replace(trial, folder=judged.folder.name)


def judge_trial(
    mutation: Mutation, scenario: Scenario, summary: dict[str, Any] | None, explanation: str
) -> Trial:
    """Return the result of a mutation whose run gave `summary`; None without a control that passes."""
    checks = summary["checks"] if summary else []
    broken = {check["name"]: check["detail"] for check in checks if check["state"] == "broken"}
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
    """Write the result as JSON, Markdown and HTML."""
    caught = sum(trial.outcome == "caught" for trial in result.trials)
    write_tables("mutants", result, folder, good=caught, total=len(result.trials))


def tell_coverage(result: Mutants, say: Say) -> None:
    """Tell for each rule which bugs it alone catches, and which rules have none."""
    coverage = result.coverage()
    for rule, (alone, _) in coverage.items():
        if alone:
            say(f"{rule} alone catches {', '.join(alone)}")
    if idle := [rule for rule, (alone, _) in coverage.items() if not alone]:
        say(f"no bug that was tried is caught alone by: {', '.join(idle)}")
