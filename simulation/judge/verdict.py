"""The verdict on a run: every rule judged, and what follows from all of them together."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal

import msgspec
import pandas as pd

from simulation.judge.asked import Asked
from simulation.judge.numbers.recovery import count_alone
from simulation.judge.rules import orders, refusals, service, stock, terms
from simulation.judge.rules.evidence import PLACES, Breach, Evidence, Finding, Unknown
from simulation.judge.rules.misfits import BUY, ORDERS, READS, REFUSALS, REQUESTS, find_misfits
from simulation.judge.rules.reads import reads_are_true
from simulation.judge.rules.service import is_broken, suppose_hand_overs
from simulation.model.events import Recovery
from simulation.model.state import TRIAL, FinalState

Verdict = Literal["pass", "fail", "unknown"]
State = Literal["held", "broken", "not exercised", "not judged"]
Rule = Callable[[Evidence], Finding]
UNSEEN: Final = "orders of unknown outcomes can't be seen"
"""Why a rule is not judged by a witness that only knows what clients were told of."""
MISFIT: Final = "the description may not fit this engine"
HANDED_OVER: Final = "everybody was turned away for seconds, as while a store is handed over"
"""Why a rule is not judged at an engine that others look after."""
RULES: Final[tuple[Rule, ...]] = (
    terms.terms_are_as_asked,
    stock.no_oversell,
    orders.accepted_is_settled,
    orders.order_ids_are_unique,
    orders.no_phantom_orders,
    stock.units_are_conserved,
    stock.nothing_is_stranded,
    stock.user_limit_is_kept,
    orders.a_key_buys_once,
    orders.a_key_tells_the_truth,
    refusals.sold_out_means_sold_out,
    stock.demand_empties_the_stock,
    refusals.refusals_are_true,
    terms.sales_keep_their_hours,
    service.no_server_errors,
    service.the_sale_happened,
    orders.no_dead_letters,
    stock.guard_never_needed,
    orders.payment_decides,
    reads_are_true,
)
"""The rules that every correct run obeys. Each docstring is shown in the report as the rule's meaning.

A rule calls broken only what no correct engine can have done: an unknown outcome, a release, or a retry under
the same Idempotency-Key is given its most innocent reading.
"""

OF_ALL: Final[frozenset[Rule]] = frozenset(
    (
        stock.no_oversell,
        stock.user_limit_is_kept,
        stock.guard_never_needed,
        orders.a_key_buys_once,
        orders.payment_decides,
    )
)
"""Rules that hold only if they hold of every order; a breach is certain by the orders that can be seen."""
OF_ANSWERS: Final[frozenset[Rule]] = frozenset((service.no_server_errors, orders.order_ids_are_unique))
"""Rules that need no orders but those that clients were told of."""
OF_STORES: Final[frozenset[Rule]] = frozenset((stock.no_oversell, stock.user_limit_is_kept))
"""Rules that a store breaks by itself, whatever clients were told, if it shows all its orders."""
OF_REFUSALS: Final[frozenset[Rule]] = frozenset(
    (
        service.no_server_errors,
        service.the_sale_happened,
        refusals.sold_out_means_sold_out,
        refusals.refusals_are_true,
        stock.demand_empties_the_stock,
    )
)
"""Rules that look at how purchases were refused."""
BY_SUMS: Final[frozenset[Rule]] = frozenset(
    (stock.units_are_conserved, stock.demand_empties_the_stock, service.the_sale_happened)
)
"""Rules that count what all orders hold: without some of them they say nothing."""

OF_SERVICE: Final[frozenset[Rule]] = frozenset(
    (service.no_server_errors, service.the_sale_happened, reads_are_true)
)
"""Rules about requests that are turned away, for which a hand-over of a store may be the reason."""


class Check(msgspec.Struct, frozen=True):
    """One rule or threshold, judged."""

    name: str
    holds: bool | None
    """For readers of older summaries: None where it was not judged, False where it is broken."""
    violations: int
    detail: str
    meaning: str
    state: State
    """Tested and held, broken, not exercised by this run, or not judged, since something is not known."""
    chances: int
    """How often it could have been broken."""
    named: list[str] = []
    """Some of what breaks it, as `flashsim explain` takes it: "order 01a2…", "op 17", "user 5"."""


def make_check(
    name: str,
    violations: int | None,
    detail: str,
    meaning: str = "",
    chances: int = 1,
    named: Sequence[str] = (),
) -> Check:
    """Return a check; without a number of violations it is not judged, without chances not exercised."""
    state: State = "not judged" if violations is None else "broken" if violations else "held"
    if state == "held" and not chances:
        state = "not exercised"
    holds = {"not judged": None, "broken": False}.get(state, True)
    chances = 0 if violations is None else chances
    return Check(name, holds, violations or 0, detail, meaning, state, chances, list(named))


def judge(
    history: pd.DataFrame,
    state: FinalState,
    asked: Asked,
    reads: pd.DataFrame | None = None,
    timeline: pd.DataFrame | None = None,
    rules: Sequence[Rule] = RULES,
) -> list[Check]:
    """Return a check for each of the rules.

    `history` has the columns of simulation.model.history, of purchases alone; `reads` has the same columns,
    if there were any reads. `timeline` is what the probes read meanwhile.
    """
    evidence = gather(history, state, asked, reads, timeline)
    misfits, supposed = find_misfits(evidence), suppose_hand_overs(evidence)
    return [_apply(rule, evidence, misfits, supposed) for rule in rules]


def gather(
    history: pd.DataFrame,
    state: FinalState,
    asked: Asked,
    reads: pd.DataFrame | None = None,
    timeline: pd.DataFrame | None = None,
) -> Evidence:
    """Return the evidence that the rules read, without reads of a kind whose description does not fit."""
    if reads is not None:
        fitting = ~reads["kind"].astype("str").radd(READS).isin(list(state.misfits))
        reads = _widen(reads[fitting])
    return Evidence(asked, _widen(history), state, reads, pd.DataFrame() if timeline is None else timeline)


def find_breaches(evidence: Evidence) -> dict[str, tuple[Breach, ...]]:
    """Return by the name of each rule where it is broken; leave out rules that can't be judged."""
    found = {}
    for rule in RULES:
        with suppress(Unknown):
            found[name_rule(rule)] = rule(evidence).breaches
    return found


