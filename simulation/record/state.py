"""The final state in the run's folder: gate, sales and orders as parquet, the rest as JSON."""

import json
from pathlib import Path
from typing import Any, Final

import pandas as pd
from pandas.api.types import is_string_dtype

from simulation.errors import RunError
from simulation.model.state import FinalState

_FRAMES: Final = ("gate", "sales", "orders")
_OF_ORDERS: Final = ("order_id", "sale_id", "product_id", "user_id", "quantity", "status")
_NUMBERS: Final = (
    "pending",
    "outbox",
    "queue",
    "dead",
    "bus",
    "drained_s",
    "unread",
    "misfits",
    "fitting",
    "unseen",
    "without",
    "partial",
)


def write_state(state: FinalState, run_folder: Path) -> None:
    """Write the state into `final/` of the run's folder: gate, sales, orders (.parquet), final_state.json."""
    folder = run_folder / "final"
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FRAMES:
        frame: pd.DataFrame | None = getattr(state, name)
        if frame is not None:
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    # Only sets are none of JSON's types.
    text = json.dumps({name: getattr(state, name) for name in _NUMBERS}, indent=2, default=sorted)
    (folder / "final_state.json").write_text(text + "\n")


def read_state(run_folder: Path) -> FinalState:
    """Return the state that `write_state` wrote. Raises RunError."""
    folder = run_folder / "final"
    try:
        numbers: dict[str, Any] = json.loads((folder / "final_state.json").read_text())
        for name in ("pending", "fitting", "unseen", "without"):
            if numbers.get(name) is not None:
                numbers[name] = frozenset(numbers[name])
        files = {name: folder / f"{name}.parquet" for name in _FRAMES}
        frames: dict[str, Any] = {
            name: pd.read_parquet(file) for name, file in files.items() if file.exists()
        }
        _check_orders(frames.get("orders"))
        return FinalState(**frames, **numbers)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{run_folder}: can't read its final state: {error}") from None


def _check_orders(orders: pd.DataFrame | None) -> None:
    """Raise ValueError for orders that lack what the judge reads of each."""
    if orders is None:
        return
    if lacking := [name for name in _OF_ORDERS if name not in orders]:
        raise ValueError(f"orders.parquet has no column {lacking[0]}")
    ids = orders["order_id"]
    if len(ids) and (ids.isna().any() or not is_string_dtype(ids)):
        raise ValueError("orders.parquet has an order_id that is no text")
