"""The model: Spin tries every order of the protocol's steps (protocol.pml) within the bounds of model.toml.

Spin writes a checker in C for each set of bounds, gcc compiles it, and it visits every state that can be
reached. Without a finding all states were seen; with one, no other finding takes fewer steps.
"""

import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from simulation.campaign.suite import Suite
from simulation.errors import ModelError
from simulation.report.page import write_tables
from simulation.run import Say

MODEL: Final = Path(__file__).with_name("protocol.pml")
PLAN: Final = Path(__file__).with_name("model.toml")
_BOUNDS: Final = ("STOCK", "SALES", "ORDERS", "DOORS", "RELAYS", "KEEPERS", "FAULTS")
_LARGEST_MB: Final = 10_000
_FAIR: Final = ("-a", "-f")
"""Look for a cycle in which what must happen never does, though each process that can take a step does."""


class Check(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One search: bounds and switches of the model, and what it must find."""

    name: str = ""
    text: str
    switches: dict[str, int] = {}
    mutant: bool = False
    """Whether its name is that of something that is done wrong."""
    claim: str | None = None
    """What must happen at last, by its name in the model; None: what must never happen."""
    breaks: str | None = None
    """The words of the model that it must find broken; None: nothing."""
    large: bool = False
    """Whether it takes minutes, and so is not made in CI."""

    @property
    def options(self) -> list[str]:
        """Return what Spin's preprocessor is told."""
        switches = [f"-D{name}={value}" for name, value in self.switches.items()]
        mutant = self.name if self.mutant else "NOTHING"
        return [*switches, f"-DMUTANT={mutant}", *["-DLIVE"] * bool(self.claim)]


class Result(msgspec.Struct, kw_only=True):
    """What a search gave."""

    check: Check
    states: int
    seconds: float
    """Processor time of the checker."""
    memory_mb: float
    broken: str | None
    """What does not hold, in the model's words."""
    steps: list[str]
    """A shortest way there."""
    unfinished: bool = False
    """Whether time or memory was over before all states were seen."""

    @property
    def bounds(self) -> str:
        """Return the bounds in words."""
        given = self.check.switches
        numbers = [f"{given[name]} {name.lower()}" for name in _BOUNDS]
        return ", ".join([*numbers, *(name.lower() for name in given if name not in _BOUNDS and given[name])])

    @property
    def is_right(self) -> bool:
        """Whether it found what it had to find, or nothing where it had to find nothing."""
        return self.broken == self.check.breaks and not self.unfinished


class Results(Suite, kw_only=True):
    """All searches, and where they come from."""

    results: list[Result] = msgspec.field(default_factory=list)


def load_checks(path: Path = PLAN) -> list[Check]:
    """Return the checks: first those of the protocol as it is, then the deliberate bugs."""
    plan = tomllib.loads(path.read_text(encoding="utf-8"))
    return [
        msgspec.convert(
            {**fields, "name": name, "mutant": kind == "mutants"}
            | {"switches": plan["defaults"] | fields.get("switches", {})},
            Check,
        )
        for kind in ("checks", "mutants")
        for name, fields in plan[kind].items()
    ]


def find_missing() -> list[str]:
    """Return the programs that a search needs and that are not there."""
    return [name for name in ("spin", "gcc") if shutil.which(name) is None]


def search(check: Check, within_s: float | None = None, model: Path = MODEL) -> Result:
    """Try every order of steps. Raises ModelError, in one line, if that can't be done to its end."""
    if missing := find_missing():
        raise ModelError(f"{' and '.join(missing)} must be installed: apt-get install spin gcc")
    with tempfile.TemporaryDirectory(prefix="flashsim-model-") as place:
        folder = Path(place)
        shutil.copy(model, folder)
        _run(["spin", *check.options, "-a", model.name], folder)
        _run(["gcc", *_choose_search(check), f"-DMEMLIM={_LARGEST_MB}", "-o", "pan", "pan.c"], folder)
        claim = [*_FAIR, "-N", check.claim] if check.claim else ["-E"]
        began_s = os.times().children_user
        bounded = [f"-Q{within_s // 60:.0f}"] if within_s and within_s >= 60 else []
        said = _run(
            ["./pan", *claim, "-m100000", *bounded], folder, within_s and within_s + 60 * len(bounded)
        )
        seconds = os.times().children_user - began_s
        states = re.search(r"^ *([\d.e+]+) states, stored", said, re.M)
        steps = _tell(check, model.name, folder) if (folder / f"{model.name}.trail").exists() else []
        unfinished = not steps and re.search(r"Search not completed|max search depth too small", said)
        if not states or (unfinished and not check.large):
            raise ModelError(f"{check.name}: the search did not come to its end: {said.strip()[-200:]}")
        return Result(
            check=check,
            states=int(float(states[1])),
            seconds=seconds,
            memory_mb=_read_number(r"([\d.]+)\s+total actual memory", said),
            broken=steps[-1] if steps else None,
            steps=steps[:-1],
            unfinished=bool(unfinished),
        )


def search_all(
    checks: Sequence[Check], folder: Path, say: Say, command: str, within_s: float | None = None
) -> Results:
    """Make these searches and write the table after each. Raises ModelError."""
    result = Results(command=command)
    for number, check in enumerate(checks, 1):
        found = search(check, within_s)
        result.results.append(found)
        outcome = f"{found.broken}, in {len(found.steps)} steps" if found.broken else "nothing is broken"
        outcome += ", and not at its end" * found.unfinished
        say(
            f"{number} of {len(checks)}: {check.name}: {outcome};"
            f" {found.states:,} states in {found.seconds:.1f} s"
        )
        write_results(result, folder)
    return result


def write_results(result: Results, folder: Path) -> None:
    """Write the results as JSON, Markdown and HTML."""
    right = sum(each.is_right for each in result.results)
    write_tables("model", result, folder, good=right, total=len(result.results))


def _choose_search(check: Check) -> list[str]:
    """Return what the checker is compiled with."""
    if check.claim:
        return ["-O0", "-w", "-DNFAIR=3"]
    if check.breaks:
        return ["-O0", "-w", "-DSAFETY", "-DBFS"]  # level by level: what it finds is as short as can be
    # To optimize takes longer than a small search. Of a state in a large one only a hash of 64 bits or more
    # is kept.
    return ["-w", "-DSAFETY", *(["-O2", "-DHC4"] if check.large else ["-O0"])]


def _tell(check: Check, model: str, folder: Path) -> list[str]:
    """Return the steps of the trail that the checker left, and last what is broken."""
    said = _run(["spin", *check.options, "-t", "-p", "-k", f"{model}.trail", model], folder, code=None)
    lines = (folder / model).read_text(encoding="utf-8").splitlines()
    steps: list[str] = []
    before, broken = ("", 0), check.claim or ""
    for line in said.splitlines():
        if step := re.match(r" *\d+:\s+proc +(\d+) \((\w+):1\) \S+?:(\d+) ", line):
            process, name, place = step[1], step[2], int(step[3])
            # A step of a process begins with a choice of its loop.
            if (process, place) != before and lines[place - 1].startswith("  :: ") and name != "judge":
                steps.append(f"{name} {process}, line {place}: {lines[place - 1].strip(' :')}")
            before = (process, place)
        elif line.startswith("      ") and ":" not in line:
            broken = line.strip() or broken
    return [*steps, broken]


def _run(command: Sequence[str], folder: Path, within_s: float | None = None, code: int | None = 0) -> str:
    """Return what a program says. Raises ModelError if it ends with another code, or does not end in time."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, check=False, text=True, timeout=within_s
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{command[0]} did not end in {within_s:g} s") from None
    if code is not None and done.returncode != code:
        raise ModelError(f"{command[0]} failed: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


def _read_number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    return float(found[1]) if found else 0.0