def name_rule(rule: Rule) -> str:
    """Return the name of a rule, as a person reads it."""
    return rule.__name__.replace("_", " ")


def _widen(history: pd.DataFrame) -> pd.DataFrame:
    """Return the history as the rules read it: without null in `key`, and with wider times.

    A request may have begun earlier and ended later by as much as its clock may be wrong: a rule takes it
    that one that ended before another one began came first.
    """
    unsure_ns = history["unsure_ns"]
    return history.assign(
        key=history["key"].fillna(""),
        sent_ns=history["sent_ns"] - unsure_ns,
        done_ns=history["done_ns"] + unsure_ns,
    )


def _may_misfit(rule: Rule, misfits: Mapping[str, str], partial: bool) -> bool:
    """Return whether it may be the engine's description that breaks the rule; `partial` as in FinalState."""
    return (
        ((BUY in misfits or REQUESTS in misfits) and (partial or rule not in OF_STORES))
        or (ORDERS in misfits and rule not in OF_ANSWERS)
        or (REFUSALS in misfits and rule in OF_REFUSALS)
    )


def _apply(
    rule: Rule, evidence: Evidence, misfits: Mapping[str, str], supposed: Evidence | None = None
) -> Check:
    """Judge a rule; `supposed` is the evidence as if something had happened that nobody told."""
    name = name_rule(rule)
    meaning = " ".join((inspect.getdoc(rule) or "").split())
    try:
        violations, detail, chances, breaches = rule(evidence)
    except Unknown as missing:
        return make_check(name, None, str(missing), meaning)
    named = [one for each in breaches for one in each.ask(PLACES)]
    if violations and _may_misfit(rule, misfits, evidence.state.partial):
        doubt = MISFIT
    elif violations and supposed and rule in OF_SERVICE and not is_broken(rule, supposed):
        doubt = HANDED_OVER
    elif rule is reads_are_true and not violations and any(part.startswith(READS) for part in misfits):
        doubt = MISFIT
    elif evidence.is_blind and (rule in BY_SUMS or (rule in OF_ALL and not violations)):
        doubt = UNSEEN
    else:
        return make_check(name, violations, detail, meaning, chances, named)
    return make_check(name, None, f"{detail}; but {doubt}", meaning)


