"""What a rule found, and how it is put into words."""

from collections.abc import Iterable
from itertools import islice
from typing import Any, Final, NamedTuple

PLACES: Final = 3
"""Most ids that one breach names."""


class Finding(NamedTuple):
    """How often a rule is broken, and the evidence in words."""

    violations: int
    detail: str


class Breach(NamedTuple):
    """One way to break a rule: how often it happened, in words, and where: ids of that kind."""

    times: float
    what: str
    kind: str = ""
    ids: Iterable[Any] = ()

    def __str__(self) -> str:
        ids = list(islice(dict.fromkeys(map(str, self.ids)), PLACES + 1))
        named = ", ".join([*ids[:PLACES], "…"] if len(ids) > PLACES else ids)
        return f"{int(self.times):,} {self.what}" + (f" ({self.kind} {named})" if ids else "")


def find(judged: str, *breaches: Breach) -> Finding:
    """Return the finding of a rule: what it judged, and those of the breaches that happened."""
    happened = [breach for breach in breaches if breach.times]
    return Finding(int(sum(breach.times for breach in happened)), "; ".join([judged, *map(str, happened)]))
