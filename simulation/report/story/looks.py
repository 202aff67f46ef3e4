"""Which rules looked at a purchase, and what they found about it."""

from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

from simulation.judge.rules.evidence import Breach
from simulation.report.story.story import Look

LOOKED_AT: Final[dict[str, frozenset[str]]] = {
    "terms are as asked": frozenset({"order"}),
    "no oversell": frozenset({"accepted", "order"}),
    "accepted is settled": frozenset({"accepted"}),
    "order ids are unique": frozenset({"accepted"}),
    "no phantom orders": frozenset({"order", "unknown"}),
    "units are conserved": frozenset({"accepted", "order"}),
    "nothing is stranded": frozenset({"accepted", "unknown"}),
    "user limit is kept": frozenset({"order"}),
    "a key buys once": frozenset({"keyed"}),
    "a key tells the truth": frozenset({"keyed"}),
    "sold out means sold out": frozenset({"sold out", "accepted", "unknown"}),
    "demand empties the stock": frozenset({"sold out", "accepted"}),
    "refusals are true": frozenset({"refused"}),
    "sales keep their hours": frozenset({"timed"}),
    "no server errors": frozenset({"sent", "unsent"}),
    "the sale happened": frozenset({"sent"}),
    "no dead letters": frozenset({"accepted", "unknown"}),
    "guard never needed": frozenset({"order"}),
    "payment decides": frozenset({"order"}),
    "reads are true": frozenset({"read", "unknown", "accepted"}),
}
"""What each rule looks at: traits of purchases and reads."""


def find_looks(
    traits: Set[str],
    names: Set[str],
    checks: Sequence[Mapping[str, Any]],
    breaches: Mapping[str, Sequence[Breach]],
) -> list[Look]:
    """Return the rules that looked at what has these traits, and which of their breaches name it.

    `names` are its ids, as breaches name them: "order 01a2…", "op 17", "user 5". `checks` are those of the
    run's summary, `breaches` those of each rule.
    """
    looks = []
    for check in checks:
        found = [each.what for each in breaches.get(check["name"], ()) if not names.isdisjoint(each.ask())]
        if found or traits & LOOKED_AT.get(check["name"], frozenset()):
            looks.append(Look(rule=check["name"], state=check["state"], breaches=found))
    return looks