def judge_trial(state: FinalState) -> list[Check]:
    """Return the check of a purchase before the load, where that is shown otherwise than it was answered."""
    words = state.misfits.get(TRIAL)
    meaning = "What the engine holds of a purchase before the load is what it answered, by its description."
    return [make_check("the purchase before the load", 1, words, meaning)] if words else []


def judge_recovery(
    recoveries: Sequence[Recovery], within_s: float, last_s: float, load_valid: bool = True
) -> Check:
    """Return the check of the rule that the engine recovers from every fault by itself, in time.

    Nothing shows a recovery after `last_s`, when the last request was due. Such a fault counts for
    nothing, or leaves the rule not judged if the load went on for a quarter of the time that is allowed.
    Nor is it judged if a recovery was only late, and the load not as planned. Time in which another fault is
    on does not count; where it is most of twice the time that is allowed, nobody knows.
    """
    failed = [each.failed for each in recoveries if each.failed]
    recoveries = [each for each in recoveries if not each.failed]
    times_s = [time_s for each in recoveries if (time_s := count_alone(each, recoveries)) is not None]
    late = sum(time_s > within_s for time_s in times_s)
    # One fault that was not ended may keep the engine from recovering from every other.
    violations = 0 if failed else len(recoveries) - len(times_s) + late
    unseen = [each for each in recoveries if each.end_s + (each.recovered_after_s or 0) > last_s]
    long = any(last_s - each.end_s > within_s / 4 for each in unseen)
    hidden = any((each.recovered_after_s or 0) > 2 * within_s for each in recoveries)
    slow = late == violations > 0 and not load_valid
    longest = f", the longest recovery {max(times_s):.2f} s" if times_s else ""
    return make_check(
        "recovers from faults",
        None if failed or slow or ((long or hidden) and not violations) else violations,
        f"{len(recoveries):,} faults{longest} of at most {within_s:g} s"
        + (f"; the load ended before {len(unseen):,} of them were seen to be over" if unseen else "")
        + ("; but the load was not as planned" if slow else "")
        + ("; other faults hid for how long" if hidden else "")
        + "".join(f"; {words}, so nobody knows whether that fault is over" for words in failed),
        "After every fault, without anybody's help and within the time that the scenario allows (recover_s),"
        " requests are answered as before, and what waited for the ledger drains.",
        chances=len(recoveries) - len(unseen),
    )


def verdict(checks: Sequence[Check], load_valid: bool) -> Verdict:
    """Return `fail` if a check is broken, or else `unknown` if one was not judged, none was tested, or
    the load not as planned."""
    states = Counter(check.state for check in checks)
    if states["broken"]:
        return "fail"
    return "pass" if states["held"] and not states["not judged"] and load_valid else "unknown"


def verdict_in_words(checks: Sequence[Check], load_valid: bool, thresholds: Sequence[Check] = ()) -> str:
    """Return the verdict in one sentence or two: first about the rules, then about the thresholds."""
    broken = [check.name for check in checks if check.state == "broken"]
    unjudged = [check.name for check in checks if check.state == "not judged"]
    missed = [f"{each.name} ({each.detail})" for each in thresholds if each.state == "broken"]
    doubtful = [f"{each.name} ({each.detail})" for each in thresholds if each.state == "not judged"]
    asked = f"{len(thresholds)} threshold{'s' if len(thresholds) != 1 else ''}"
    words = f"{count_states(checks)}."
    if broken:
        words = f"{len(broken)} of {len(checks)} rules broken: {', '.join(broken)}. {words}"
    elif unjudged:
        words += f" No rule is known to be broken, but {len(unjudged)} could not be judged: "
        words += f"{', '.join(unjudged)}."
    if not load_valid:
        words += " The driver did not keep its schedule: this is not the planned load."
    if missed:
        words += f" {len(missed)} of {asked} missed: {', '.join(missed)}."
    elif doubtful:
        words += f" {len(doubtful)} of {asked} could not be judged: {', '.join(doubtful)}."
    return words


def count_states(checks: Sequence[Check]) -> str:
    """Return how many rules were tested and held, and how many were not: "12 rules tested and held, 4
    not exercised"."""
    states = Counter(check.state for check in checks)
    held = f"{states['held']} rule{'s' if states['held'] != 1 else ''} tested and held"
    return ", ".join(
        [held, *(f"{states[word]} {word}" for word in ("not exercised", "not judged") if states[word])]
    )
