"""What a load process is told, and what it says while it works."""

from typing import Final

import msgspec
import numpy as np

SNAPSHOT_S: Final = 0.25


RESPONSE_EDGES_MS: Final = np.geomspace(0.01, 100_000, 141)
"""Edges of the buckets that response times are counted in: 20 a decade, so 12 % wide."""


class Job(msgspec.Struct, frozen=True):
    """What the process does. `plan` and `result` are .npz files."""

    plan: str
    result: str
    host: str
    """A numeric address: a name would be looked up for each connection."""
    port: int
    authority: str
    """The Host header."""
    path: str
    connections: int
    timeout_ms: int
    connection_per_request: bool = False
    retry_after: frozenset[str] = frozenset()
    """Outcomes after which a client comes again, if the plan has a pause for it."""
    most_retries: int = 0


class Snapshot(msgspec.Struct, frozen=True):
    """How far the process is; every count is from the start, and retries count like any request."""

    intended: int
    sent: int
    done: int
    """Requests that ended, with an answer or without."""
    outcomes: list[int]
    """In the order of OUTCOMES; each 200 counts as ACCEPTED."""
    responses: list[int]
    """Answers whose response time (done − intended) is below each of RESPONSE_EDGES_MS, and at the end
    those above."""
    retries: int = 0
    """Requests on top of those planned, so far."""
