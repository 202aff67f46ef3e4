"""What happens in a run besides its requests; all times are in seconds from the run's start."""

import msgspec


class Interval(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A fault as it was done."""

    kind: str
    on: str
    start_s: float
    end_s: float
    """When it ended: the connection is open, or the service answers, again."""
    failed: str | None = None
    """Why a command of one's own failed: nobody knows then whether the fault began, or has ended."""
    hit: list[str] = []
    """The nodes, or the machine, that it was done to, where `on` is a role or a machine."""


class Recovery(Interval, frozen=True, kw_only=True, omit_defaults=False):
    """A fault, and how the engine came back from it."""

    recovered_after_s: float | None = msgspec.field(name="healed_s")
    """Seconds from the fault's end until the engine works as before; None if it never does."""
    resets: int = 0
    """Purchases that were sent from its start until then, and whose connection closed before the answer."""
    outbox_wait_s: float | None = None
    """Longest wait in the outbox from its start until then; None where nobody looked."""


class InCharge(msgspec.Struct, frozen=True, kw_only=True):
    """A node in charge of a shard, of the queue or of the ledger, from when it was first seen to be."""

    role: str
    node: str
    start_s: float
    end_s: float
    """When it was last seen to be, before another one was; else the last time that anything was seen."""


class Restocked(msgspec.Struct, frozen=True, kw_only=True):
    """A restock as it was done."""

    at_s: float
    """When the engine was asked for it."""
    product_id: int
    stock: int
    opened_s: float
    """When the engine had answered."""
    sale_id: int


class Abort(msgspec.Struct, frozen=True, kw_only=True):
    """Why a load was stopped early, and when."""

    condition: str
    value: float
    """The condition's metric at that moment."""
    at_s: float
    """When the last request was meant to start."""
