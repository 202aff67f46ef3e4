"""The form of summary.json, from which its JSON Schema is written."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from simulation.errors import RunError
from simulation.judge.numbers.knee import Knee
from simulation.judge.numbers.load import Load
from simulation.judge.verdict import Check, Verdict
from simulation.model.events import InCharge, Recovery, Restocked
from simulation.record.facts import read_part


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a summary."""


class Outcomes(Part, frozen=True):
    """Purchases by how they ended."""

    accepted: int
    sold_out: int
    rejected: int
    """Refused otherwise."""
    error: int
    """Unavailable: certainly nothing was reserved."""
    unknown: int


class Percentiles(Part, frozen=True):
    """Times in ms; null without any."""

    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None
    max: float | None


class Latency(Part, frozen=True):
    """How long answers took."""

    response: Percentiles
    """From the intended start."""
    service: Percentiles
    """From the moment of sending."""


class Meanwhile(Part, frozen=True):
    """What the machine did during the load; null where it could not be read."""

    stolen_percent: float | None
    stolen_most_percent: float | None
    cpu_pressure_percent: float | None
    io_pressure_percent: float | None
    disturbed: bool


class Fulfilment(Part, frozen=True):
    """Orders of the ledger; null where it could not be read."""

    confirmed: int | None
    failed: int | None
    rejected: int | None
    lag_p50_ms: float | None
    lag_p99_ms: float | None
    drained_s: float | None
    """null: not in the time that the scenario allows."""
    bus: Literal["rabbitmq", "outbox", "none"]
    """outbox: fulfilment reads the outbox itself."""


class Stock(Part, frozen=True):
    """Units of all sales; null where a store could not be read."""

    initial: int
    sold: int | None
    remaining: int | None
    oversold: int | None


class Restock(Restocked, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A restock, and what became of it."""

    sold: int | None
    sold_out_after_s: float | None


class Phase(Outcomes, frozen=True):
    """A phase of the load."""

    name: str
    start_s: float
    end_s: float
    requests: int
    offered_rps: float
    response_p50_ms: float | None
    response_p99_ms: float | None
    marks: dict[str, str]


class FrontDoor(Outcomes, frozen=True):
    """A front door, and what became of the purchases that went to it."""

    requests: int
    resets: int = 0
    """Those whose connection closed before the answer was complete."""


class Retries(Part, frozen=True):
    """Clients that tried again (simulation.judge.numbers.requests)."""

    requests: int
    clients: int
    most: int
    accepted_later: int
    keyed_bought_again: int | None
    unkeyed_bought_again: int | None


class Reads(Part, frozen=True):
    """Reads of one kind."""

    requests: int
    shown: int
    not_found: int
    unavailable: int
    invalid: int
    unknown: int
    latency_ms: Latency
    orders: int | None = None
    """Orders looked at; of reads of orders alone."""
    final: int | None = None
    """Orders whose final status was seen."""


class Summary(Part, frozen=True):
    """What the judge says of a run."""

    verdict: Verdict
    verdict_in_words: str
    scenario: str
    text: str
    seed: int
    started_at: datetime
    duration_s: float
    load: Load
    outcomes: Outcomes
    latency_ms: dict[Literal["accepted", "sold_out"], Latency]
    marks: dict[str, str]
    """Metrics in doubt, and why."""
    own_lag_p99_ms: float | None
    meanwhile: Meanwhile
    fulfilment: Fulfilment
    stock: Stock
    time_to_sell_out_s: float | None
    restocks: list[Restock]
    knee: Knee | None
    phases: list[Phase]
    fairness: dict[str, float | None]
    """The fields of simulation.judge.numbers.fairness."""
    retries: Retries
    reads: dict[Literal["stock", "order"], Reads]
    unread: dict[str, str]
    """Parts of the final state that could not be read, and why."""
    thresholds: list[Check]
    checks: list[Check]
    command: str
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    driver: str
    faults: list[Recovery]
    front_doors: list[FrontDoor] = []
    """In their order; none of a single one."""
    in_charge: list[InCharge] = []
    """Of services with several nodes."""
    engine: str = "flashgrid"
    """The engine under test, by the name of its description."""
    misfits: list[str] = []
    """Where the description of the engine does not fit it."""


class KeptLoad(msgspec.Struct, frozen=True):
    """The load, as several runs are read."""

    requests: int


class KeptPhase(msgspec.Struct, frozen=True):
    """A phase, as several runs are read."""

    offered_rps: float


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of the summaries of several runs, also of older ones, which lack other parts."""

    verdict: Verdict
    verdict_in_words: str
    scenario: str
    started_at: str
    duration_s: float
    load: KeptLoad
    outcomes: Outcomes
    latency_ms: dict[str, Latency]
    fulfilment: dict[str, Any]
    stock: Stock
    time_to_sell_out_s: float | None
    phases: Annotated[list[KeptPhase], Meta(min_length=1)]
    thresholds: list[dict[str, Any]]
    checks: list[dict[str, Any]]


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Return the summary in the folder of a run; None without one. Raises RunError if it is none."""
    summary = read_part(folder, "summary.json", dict[str, Any])
    try:
        if summary is not None:
            msgspec.convert(summary, Kept)
    except msgspec.ValidationError as error:
        raise RunError(f"{folder}: its summary.json is not that of a run: {error}") from None
    return summary


def check_summary(summary: Any) -> Summary:
    """Return a summary in its form. Raises msgspec.ValidationError."""
    return msgspec.convert(summary, Summary)
