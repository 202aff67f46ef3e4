"""The verdict on a run: every rule judged, and what follows from all of them together."""

import inspect
from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec
import pandas as pd

from simulation.judge.numbers.recovery import Recovery
from simulation.judge.rules import orders, refusals, stock
from simulation.judge.rules.evidence import Evidence, Finding, Unread
from simulation.model.events import Restocked
from simulation.model.state import FinalState

Verdict = Literal["pass", "fail", "unknown"]
Rule = Callable[[Evidence], Finding]
RULES: Final[tuple[Rule, ...]] = (
    stock.no_oversell,
    orders.accepted_is_settled,
    orders.order_ids_are_unique,
    orders.no_phantom_orders,
    stock.units_are_conserved,
    stock.nothing_is_stranded,
    stock.user_limit_is_kept,
    orders.a_key_buys_once,
    refusals.sold_out_means_sold_out,
    stock.demand_empties_the_stock,
    refusals.refusals_are_plausible,
    refusals.sales_keep_their_hours,
    orders.no_dead_letters,
    stock.guard_never_needed,
    orders.payment_decides,
)
"""The rules that every correct run obeys. Each docstring is shown in the report as the rule's meaning.

A rule calls broken only what no correct engine can have done: an unknown outcome, a release, or a retry under
the same Idempotency-Key is given its most innocent reading.
"""


class Check(msgspec.Struct, frozen=True):
    """One rule or threshold, judged: `holds` is None where something that it needs could not be read."""

    name: str
    holds: bool | None
    violations: int
    detail: str
    meaning: str


def judge(
    history: pd.DataFrame,
    state: FinalState,
    *,
    declines: Callable[[str], bool] | None = None,
    restocks: Sequence[Restocked] = (),
) -> list[Check]:
    """Return a check for every rule.

    `history` has the columns of simulation.model.history; `declines` says whether payment declines an order
    id, where that is known; `restocks` are the sales that were opened under the load.
    """
    # A request may have begun earlier and ended later by as much as its clock may be wrong: a rule takes it
    # that one that ended before another one began came first.
    unsure_ns = history["unsure_ns"]
    history = history.assign(
        key=history["key"].fillna(""),
        sent_ns=history["sent_ns"] - unsure_ns,
        done_ns=history["done_ns"] + unsure_ns,
    )
    evidence = Evidence(history, state, declines, restocks)
    return [_apply(rule, evidence) for rule in RULES]


def _apply(rule: Rule, evidence: Evidence) -> Check:
    name = rule.__name__.replace("_", " ")
    meaning = " ".join((inspect.getdoc(rule) or "").split())
    try:
        violations, detail = rule(evidence)
    except Unread as missing:
        return Check(name, None, 0, str(missing), meaning)
    return Check(name, violations == 0, violations, detail, meaning)


def judge_recovery(recoveries: Sequence[Recovery]) -> Check:
    """Return the check of the rule that the engine recovers from every fault by itself."""
    times_s = [each.recovered_after_s for each in recoveries if each.recovered_after_s is not None]
    lost = len(recoveries) - len(times_s)
    longest = f", the longest recovery {max(times_s):.2f} s" if times_s else ""
    return Check(
        name="recovers from faults",
        holds=not lost,
        violations=lost,
        detail=f"{len(recoveries):,} faults{longest}",
        meaning="After every fault, without anybody's help, requests are answered as before, and what waited"
        " for the ledger drains.",
    )


def verdict(checks: Sequence[Check], load_valid: bool) -> Verdict:
    """Return `fail` if a check is broken, or else `unknown` if one was not judged or the load not as
    planned."""
    if any(check.holds is False for check in checks):
        return "fail"
    if not checks or not load_valid or any(check.holds is None for check in checks):
        return "unknown"
    return "pass"


def verdict_in_words(checks: Sequence[Check], load_valid: bool, thresholds: Sequence[Check] = ()) -> str:
    """Return the verdict in one sentence or two: first about the rules, then about the thresholds."""
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
