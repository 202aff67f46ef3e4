"""The columns of a history: one row for each operation of a run."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from simulation.model.outcome import ENDS, OUTCOMES, RESULTS, SIGHTS

KINDS: Final = ("buy", "stock", "order")
"""The kinds of operations: purchases, and the reads of a product's stock and of an order."""
BUY, STOCK, ORDER = range(len(KINDS))
"""Their numbers."""

DTYPES: Final[dict[str, Any]] = {
    "op": "int64",
    "driver": "int16",
    "user_id": "int64",
    "product_id": "int64",
    "key": "str",
    "intended_ns": "int64",
    "sent_ns": "Int64",
    "done_ns": "Int64",
    "status": "int16",
    "outcome": pd.CategoricalDtype([*OUTCOMES, *SIGHTS]),
    "result": pd.CategoricalDtype(list(RESULTS)),
    "order_id": "str",
    "attempt": "int16",
    "first_op": "int64",
    "kind": pd.CategoricalDtype(list(KINDS)),
    "order_status": "str",
    "initial": "Int64",
    "remaining": "Int64",
    "sold": "Int64",
    "end": pd.CategoricalDtype(list(ENDS)),
    "unsure_ns": "int64",
    "door": "int16",
}
"""The columns in their order, as pandas holds them."""


def make_history(columns: dict[str, Any]) -> pd.DataFrame:
    """Return a history of these columns, sorted by op; -1 in `sent_ns` and `done_ns` is null.

    The columns of `fill_in` may be left out.
    """
    columns = fill_in(columns) | columns
    history = pd.DataFrame({name: columns[name] for name in DTYPES})
    for name in ("sent_ns", "done_ns"):
        values = np.asarray(columns[name])
        history[name] = pd.arrays.IntegerArray(values.astype(np.int64), values < 0)
    if columns["end"] is None:
        history["end"] = derive_end(history)
    return history.astype(DTYPES).sort_values("op", ignore_index=True)


def fill_in(columns: Mapping[str, Any] | pd.DataFrame) -> dict[str, Any]:
    """Return the columns that a history without retries, reads or ends may lack: every request is a first try
    of a purchase. Without `end` it is what `derive_end` finds."""
    nothing_read = dict.fromkeys(("order_status", "initial", "remaining", "sold"))
    first_try = {"attempt": 0, "first_op": columns["op"], "kind": "buy"}
    return {**first_try, **nothing_read, "end": None, "unsure_ns": 0, "door": 0}


def derive_end(history: pd.DataFrame) -> pd.Categorical:
    """Return why each operation ended, as far as its times and its status tell.

    Of one that was sent and not answered they don't tell why: its end is null.
    """
    answered = history["status"].to_numpy() > 0
    unsent = history["sent_ns"].isna().to_numpy()
    refused = unsent & history["done_ns"].notna().to_numpy()
    words = [ENDS.index(word) for word in ("answered", "refused", "never sent")]
    return pd.Categorical.from_codes(np.select([answered, refused, unsent], words, -1), dtype=DTYPES["end"])


def take_buys(history: pd.DataFrame) -> pd.DataFrame:
    """Return the purchases of a history, retries included."""
    return history[history["kind"] == "buy"]


def take_reads(history: pd.DataFrame) -> pd.DataFrame:
    """Return the reads of a history, of stock and of orders."""
    return history[history["kind"] != "buy"]
