"""The requests of a history, chosen and counted by outcome and by span, and what became of the retries."""

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.model.outcome import REFUSALS

OUTCOMES: Final = {
    "accepted": ("ACCEPTED",),
    "sold_out": ("SOLD_OUT",),
    "rejected": REFUSALS,
    "error": ("UNAVAILABLE",),
    "unknown": ("UNKNOWN",),
}
"""The outcomes of the history behind each outcome of a summary: `rejected` are refusals other than SOLD_OUT,
`error` certainly reserved nothing."""


def select_outcome(history: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the requests with an outcome of a summary, or `all`."""
    return history if name == "all" else history[history["outcome"].isin(OUTCOMES[name])]


def select_waits(history: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the requests whose response times are those of an outcome of a summary, or `all`.

    These are the requests with that outcome, and of those without an answer the ones that may have had it:
    each goes with the answered request of its product that was meant to start last before it, or else with
    the first after it.
    """
    chosen = select_outcome(history, name)
    mute = history[history["sent_ns"].isna() | history["done_ns"].isna()]
    if name == "all" or mute.empty:
        return chosen
    told = history.drop(mute.index)[["product_id", "intended_ns", "outcome"]].sort_values("intended_ns")
    asked = mute[["product_id", "intended_ns"]].reset_index().sort_values("intended_ns")
    beside = [
        pd.merge_asof(asked, told, on="intended_ns", by="product_id", direction=direction)
        for direction in ("backward", "forward")
    ]
    likely = beside[0]["outcome"].astype("str").fillna(beside[1]["outcome"].astype("str"))
    also = asked.loc[likely.isin(OUTCOMES[name]).to_numpy(), "index"]
    return history.loc[chosen.index.union(pd.Index(also))]


def select_span(history: pd.DataFrame, start_s: float, end_s: float) -> pd.DataFrame:
    """Return the requests whose intended start lies in the span, in seconds from the run's start."""
    return history[(history["intended_ns"] >= start_s * 1e9) & (history["intended_ns"] < end_s * 1e9)]


def count_outcomes(history: pd.DataFrame) -> dict[str, int]:
    """Return how many requests ended with each outcome; the counts add up to the requests."""
    return {name: len(select_outcome(history, name)) for name in OUTCOMES}


def is_decided(history: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return for each request whether its buyer learnt a decision: neither UNAVAILABLE nor UNKNOWN."""
    decided = history["done_ns"].notna() & ~history["outcome"].isin(["UNAVAILABLE", "UNKNOWN"])
    return decided.to_numpy(np.bool_)


def measure_retries(history: pd.DataFrame, orders: pd.DataFrame | None) -> dict[str, int | None]:
    """Return what became of the retries, the fields of the summary.

    requests               retries
    clients                clients that sent at least one
    most                   tries of the client with the most tries
    accepted_later         clients that were first accepted at a retry
    keyed_bought_again     orders beyond one for each Idempotency-Key: a correct engine writes none
    unkeyed_bought_again   orders beyond one for each client without a key, at least: the engine can't tell
                           the retry of such a client from a new purchase, so a lost answer makes it buy again

    The last two are None where the ledger could not be read.
    """
    again = history[history["attempt"] > 0]
    first_accepted = history[history["outcome"] == "ACCEPTED"].groupby("first_op")["attempt"].min()
    keyed = unkeyed = None
    if orders is not None:
        has_key = orders["idempotency_key"].notna()
        names = ["user_id", "product_id"]
        keyed = int(orders[has_key].duplicated([*names, "idempotency_key"]).sum())
        asked = history[(history["attempt"] == 0) & history["key"].isna()].groupby(names).size()
        placed = orders[~has_key].groupby(names).size()
        unkeyed = int((placed - asked.reindex(placed.index, fill_value=0)).clip(lower=0).sum())
    return {
        "requests": len(again),
        "clients": int(again["first_op"].nunique()),
        "most": int(history["attempt"].max()) + 1 if len(history) else 0,
        "accepted_later": int(np.count_nonzero(first_accepted > 0)),
        "keyed_bought_again": keyed,
        "unkeyed_bought_again": unkeyed,
    }
