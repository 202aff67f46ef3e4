"""Rules about refusals: nobody is refused without a reason."""

import pandas as pd

from simulation.judge.rules.evidence import BUYER, Breach, Evidence, Finding, find
from simulation.model.outcome import REFUSALS


def sold_out_means_sold_out(evidence: Evidence) -> Finding:
    """Nobody is told SOLD_OUT while units are left: no purchase that begins after such an answer is accepted
    by the same sale. A unit that comes back from a declined payment may be sold again, so purchases that such
    units explain don't count. If a product was restocked, each of its sales is judged by the answers that are
    certainly its own."""
    sales = evidence.timed_sales
    began = _find_starts(evidence).sort_values("sent_ns")
    began["later"] = began.groupby("sale_id").cumcount(ascending=False) + 1
    judged = evidence.sold_out[evidence.sold_out["sale_id"].isin(began["sale_id"])].sort_values("done_ns")
    next_one = pd.merge_asof(
        judged,
        began,
        by="sale_id",
        left_on="done_ns",
        right_on="sent_ns",
        direction="forward",
        allow_exact_matches=False,
    )
    sale = next_one["sale_id"]
    units_later = next_one["later"].fillna(0) * sale.map(sales["quantity"])
    # Less than one purchase's quantity was left, and all that was ever released may have come back later.
    explained = sale.map(sales["quantity"] - 1 + sales["FAILED"])
    wrong = next_one.loc[units_later > explained, "op"].sort_values()
    return find(
        f"{len(judged):,} SOLD_OUT answers judged",
        Breach(len(wrong), "came while units were left", "op", wrong),
    )


def _find_starts(evidence: Evidence) -> pd.DataFrame:
    """Return sale_id and sent_ns of each accepted purchase, as it was first tried under its key."""
    bought, history = evidence.bought.dropna(subset="sale_id"), evidence.history
    tries = history[history["key"] != ""].groupby(BUYER)["sent_ns"].min().rename("first_ns")
    first_ns = bought[BUYER].join(tries, on=BUYER)["first_ns"].fillna(bought["sent_ns"])
    return pd.DataFrame({"sale_id": bought["sale_id"], "sent_ns": first_ns}).astype("int64")


def refusals_are_plausible(evidence: Evidence) -> Finding:
    """Every refusal fits the sale. LIMIT_REACHED goes only to a buyer who may have reached a limit that
    exists; NOT_STARTED and SALE_ENDED occur only where the sale has such times; UNKNOWN_PRODUCT never occurs
    for a product on sale; INVALID never occurs, because every request is valid."""
    sales, history = evidence.sales, evidence.history
    refused = history[history["outcome"].isin(REFUSALS)]
    bought = history[history["result"].isin(["ok", "unknown"])].groupby(["user_id", "product_id"]).size()
    tries = refused.join(bought.rename("tries"), on=["user_id", "product_id"])["tries"].fillna(0)
    limits = sales.dropna(subset="user_limit").groupby("product_id")[["user_limit", "quantity"]].min()
    limits = refused[["product_id"]].join(limits, on="product_id")
    product = refused["product_id"]
    plausible = {
        "LIMIT_REACHED": ((tries + 1) * limits["quantity"] > limits["user_limit"]).fillna(False).astype(bool),
        "NOT_STARTED": product.isin(sales.loc[sales["starts_us"].notna(), "product_id"]),
        "SALE_ENDED": product.isin(sales.loc[sales["ends_us"].notna(), "product_id"]),
        "UNKNOWN_PRODUCT": ~product.isin(sales["product_id"]),
        "INVALID": product.isin([]),
    }
    wrong = {
        word: refused.loc[(refused["outcome"] == word) & ~fits, "op"] for word, fits in plausible.items()
    }
    return find(
        f"{len(refused):,} refusals other than SOLD_OUT",
        *(Breach(len(ops), f"{word} without a reason", "op", ops) for word, ops in wrong.items()),
    )


def sales_keep_their_hours(evidence: Evidence) -> Finding:
    """A sale keeps its hours. By the gate's clock, nothing is accepted before its start or after its end.
    Once a purchase is accepted, no later request is told NOT_STARTED; this is not judged for a product that
    was opened more than once."""
    sales = evidence.sales
    timed = sales[sales["starts_us"].notna() | sales["ends_us"].notna()]
    if timed.empty:
        return Finding(0, "no sale has hours")
    orders = evidence.orders[evidence.orders["sale_id"].isin(timed.index)]
    sale, accepted_us = orders["sale_id"], orders["accepted_us"]
    early = orders.loc[(accepted_us < sale.map(timed["starts_us"])).fillna(False), "order_id"]
    late = orders.loc[(accepted_us >= sale.map(timed["ends_us"])).fillna(False), "order_id"]
    opened = evidence.accepted.groupby("product_id")["done_ns"].min()
    refused = evidence.answered("NOT_STARTED")
    refused = refused[~refused["product_id"].isin(sales["product_id"][sales["product_id"].duplicated()])]
    shut_out = refused.loc[(refused["sent_ns"] > refused["product_id"].map(opened)).fillna(False), "op"]
    return find(
        f"{len(orders):,} orders of sales with hours",
        Breach(len(early), "were accepted before the sale's start", "order", early),
        Breach(len(late), "were accepted after the sale's end", "order", late),
        Breach(len(shut_out), "requests were told NOT_STARTED after others had bought", "op", shut_out),
    )
