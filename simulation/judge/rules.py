"""The rules that every correct run obeys.

Each is a function of the evidence whose docstring says in plain words what it means; the report shows it.
A rule only calls broken what no correct engine could have done: an unknown answer, a release, or a retry
under the same Idempotency-Key is given its most innocent reading.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from simulation.judge.evidence import BUYER, LIVE, TERMINAL, Evidence, read

PLACES: Final = 3
"""Most places that a detail names."""


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
        + _also(oversold.clip(lower=0).sum(), "units too many", "sale", sales.index[oversold > 0])
        + _also(
            miscounted.sum(), "units apart from the sale's own count", "sale", sales.index[miscounted > 0]
        )
        + _also(overpromised.sum(), "units promised beyond the stock"),
    )


def accepted_is_settled(evidence: Evidence) -> Finding:
    """Every purchase that was answered ACCEPTED is in the ledger exactly once, under its buyer and product,
    and has come to an end: CONFIRMED, FAILED or REJECTED. Nothing that was accepted is lost."""
    answers = evidence.accepted[["order", "order_id", "user_id", "product_id"]].drop_duplicates()
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
        + _also(lost.sum(), "are not in the ledger", "order", found.loc[lost, "order_id"])
        + _also(unsettled.sum(), "have not come to an end", "order", found.loc[unsettled, "order_id"])
        + _also(swapped.sum(), "belong to another buyer or product", "order", found.loc[swapped, "order_id"])
        + _also(
            repeated.sum(),
            "are in the ledger more than once",
            "order",
            evidence.orders.loc[repeated, "order_id"],
        ),
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
        + _also(
            len(wrong),
            "ids stand for different purchases",
            "order",
            accepted.loc[accepted["order"].isin(wrong), "order_id"],
        )
        + _also(nameless.sum(), "answers carry no order id", "op", accepted.loc[nameless, "op"]),
    )


def no_phantom_orders(evidence: Evidence) -> Finding:
    """Every order in the ledger was asked for: its buyer was told ACCEPTED, or never learnt the outcome of a
    request of just that buyer, product and key, one request for each order."""
    orders = evidence.orders
    unanswered = orders[~orders["order"].isin(evidence.accepted["order"])]
    placed = unanswered.groupby(BUYER).size()
    asked = evidence.unknown.groupby(BUYER).size().reindex(placed.index, fill_value=0)
    excess = (placed - asked).clip(lower=0)
    phantoms = int(excess.sum())
    strange = pd.MultiIndex.from_frame(unanswered[BUYER]).isin(excess.index[excess > 0])
    return Finding(
        phantoms,
        f"{len(unanswered):,} of {len(orders):,} orders have no accepted answer"
        + (f"; {len(unanswered) - phantoms:,} explained by an unknown outcome" if len(unanswered) else "")
        + _also(phantoms, "explained by nothing", "order", unanswered.loc[strange, "order_id"]),
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
        + _also(off.sum(), "units unaccounted for", "sale", current.loc[off > 0, "sale_id"]),
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
    count. Of a product that was restocked each sale is judged by the answers that surely are its own."""
    refused = evidence.refused.groupby("sale_id")[["done_ns", "op"]]
    began = _first_sent(evidence).groupby("sale_id")["sent_ns"]
    sales = evidence.timed_sales
    judged = 0
    false: list[int] = []
    # Less than one purchase's quantity was left, and all that was ever released may have come back later.
    explained = sales["quantity"] - 1 + evidence.released
    for sale_id, quantity, units in zip(sales.index, sales["quantity"], explained, strict=True):
        if sale_id not in refused.groups or sale_id not in began.groups:
            continue
        done, ops = refused.get_group(sale_id).to_numpy(dtype="int64").T
        starts = np.sort(began.get_group(sale_id).to_numpy(dtype="int64"))
        taken_later = (len(starts) - np.searchsorted(starts, done, side="right")) * quantity
        false += ops[taken_later > units].tolist()
        judged += len(done)
    return Finding(
        len(false),
        f"{judged:,} SOLD_OUT answers judged" + _also(len(false), "came while units were left", "op", false),
    )


