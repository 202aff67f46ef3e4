"""The rules that every correct run obeys.

Each is a function of the evidence whose docstring says in plain words what it means; the report shows it.
A rule only calls broken what no correct engine could have done: an unknown answer, a release, or a retry
under the same Idempotency-Key is given its most innocent reading.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from simulation.evidence import BUYER, LIVE, TERMINAL, Evidence, read


class Finding(NamedTuple):
    """What a rule found: how often it is broken, and the evidence in words."""

    violations: int
    detail: str


def no_oversell(evidence: Evidence) -> Finding:
    """No sale confirmed more units than it had, the ledger's own count agrees with its orders, and the buyers
    were not promised more than the stock either."""
    sales, orders = evidence.sales, evidence.orders
    oversold = np.maximum(sales["CONFIRMED"], sales["sold"]) - sales["stock"]
    miscounted = (sales["sold"] - sales["CONFIRMED"]).abs()

    promised_ids = evidence.accepted["order"]
    lapsed = orders[orders["status"].isin(["FAILED", "REJECTED"]) & orders["order"].isin(promised_ids)]
    of_product = sales.groupby("product_id").agg({"stock": "sum", "quantity": "max"})
    promises = evidence.accepted.drop_duplicates("order")["product_id"].value_counts()
    promised = promises * of_product["quantity"].reindex(promises.index, fill_value=1)
    promised = promised.sub(lapsed.groupby("product_id")["quantity"].sum(), fill_value=0)
    overpromised = promised.sub(of_product["stock"], fill_value=0).clip(lower=0)
    return Finding(
        int(oversold.clip(lower=0).sum() + miscounted.sum() + overpromised.sum()),
        f"{sales['CONFIRMED'].sum():,} units confirmed of {sales['stock'].sum():,} in stock"
        + _also(oversold.clip(lower=0).sum(), "units too many")
        + _also(miscounted.sum(), "units apart from the sale's own count")
        + _also(overpromised.sum(), "units promised beyond the stock"),
    )


def accepted_is_settled(evidence: Evidence) -> Finding:
    """Every purchase that was answered ACCEPTED is in the ledger exactly once, under its buyer and product,
    and has come to an end: CONFIRMED, FAILED or REJECTED. Nothing that was accepted is lost."""
    answers = evidence.accepted[["order", "user_id", "product_id"]].drop_duplicates()
    orders = evidence.orders[["order", "user_id", "product_id", "status"]]
    found = answers.merge(orders, on="order", how="left", suffixes=("", "_ledger"))
    lost = found["status"].isna()
    unsettled = ~lost & ~found["status"].isin(TERMINAL)
    swapped = ~lost & (
        (found["user_id"] != found["user_id_ledger"]) | (found["product_id"] != found["product_id_ledger"])
    )
    repeated = orders["order"].duplicated()
    return Finding(
        int(lost.sum() + unsettled.sum() + swapped.sum() + repeated.sum()),
        f"{len(answers):,} accepted purchases looked up"
        + _also(lost.sum(), "are not in the ledger")
        + _also(unsettled.sum(), "have not come to an end")
        + _also(swapped.sum(), "belong to another buyer or product")
        + _also(repeated.sum(), "are in the ledger more than once"),
    )


def order_ids_are_unique(evidence: Evidence) -> Finding:
    """No two purchases were answered with the same order id, unless one is a retry of the other: same buyer,
    same product, same Idempotency-Key."""
    accepted = evidence.accepted
    nameless = accepted["order"] < 0
    shared = accepted[accepted["order"].duplicated(keep=False) & ~nameless]
    retries = shared[shared["key"] != ""]
    buyers = retries.drop_duplicates(["order", *BUYER])["order"]
    wrong = set(shared.loc[shared["key"] == "", "order"]) | set(buyers[buyers.duplicated()])
    return Finding(
        int(len(wrong) + nameless.sum()),
        f"{accepted['order'][~nameless].nunique():,} order ids in {len(accepted):,} accepted answers"
        + _also(len(wrong), "ids stand for different purchases")
        + _also(nameless.sum(), "answers carry no order id"),
    )


def no_phantom_orders(evidence: Evidence) -> Finding:
    """Every order in the ledger was asked for: its buyer was told ACCEPTED, or never learnt the outcome of a
    request of just that buyer, product and key, one request for each order."""
    orders = evidence.orders
    unanswered = orders[~orders["order"].isin(evidence.accepted["order"])]
    placed = unanswered.groupby(BUYER).size()
    asked = evidence.unknown.groupby(BUYER).size().reindex(placed.index, fill_value=0)
    phantoms = int((placed - asked).clip(lower=0).sum())
    return Finding(
        phantoms,
        f"{len(unanswered):,} of {len(orders):,} orders have no accepted answer"
        + (f"; {len(unanswered) - phantoms:,} explained by an unknown outcome" if len(unanswered) else "")
        + _also(phantoms, "explained by nothing"),
    )


def units_are_conserved(evidence: Evidence) -> Finding:
    """No unit appeared or vanished: for every sale, stock = what the gate has left + what live orders hold
    + what is still on its way."""
    gate = read(evidence.state.gate, "gate").set_index("product_id")
    current = evidence.sales[~evidence.sales["product_id"].duplicated(keep="last")].reset_index()
    current = current.join(gate[["sale_id", "remaining"]].add_suffix("_gate"), on="product_id")
    # A pending id is in flight only until the ledger has it; its product is known from the client's answer.
    in_flight = evidence.accepted.drop_duplicates("order")
    in_flight = in_flight[
        in_flight["order"].isin(evidence.pending) & ~in_flight["order"].isin(evidence.orders["order"])
    ]
    flying = current["product_id"].map(in_flight["product_id"].value_counts()).fillna(0) * current["quantity"]
    forgotten = current["sale_id_gate"] != current["sale_id"]
    off = current["stock"] - current["remaining_gate"] - current["live"] - flying
    off = off.where(~forgotten, current["stock"]).abs()
    return Finding(
        int(off.sum()),
        f"{current['stock'].sum():,} units = {current['remaining_gate'].sum():,.0f} left at the gate"
        f" + {current['live'].sum():,} held by orders + {flying.sum():,.0f} on their way"
        + _also(forgotten.sum(), "sales are not the gate's current ones")
        + _also(off.sum(), "units unaccounted for"),
    )


def nothing_is_stranded(evidence: Evidence) -> Finding:
    """Once the load is over everything drains: no reservation is pending, and outbox and queue are empty."""
    state = evidence.state
    left = {
        "pending reservations": None if state.pending is None else len(state.pending),
        "outbox entries": state.outbox,
        "queue messages": state.queue,
    }
    stranded = sum(count or 0 for count in left.values())
    if not stranded:
        for name, count in left.items():
            read(count, f"number of {name}")
    return Finding(
        stranded, ", ".join(f"{count:,} {name}" for name, count in left.items() if count is not None)
    )


def user_limit_is_kept(evidence: Evidence) -> Finding:
    """No buyer holds more units of a sale than its limit for each user allows."""
    limits = evidence.sales["user_limit"].dropna().astype("int64")
    if limits.empty:
        return Finding(0, "no sale has a limit")
    orders = evidence.orders
    held = orders[orders["status"].isin(LIVE) & orders["sale_id"].isin(limits.index)]
    units = held.groupby(["sale_id", "user_id"], as_index=False)["quantity"].sum()
    excess = int((units["quantity"] > units["sale_id"].map(limits)).sum())
    return Finding(
        excess, f"{len(units):,} buyers of sales with a limit" + _also(excess, "of them hold more")
    )


def a_key_buys_once(evidence: Evidence) -> Finding:
    """One Idempotency-Key is one purchase: a buyer's retries under it place one order and are all told the
    same order id."""
    orders = evidence.orders[evidence.orders["key"] != ""]
    answers = evidence.accepted[evidence.accepted["key"] != ""].drop_duplicates([*BUYER, "order"])
    bought_again = int(orders.duplicated(BUYER).sum())
    told_otherwise = int(answers.duplicated(BUYER).sum())
    return Finding(
        bought_again + told_otherwise,
        f"{len(orders):,} orders under a key"
        + _also(bought_again, "bought again under a key already used")
        + _also(told_otherwise, "answers name another order for the same key"),
    )


def sold_out_means_sold_out(evidence: Evidence) -> Finding:
    """Nobody is turned away while units are left: no SOLD_OUT was finished before a purchase began that was
    then accepted. Units that payment declined went back on sale, so later purchases that these explain don't
    count; a product that was opened more than once is not judged."""
    refused = evidence.answered("SOLD_OUT").groupby("product_id")["done_ns"]
    began = _first_sent(evidence).groupby("product_id")["sent_ns"]
    sales = evidence.lone_sales
    false = judged = 0
    # Less than one purchase's quantity was left, and all that was ever released may have come back later.
    explained = sales["quantity"] - 1 + evidence.released
    for product, quantity, units in zip(sales.index, sales["quantity"], explained, strict=True):
        if product not in refused.groups or product not in began.groups:
            continue
        done = refused.get_group(product).to_numpy(dtype="int64")
        starts = np.sort(began.get_group(product).to_numpy(dtype="int64"))
        taken_later = (len(starts) - np.searchsorted(starts, done, side="right")) * quantity
        false += int((taken_later > units).sum())
        judged += len(done)
    return Finding(false, f"{judged:,} SOLD_OUT answers judged" + _also(false, "came while units were left"))


def _first_sent(evidence: Evidence) -> pd.DataFrame:
    """product_id and sent_ns of each accepted purchase: the first of the requests that may have placed it."""
    columns = ["order", "product_id", "sent_ns"]
    accepted = evidence.accepted
    keyed = accepted["key"] != ""
    single = accepted.loc[~keyed, columns]
    if not keyed.any():
        return single
    attempts = evidence.history[evidence.history["key"] != ""].groupby(BUYER)["sent_ns"].min()
    retried = accepted.loc[keyed, ["order", *BUYER]].drop_duplicates("order")
    return pd.concat([single, retried.join(attempts, on=BUYER)[columns]])


def demand_empties_the_stock(evidence: Evidence) -> Finding:
    """Where buyers were turned away for want of stock, or took as much as there was, no unit is left unsold,
    except those that payment declined too late for another buyer and a rest too small for one purchase."""
    sales = evidence.lone_sales
    refused = evidence.answered("SOLD_OUT")["product_id"].value_counts().reindex(sales.index, fill_value=0)
    takers = evidence.accepted.drop_duplicates("order")["product_id"].value_counts()
    wanted = takers.reindex(sales.index, fill_value=0) * sales["quantity"]
    sufficed = (refused > 0) | (wanted + sales["quantity"] > sales["stock"])
    unsold = sales["stock"] - sales["live"]
    left = (unsold - evidence.released - sales["quantity"] + 1).clip(lower=0)[sufficed]
    return Finding(
        int(left.sum()),
        f"demand reached the stock of {sufficed.sum():,} of {len(sales):,} sales; "
        f"{unsold[sufficed].sum():,} units unsold there" + _also(left.sum(), "of them without a reason"),
    )


def refusals_are_plausible(evidence: Evidence) -> Finding:
    """Every refusal fits the sale: LIMIT_REACHED only for a buyer who may have reached a limit that exists,
    NOT_STARTED and SALE_ENDED only where the sale has such times, UNKNOWN_PRODUCT never for a product on
    sale, INVALID never, since every request is valid."""
    sales, history = evidence.sales, evidence.history
    strange = evidence.answered("INVALID")["product_id"].value_counts()
    wrong = {"INVALID": int(strange.sum())}
    wrong["UNKNOWN_PRODUCT"] = int(
        evidence.answered("UNKNOWN_PRODUCT")["product_id"].isin(sales["product_id"]).sum()
    )
    for outcome, term in {"NOT_STARTED": "starts_us", "SALE_ENDED": "ends_us"}.items():
        timed = sales.loc[sales[term].notna(), "product_id"]
        wrong[outcome] = int((~evidence.answered(outcome)["product_id"].isin(timed)).sum())

    limited = sales.dropna(subset="user_limit").groupby("product_id")[["user_limit", "quantity"]].min()
    refused = evidence.answered("LIMIT_REACHED").join(limited, on="product_id")
    may_have_bought = (
        history[history["result"].isin(["ok", "unknown"])].groupby(["user_id", "product_id"]).size()
    )
    tries = refused.join(may_have_bought.rename("tries"), on=["user_id", "product_id"])["tries"].fillna(0)
    fair = (tries + 1) * refused["quantity"] > refused["user_limit"]
    wrong["LIMIT_REACHED"] = int((~fair.fillna(False).astype(bool)).sum())

    refusals = history["outcome"].isin(
        ["LIMIT_REACHED", "NOT_STARTED", "SALE_ENDED", "UNKNOWN_PRODUCT", "INVALID"]
    )
    named = ", ".join(f"{count:,} {outcome}" for outcome, count in wrong.items() if count)
    return Finding(
        sum(wrong.values()),
        f"{refusals.sum():,} refusals other than SOLD_OUT"
        + (f"; without a reason: {named}" if named else ""),
    )


def no_dead_letters(evidence: Evidence) -> Finding:
    """Fulfilment understood every record it was given: nothing was put aside as a dead letter."""
    dead = read(evidence.state.dead, "number of dead letters")
    return Finding(dead, f"{dead:,} dead letters")


def guard_never_needed(evidence: Evidence) -> Finding:
    """The gate alone kept the stock: the ledger's own guard, the last line of defence, had to reject nothing.
    In a run that makes the gate lose its memory the guard may act."""
    rejected = int((evidence.orders["status"] == "REJECTED").sum())
    if evidence.gate_loss:
        return Finding(0, f"{rejected:,} orders rejected, as a loss of the gate allows")
    return Finding(rejected, f"{rejected:,} orders rejected")


def _also(count: float, what: str) -> str:
    return f"; {int(count):,} {what}" if count else ""


Rule = Callable[[Evidence], Finding]
RULES: Final[tuple[Rule, ...]] = (
    no_oversell,
    accepted_is_settled,
    order_ids_are_unique,
    no_phantom_orders,
    units_are_conserved,
    nothing_is_stranded,
    user_limit_is_kept,
    a_key_buys_once,
    sold_out_means_sold_out,
    demand_empties_the_stock,
    refusals_are_plausible,
    no_dead_letters,
    guard_never_needed,
)
