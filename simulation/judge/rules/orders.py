"""Rules about orders: each stands for one accepted purchase, and each comes to its end."""

import pandas as pd

from simulation.judge.rules.evidence import BUYER, Breach, Evidence, Finding, find, read
from simulation.model.outcome import TERMINAL


def accepted_is_settled(evidence: Evidence) -> Finding:
    """No accepted purchase is lost. Every purchase answered ACCEPTED is in the ledger exactly once, for its
    buyer and its product, and has reached its end: CONFIRMED, FAILED or REJECTED."""
    answers = evidence.accepted[["order", "order_id", "user_id", "product_id"]].drop_duplicates()
    orders = evidence.orders[["order", "user_id", "product_id", "status"]]
    found = answers.merge(orders, on="order", how="left", suffixes=("", "_ledger"))
    ids, status = found["order_id"], found["status"]
    lost = status.isna()
    unsettled = ~lost & ~status.isin(TERMINAL)
    moved = (found["user_id"] != found["user_id_ledger"]) | (
        found["product_id"] != found["product_id_ledger"]
    )
    repeated = orders["order"].duplicated()
    return find(
        f"{len(answers):,} accepted purchases looked up",
        Breach(lost.sum(), "are not in the ledger", "order", ids[lost]),
        Breach(unsettled.sum(), "have not come to an end", "order", ids[unsettled]),
        Breach((~lost & moved).sum(), "belong to another buyer or product", "order", ids[~lost & moved]),
        Breach(
            repeated.sum(),
            "are in the ledger more than once",
            "order",
            evidence.orders.loc[repeated, "order_id"],
        ),
    )


def order_ids_are_unique(evidence: Evidence) -> Finding:
    """No two purchases are answered with the same order id, unless one is a retry of the other: same buyer,
    same product, same Idempotency-Key."""
    accepted = evidence.accepted
    nameless = accepted["order"] < 0
    shared = accepted[accepted["order"].duplicated(keep=False) & ~nameless]
    buyers = shared[shared["key"] != ""].drop_duplicates(["order", *BUYER])["order"]
    wrong = set(shared.loc[shared["key"] == "", "order"]) | set(buyers[buyers.duplicated()])
    return find(
        f"{accepted['order'][~nameless].nunique():,} order ids in {len(accepted):,} accepted answers",
        Breach(
            len(wrong),
            "ids stand for different purchases",
            "order",
            accepted.loc[accepted["order"].isin(wrong), "order_id"],
        ),
        Breach(nameless.sum(), "answers carry no order id", "op", accepted.loc[nameless, "op"]),
    )


def no_phantom_orders(evidence: Evidence) -> Finding:
    """Every order in the ledger was asked for. Either its buyer was told ACCEPTED, or it belongs to a request
    whose outcome the client never learnt: one such request of that buyer, product and key for each order."""
    orders = evidence.orders
    unanswered = orders[~orders["order"].isin(evidence.accepted["order"])]
    placed = unanswered.groupby(BUYER).size()
    asked = evidence.unknown.groupby(BUYER).size().reindex(placed.index, fill_value=0)
    excess = (placed - asked).clip(lower=0)
    phantoms = int(excess.sum())
    strange = pd.MultiIndex.from_frame(unanswered[BUYER]).isin(excess.index[excess > 0])
    return find(
        f"{len(unanswered):,} of {len(orders):,} orders have no accepted answer"
        + (f"; {len(unanswered) - phantoms:,} explained by an unknown outcome" if len(unanswered) else ""),
        Breach(phantoms, "explained by nothing", "order", unanswered.loc[strange, "order_id"]),
    )


def a_key_buys_once(evidence: Evidence) -> Finding:
    """One Idempotency-Key is one purchase: all requests of a buyer under one key place one order, and all
    accepted answers to them name that order."""
    orders = evidence.orders[evidence.orders["key"] != ""]
    answers = evidence.accepted[evidence.accepted["key"] != ""].drop_duplicates([*BUYER, "order"])
    again, other = orders[orders.duplicated(BUYER)], answers[answers.duplicated(BUYER)]
    return find(
        f"{len(orders):,} orders under a key",
        Breach(len(again), "bought again under a key already used", "order", again["order_id"]),
        Breach(len(other), "answers name another order for the same key", "op", other["op"]),
    )


def payment_decides(evidence: Evidence) -> Finding:
    """Every order ends as its payment did: FAILED if the payment was declined, and only then."""
    if evidence.declines is None:
        return Finding(0, "not known which payments were declined")
    orders = evidence.orders[evidence.orders["status"].isin(TERMINAL)]
    ids = orders["order_id"]
    declined = ids.map(evidence.declines).astype(bool)
    failed = orders["status"] == "FAILED"
    unpaid, paid = declined & ~failed, failed & ~declined
    return find(
        f"{declined.sum():,} of {len(orders):,} payments declined",
        Breach(unpaid.sum(), "orders did not fail though their payment was declined", "order", ids[unpaid]),
        Breach(paid.sum(), "orders failed though their payment was approved", "order", ids[paid]),
    )


def no_dead_letters(evidence: Evidence) -> Finding:
    """Fulfilment can use every record that it receives: none is put aside as a dead letter."""
    dead = read(evidence.state.dead, "number of dead letters")
    return Finding(dead, f"{dead:,} dead letters")
