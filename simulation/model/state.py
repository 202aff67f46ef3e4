"""The final state: what the engine's stores hold once a run has settled."""

from dataclasses import dataclass, field
from typing import Final

import pandas as pd
import pyarrow as pa

TRIAL: Final = "trial"
GATE_TYPES: Final = {
    **dict.fromkeys(("product_id", "sale_id", "stock", "remaining", "released"), "int64"),
    **dict.fromkeys(("user_limit", "quantity", "starts_ms", "ends_ms"), "Int64"),
}
"""Older records have only the first five."""
SALE_TYPES: Final = {
    "sale_id": pa.int64(),
    "product_id": pa.int64(),
    "stock": pa.int64(),
    "sold": pa.int64(),
    "user_limit": pa.int64(),
    "quantity": pa.int64(),
    "starts_us": pa.int64(),
    "ends_us": pa.int64(),
}
ORDER_TYPES: Final = {
    "order_id": pa.string(),
    "sale_id": pa.int64(),
    "product_id": pa.int64(),
    "user_id": pa.int64(),
    "quantity": pa.int64(),
    "status": pa.string(),
    "reason": pa.string(),
    "idempotency_key": pa.string(),
    "accepted_us": pa.int64(),
    "settled_us": pa.int64(),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class FinalState:
    """The stores at the end of a run. A part that could not be read is None, and `unread` says why."""

    gate: pd.DataFrame | None = None
    """One row for each product with a sale: GATE_TYPES; times in Unix ms, null where the sale has no
    such term."""
    pending: frozenset[str] | None = None
    """Order ids that the gate holds as accepted and not yet settled."""
    outbox: int | None = None
    """Outbox entries not yet relayed."""
    queue: int | None = None
    """Messages ready in the bus; 0 without a bus."""
    dead: int | None = None
    """Dead letters, at the bus and at the gate."""
    sales: pd.DataFrame | None = None
    """One row for each sale: SALE_TYPES; times in Unix microseconds, null where the sale has no such term."""
    orders: pd.DataFrame | None = None
    """One row for each order of the ledger: ORDER_TYPES; times in Unix microseconds."""
    bus: bool = True
    """Whether purchases went over RabbitMQ."""
    drained_s: float | None = None
    """Seconds until everything had settled; None if that took longer than allowed."""
    unread: dict[str, str] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    """Where the description of the engine was seen not to fit it, in words: "orders" that the witness should
    show, "reads of order", "reads of stock"; TRIAL, a purchase before the load that is shown otherwise than
    it was answered, be it by the fault of the engine or of the description."""
    fitting: frozenset[str] = frozenset()
    """Parts of the description that a purchase before the load showed to fit: "requests", "buy", those of
    `misfits`."""
    unseen: frozenset[str] = frozenset()
    """The columns of ORDER_TYPES that the witness does not show."""
    without: frozenset[str] = frozenset()
    """What the engine has none of, or nobody can see: "dead letters", "gate" (nobody says what is for sale),
    "outbox" (and so no stages as Flashgrid has them), "waiting" (a place where accepted purchases wait)."""
    partial: bool = False
    """Whether orders that no client was told of can't be seen."""