def _first_sent(evidence: Evidence) -> pd.DataFrame:
    """sale_id and sent_ns of each accepted purchase: the first of the requests that may have placed it."""
    columns = ["order", "sale_id", "sent_ns"]
    accepted = evidence.takers
    keyed = accepted["key"] != ""
    single = accepted.loc[~keyed, columns]
    if not keyed.any():
        return single
    attempts = evidence.history[evidence.history["key"] != ""].groupby(BUYER)["sent_ns"].min()
    retried = accepted.loc[keyed, ["order", "sale_id", *BUYER]]
    return pd.concat([single, retried.join(attempts, on=BUYER)[columns]])


def demand_empties_the_stock(evidence: Evidence) -> Finding:
    """Where buyers were turned away for want of stock, or took as much as there was, no unit is left unsold,
    except those that payment declined too late for another buyer and a rest too small for one purchase."""
    sales = evidence.timed_sales
    refused = evidence.refused["sale_id"].value_counts().reindex(sales.index, fill_value=0)
    takers = evidence.takers["sale_id"].value_counts()
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


def sales_keep_their_hours(evidence: Evidence) -> Finding:
    """A sale keeps its hours: by the gate's clock nothing was accepted before its start or after its end, and
    nobody was told NOT_STARTED by a request that began after a purchase had been accepted. A product that was
    opened more than once is judged by the first half alone."""
    sales = evidence.sales
    timed = sales[sales["starts_us"].notna() | sales["ends_us"].notna()]
    if timed.empty:
        return Finding(0, "no sale has hours")
    orders = evidence.orders[evidence.orders["sale_id"].isin(timed.index)]
    accepted_us = orders["accepted_us"]
    early = (accepted_us < orders["sale_id"].map(timed["starts_us"])).fillna(False).sum()
    late = (accepted_us >= orders["sale_id"].map(timed["ends_us"])).fillna(False).sum()
    opened = evidence.accepted.groupby("product_id")["done_ns"].min()
    refused = evidence.answered("NOT_STARTED")
    refused = refused[~refused["product_id"].isin(sales["product_id"][sales["product_id"].duplicated()])]
    shut_out = (refused["sent_ns"] > refused["product_id"].map(opened)).fillna(False).sum()
    return Finding(
        int(early + late + shut_out),
        f"{len(orders):,} orders of sales with hours"
        + _also(early, "were accepted before the doors opened")
        + _also(late, "were accepted after the doors closed")
        + _also(shut_out, "requests found the doors closed that had let others in"),
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


def payment_decides(evidence: Evidence) -> Finding:
    """Every order ended as its payment did: FAILED where payment declined it, and only there."""
    if evidence.declines is None:
        return Finding(0, "who decided on the payments is not known")
    orders = evidence.orders[evidence.orders["status"].isin(TERMINAL)]
    declined = orders["order_id"].map(evidence.declines).astype(bool)
    failed = orders["status"] == "FAILED"
    unpaid, refused = declined & ~failed, failed & ~declined
    return Finding(
        int(unpaid.sum() + refused.sum()),
        f"{declined.sum():,} of {len(orders):,} payments declined"
        + _also(
            unpaid.sum(),
            "orders did not fail though their payment was declined",
            "order",
            orders.loc[unpaid, "order_id"],
        )
        + _also(
            refused.sum(),
            "orders failed though their payment was approved",
            "order",
            orders.loc[refused, "order_id"],
        ),
    )


def _also(count: float, what: str, kind: str = "", places: Iterable[Any] = ()) -> str:
    """What is broken how often, and where: the first few of `places`, which are ids of that kind."""
    named = list(dict.fromkeys(map(str, islice(places, PLACES))))
    where = f" ({kind} {', '.join(named)}{', …' if count > len(named) else ''})" if named else ""
    return f"; {int(count):,} {what}{where}" if count else ""


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
    sales_keep_their_hours,
    no_dead_letters,
    guard_never_needed,
    payment_decides,
)
