"""What became of the retries."""

import numpy as np
import pandas as pd


def measure_retries(history: pd.DataFrame, orders: pd.DataFrame | None) -> dict[str, int | None]:
    """Return the fields of the summary.

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
