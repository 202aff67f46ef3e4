"""What the engine measures of itself, for Prometheus.

Every process writes files under PROMETHEUS_MULTIPROC_DIR, which the server sets before it starts them, so
that any front-door worker answers /metrics for all of them. Counters grow by whole batches.
"""

import os
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector

METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
METRICS_SLOT: Final = "PROMETHEUS_MULTIPROC_SLOT"
"""Names a process' files. One that takes another's place goes on with its files, so their number ends."""
if METRICS_SLOT in os.environ:
    values.ValueClass = values.MultiProcessValue(lambda: os.environ[METRICS_SLOT])  # type: ignore[no-untyped-call]
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

PURCHASES: Final = Counter("flashgrid_purchases", "Purchases answered, by outcome", ["outcome"])
GATE_BATCH: Final = Histogram(
    "flashgrid_gate_batch_purchases", "Purchases in one script call", buckets=_SIZES
)
GATE_SCRIPT: Final = Histogram(
    "flashgrid_gate_script_seconds", "From sending a script call to its answer", buckets=_SECONDS
)
OUTBOX_LENGTH: Final = Gauge(
    "flashgrid_outbox_entries", "Outbox entries not yet relayed", multiprocess_mode="mostrecent"
)
QUEUE_LENGTH: Final = Gauge(
    "flashgrid_queue_messages", "Messages in the purchases' queue of the bus", multiprocess_mode="mostrecent"
)
STAGE_WAITS: Final = Gauge(
    "flashgrid_stage_waits_seconds",
    "How long the oldest accepted purchase waits for a stage",
    ["stage"],
    multiprocess_mode="mostrecent",
)
UNSAFE: Final = Gauge(
    "flashgrid_unsafe_settings",
    "Whether a service's settings may lose what was accepted",
    ["service"],
    multiprocess_mode="mostrecent",
)
RELAYED: Final = Counter("flashgrid_relayed_purchases", "Purchases confirmed by the bus")
ORDERS: Final = Counter("flashgrid_orders", "Orders settled in the ledger, by status", ["status"])
DEAD_LETTERS: Final = Counter("flashgrid_dead_letters", "Records that could not be fulfilled")
FULFILMENT_DELAY: Final = Histogram(
    "flashgrid_fulfilment_lag_seconds",
    "From acceptance to settlement, for the oldest purchase of each batch",
    buckets=_SECONDS,
)
LEDGER_BATCH: Final = Histogram(
    "flashgrid_ledger_batch_purchases", "Purchases in one transaction", buckets=_SIZES
)
LEDGER_SECONDS: Final = Histogram(
    "flashgrid_ledger_batch_seconds", "Duration of one transaction", buckets=_SECONDS
)


def render_metrics() -> bytes:
    """Return the metrics of every process of this server, in Prometheus' text format."""
    # A cleaner of temporary files may have removed it; the collector refuses to go without.
    Path(os.environ[METRICS_FOLDER]).mkdir(parents=True, exist_ok=True)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)
