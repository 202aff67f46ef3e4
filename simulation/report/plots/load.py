"""The plots of the load: what was in flight, how late the driver was, and what went wrong, over time."""

import pandas as pd


def end_ns(history: pd.DataFrame, timeout_ms: float) -> "pd.Series[int]":
    """Return when each request was over: answered, or given up after the whole timeout.

    When a connection was reset is not recorded: such a request counts as over when it was sent.
    """
    sent_ns = history["sent_ns"].fillna(history["intended_ns"])
    waited_ns = (history["end"] != "reset") * round(timeout_ms * 1e6)
    over: pd.Series[int] = history["done_ns"].fillna(sent_ns + waited_ns).astype("int64")
    return over
