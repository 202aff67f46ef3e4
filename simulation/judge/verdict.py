"""The verdict on a run: a pure function of what the clients saw and what the stores held at the end."""

import inspect
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
import pandas as pd

from simulation.judge.evidence import Evidence, Unread
from simulation.judge.rules import RULES, Rule
from simulation.model.events import Restocked
from simulation.model.state import FinalState

Verdict = Literal["pass", "fail", "unknown"]


class Check(msgspec.Struct, frozen=True):
    """One rule, judged: `holds` is None where a part of the record that it needs could not be read."""

    name: str
    holds: bool | None
    violations: int
    detail: str
    meaning: str


def judge(
    history: pd.DataFrame,
    state: FinalState,
    *,
    gate_loss: bool = False,
    declines: Callable[[str], bool] | None = None,
    restocks: Sequence[Restocked] = (),
) -> list[Check]:
    """Judge a run by every rule.

    `history` has the columns of simulation.history; `gate_loss` says that the gate was made to forget;
    `declines` tells whether payment declines an order id, where that is known; `restocks` is what was opened
    under the load.
    """
    evidence = Evidence(history, state, gate_loss, declines, restocks)
    return [_apply(rule, evidence) for rule in RULES]


def _apply(rule: Rule, evidence: Evidence) -> Check:
    name = rule.__name__.replace("_", " ")
    meaning = " ".join((inspect.getdoc(rule) or "").split())
    try:
        violations, detail = rule(evidence)
    except Unread as missing:
        return Check(name, None, 0, str(missing), meaning)
    return Check(name, violations == 0, violations, detail, meaning)


def verdict(checks: Sequence[Check], load_valid: bool) -> Verdict:
    """`fail` if any is broken; `unknown` if any could not be judged or the load was not as planned."""
    if any(check.holds is False for check in checks):
        return "fail"
    if not checks or not load_valid or any(check.holds is None for check in checks):
        return "unknown"
    return "pass"


def verdict_in_words(checks: Sequence[Check], load_valid: bool, thresholds: Sequence[Check] = ()) -> str:
    """The verdict as one sentence, or two: first what the rules say, then the thresholds."""
    broken = [check.name for check in checks if check.holds is False]
    unjudged = [check.name for check in checks if check.holds is None]
    missed = [f"{each.name} ({each.detail})" for each in thresholds if each.holds is False]
    unmeasured = [each.name for each in thresholds if each.holds is None]
    asked = f"{len(thresholds)} threshold{'s' if len(thresholds) != 1 else ''}"
    if broken:
        words = f"{len(broken)} of {len(checks)} rules broken: {', '.join(broken)}."
    elif unjudged:
        words = (
            f"No rule is known to be broken, but {len(unjudged)} could not be judged: {', '.join(unjudged)}."
        )
    elif not load_valid:
        words = "No rule is broken, but the driver did not keep its schedule: this is not the planned load."
    else:
        words = f"All {len(checks)} rules hold: no unit was sold twice, and no accepted purchase was lost."
    if missed:
        words += f" {len(missed)} of {asked} missed: {', '.join(missed)}."
    elif unmeasured:
        words += f" {len(unmeasured)} of {asked} could not be measured: {', '.join(unmeasured)}."
    return words
