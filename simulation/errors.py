"""The simulation's exceptions.

SimulationError
├── ScenarioError     a scenario can't be read, or a key of it has a bad value
├── BadResponse       the bytes are no HTTP/1.1 response
├── DriverError       the load could not be driven
├── EngineError       the engine under test can't be started, reached, or put on sale
│   └── Misread       its description reads what was done there otherwise
│       └── Misdone   or the engine did otherwise than it answered
├── FaultError        a fault can't be done, or can't be ended
├── Unreadable        a store can't be read now
├── RunError          a run, or what its folder holds, is not as it should be
├── BenchError        something can't be measured
└── MutationError     a mutation can't be read, or does not fit the engine
"""

from collections.abc import Iterable
from difflib import get_close_matches


class SimulationError(Exception):
    """Any error that the simulation raises on purpose."""


class ScenarioError(SimulationError):
    """A scenario can't be read, or a key of it has a bad value."""


class BadResponse(SimulationError):
    """The bytes are no HTTP/1.1 response."""


class DriverError(SimulationError):
    """The load could not be driven."""


class EngineError(SimulationError):
    """The engine under test can't be started, reached, or put on sale."""


class Misread(EngineError):
    """The description of the engine reads what was done there otherwise than it was done."""


class Misdone(Misread):
    """The purchase before the load is shown otherwise than it was answered, by what else fits."""


class FaultError(SimulationError):
    """A fault can't be done, or can't be ended."""


class Unreadable(SimulationError):
    """A store can't be read now."""


class RunError(SimulationError):
    """A run, or what its folder holds, is not as it should be."""


class BenchError(SimulationError):
    """Something can't be measured."""


class MutationError(SimulationError):
    """A mutation can't be read, or does not fit the engine."""


class ModelError(SimulationError):
    """The model can't be checked, or not to its end."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean 'stock'?)" where a known word is like this one, or else nothing."""
    close = get_close_matches(word, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""
