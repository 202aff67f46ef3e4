"""Which order belongs to which purchase, where engine or witness does not say so.

Every purchase and every order is given its most innocent partner.
"""

import numpy as np
import pandas as pd

from simulation.model.contract import Contract
from simulation.model.state import FinalState

BUYER = ["user_id", "product_id"]
OF_OP = "of op "
"""Begins the id of an order that nobody holds, before the number of its purchase."""


def name_orders(history: pd.DataFrame, state: FinalState, contract: Contract | None) -> pd.DataFrame:
    """Return the purchases with an order id for each accepted answer, if the engine names none: of a buyer's
    purchases and orders the first belong together, then the second, and so on. Where the witness shows keys,
    they are counted under each key by themselves.

    A purchase without an order is given an id that the engine does not hold. Answers under one key are one
    purchase.
    """
    if contract is None or contract.buy.order_id is not None:
        return history
    answers = history[history["outcome"] == "ACCEPTED"].sort_values("done_ns", kind="stable")
    keyed = answers["key"].fillna("") != ""
    purchase = answers["key"].where(keyed, "op " + answers["op"].astype(str))
    shows_keys = "idempotency_key" not in state.unseen
    answers = answers.assign(purchase=purchase, under=answers["key"].fillna("") if shows_keys else "")
    once = answers.drop_duplicates([*BUYER, "purchase"])
    once = once.assign(turn=once.groupby([*BUYER, "under"]).cumcount())
    place = [*BUYER, "under", "turn"]
    held = pd.DataFrame(columns=[*place, "order_id"])
    if state.orders is not None:
        keys = state.orders["idempotency_key"].astype(object).fillna("") if shows_keys else ""
        held = _number(state.orders.assign(under=keys), [*BUYER, "under"])[held.columns]
    held = held.astype(dict.fromkeys([*BUYER, "turn"], "int64") | {"under": object})
    paired = once.drop(columns="order_id").astype({"under": object}).merge(held, on=place, how="left")
    paired["order_id"] = paired["order_id"].fillna(OF_OP + paired["op"].astype(str))
    found = answers.drop(columns="order_id").merge(
        paired[[*BUYER, "purchase", "order_id"]], on=[*BUYER, "purchase"], how="left"
    )
    order_id = history["order_id"].astype(object)
    order_id[answers.index] = found["order_id"].to_numpy()
    return history.assign(order_id=order_id)


def find_keys(orders: pd.DataFrame, sent: pd.DataFrame) -> pd.Series:
    """Return the Idempotency-Key of each order, where the witness does not show them.

    An order that was told has the key of its answer. Each other one has that of a request of its buyer whose
    outcome is unknown: first of those that were not told of an order, then of the others.
    """
    accepted = sent[sent["outcome"] == "ACCEPTED"].drop_duplicates("order_id").set_index("order_id")["key"]
    keys = orders["order_id"].map(accepted).astype(object)
    rest = _number(orders[keys.isna()], BUYER)
    unknown = sent[sent["result"] == "unknown"].sort_values("sent_ns", kind="stable")
    told = pd.MultiIndex.from_frame(sent.loc[sent["outcome"] == "ACCEPTED", [*BUYER, "key"]])
    known = (unknown["key"] != "") & pd.MultiIndex.from_frame(unknown[[*BUYER, "key"]]).isin(told)
    again = (unknown["key"] != "") & unknown.duplicated([*BUYER, "key"])
    unknown = unknown.assign(late=(known | again).astype("int8")).sort_values("late", kind="stable")
    unknown = unknown.assign(turn=unknown.groupby(BUYER).cumcount())
    found = rest[[*BUYER, "turn"]].merge(unknown[[*BUYER, "turn", "key"]], on=[*BUYER, "turn"], how="left")
    keys[rest.index] = found["key"].to_numpy()
    return keys.fillna("").astype(object)


def with_keys(state: FinalState, history: pd.DataFrame) -> pd.DataFrame | None:
    """Return the orders with a key each, as the witness shows them, or else as `find_keys` finds them."""
    if state.orders is None or "idempotency_key" not in state.unseen:
        return state.orders
    sent = history[history["sent_ns"].notna()]
    keys = find_keys(state.orders, sent.assign(key=sent["key"].fillna("")))
    return state.orders.assign(idempotency_key=keys.where(keys != "", None))


def _number(orders: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return the orders with `turn`, which counts those that are alike in the order of their acceptance."""
    orders = orders.assign(**{name: orders[name].fillna(-1).astype("int64") for name in BUYER})
    at = orders["accepted_us"].astype("float64").fillna(np.inf)
    ordered = orders.iloc[np.argsort(at.to_numpy(), kind="stable")]
    turn: pd.Series = ordered.groupby(by).cumcount()
    return orders.assign(turn=turn.reindex(orders.index))
