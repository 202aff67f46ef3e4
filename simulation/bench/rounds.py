"""How the benchmark repeats its measurements: in rounds, one measurement of each kind to a round."""

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import msgspec

from simulation.bench.samples import Sample

Say = Callable[[str], None]
T = TypeVar("T")


def describe(found: object) -> str:
    """Return a measured rate in words, with what went wrong."""
    if isinstance(found, Sample):
        return f"{found.rps:,.0f}/s{f' ({found.fault})' if found.fault else ''}"
    return f"{found:,.0f}/s" if isinstance(found, float) else "done"


class Rounds(msgspec.Struct, frozen=True):
    """How often, and for how long, each thing is measured; `say` is told each result."""

    count: int
    seconds: float
    say: Say

    async def repeat(self, measures: Mapping[str, Callable[[], Awaitable[T]]]) -> list[list[T]]:
        """Run each of the named measures once a round; return what each of them found, in their order.

        Every second round runs backwards, so that a drift of the machine meets all of them alike.
        """
        found: dict[str, list[T]] = {name: [] for name in measures}
        for number in range(1, self.count + 1):
            for name in list(measures)[:: 1 if number % 2 else -1]:
                found[name].append(await measures[name]())
                self.say(f"round {number}/{self.count}, {name}: {describe(found[name][-1])}")
        return list(found.values())
