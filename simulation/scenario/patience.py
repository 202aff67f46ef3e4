"""Patience: which clients try again, after which answers, and when.

The same table and stream of random numbers give the same pauses.
"""

from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

Reason = Literal["UNKNOWN", "UNAVAILABLE", "NOT_STARTED"]


class Patience(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[population.patience]` table of a scenario.

    A client that tries again repeats its request: with the same Idempotency-Key, or without one, and then it
    may buy twice.
    """

    after: Annotated[tuple[Reason, ...], Meta(min_length=1)] = ("UNKNOWN", "UNAVAILABLE", "NOT_STARTED")
    """Outcomes after which it tries again. UNKNOWN: a timeout, a reset, or an answer that says so."""
    pause_ms: Annotated[float, Meta(ge=1, le=600_000)] = 1_000.0
    """From the end of a try to the next one."""
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Each client has its own pause, drawn evenly from pause_ms · (1 ± jitter). Without jitter, clients that
    failed together would try again together (Brooker, "Exponential Backoff and Jitter", 2015)."""
    most: Annotated[int, Meta(ge=1, le=1_000)] = 3
    """Most repetitions."""
    share: Annotated[float, Meta(ge=0, le=1)] = 1.0
    """Share of the clients that try again at all."""


def draw_pauses(
    pause_ms: float, jitter: float, share: float, size: int, stream: np.random.SeedSequence
) -> npt.NDArray[np.int64]:
    """Return the pause of each of `size` clients, in ns, around `pause_ms`; 0 for one that is not in the
    `share` that comes again."""
    returns, pauses = (np.random.Generator(np.random.PCG64(part)) for part in stream.spawn(2))
    drawn_ms = pause_ms * (1 + jitter * pauses.uniform(-1, 1, size))
    pause_ns = np.rint(np.maximum(drawn_ms, 1) * 1e6).astype(np.int64)
    return np.where(returns.random(size) < share, pause_ns, 0)
