"""What hostile requests did to an engine, as fuzz.json records it."""

from typing import Final

import msgspec

FILE: Final = "fuzz.json"


class Finding(msgspec.Struct, frozen=True):
    """A client that was not treated as it should be."""

    number: int
    kind: str
    fault: str
    sent: str
    """Its bytes, escaped as in a Python literal, and cut in the middle where they are many."""
    received: str


class KindCount(msgspec.Struct):
    """What became of the clients of a kind."""

    sent: int = 0
    answers: dict[str, int] = {}
    """Responses by status; `closed`, `reset` and `left` (by the client) count clients that got none."""


class ClientReport(msgspec.Struct):
    """What all hostile clients saw."""

    kinds: dict[str, KindCount] = {}
    faults: int = 0
    findings: list[Finding] = []
    """The first of the faults."""
    longest_s: float = 0.0
    """Longest time that a connection was kept whose client stayed on it."""
    order_ids: list[str] = []
    """Of all purchases that were accepted."""
    seconds: float = 0.0


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a sale that only hostile requests could buy from; a purchase is one unit."""

    units: int
    remaining: int
    """At the gate."""
    sold: int
    """By the ledger's own count."""
    orders: int
    confirmed: int
    promised: int
    """Order ids that clients were told are accepted."""
    kept: int
    """Those of them that the ledger has settled."""


class HostileRecord(
    msgspec.Struct, frozen=True, kw_only=True, rename={"clients": "barrage", "smuggled": "canary"}
):
    """Hostile requests and what they left."""

    seed: int
    requests: int
    driven_s: float
    """When the sale's own load was over, in seconds from the run's start."""
    bound_s: float
    """Longest time that the front door may keep a connection whose client does not finish its request."""
    clients: ClientReport
    processes_before: dict[str, int]
    """Process ids of the engine by name."""
    processes_after: dict[str, int]
    connections_left: int
    """Connections that the front door had not ended when every client had gone, and the bound was over."""
    tracebacks: int
    """In the engine's log."""
    decoy: Stock | None
    """The sale that hostile purchases may buy from; None where gate or ledger could not be read."""
    smuggled: Stock | None
    """The sale that only smuggled requests would buy from."""
