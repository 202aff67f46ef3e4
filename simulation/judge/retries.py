"""What became of the clients that came again. Pure, from the history and the ledger's orders."""

import numpy as np
import pandas as pd


def measure_retries(history: pd.DataFrame, orders: pd.DataFrame | None) -> dict[str, int | None]:
    """The fields of the summary.

    requests               retries that were made
    clients                that came again
    most                   tries of the client that came most often
    accepted_later         clients that were first accepted when they came again
    keyed_bought_again     orders on top of one for each Idempotency-Key: a correct engine writes none
    unkeyed_bought_again   orders on top of one for each client without a key, at least: such a client can't
                           be told from a new one, and buys again if it never learnt that it had bought

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
