"""An abort: why a load was stopped before its end."""

import msgspec


class Abort(msgspec.Struct, frozen=True, kw_only=True):
    """Why a load was stopped before its end, and when."""

    condition: str
    value: float
    """What the condition's metric was."""
    at_s: float
    """When the last request was meant to start, from the run's start."""
