"""Rules about orders: each stands for one accepted purchase, and each comes to its end."""

import pandas as pd

from simulation.judge.asked import GRACE_S
from simulation.judge.rules.evidence import (
    BUYER,
    LIVE,
    Breach,
    Evidence,
    Finding,
    Unknown,
    find,
    read,
)
from simulation.judge.rules.samples import judge_orders
from simulation.judge.rules.service import count_turned_away, find_outage, is_beside
from simulation.model.outcome import TERMINAL


def accepted_is_settled(evidence: Evidence) -> Finding:
    """No accepted purchase is lost. Every purchase answered ACCEPTED is in the ledger exactly once, for
    its buyer, its product, its Idempotency-Key and the sale that was open, as accepted while its request was
    under way, and has reached its end afterwards, before the ledger was read: CONFIRMED, FAILED or
    REJECTED."""
    answers = evidence.accepted[["order", "order_id", *BUYER]].drop_duplicates()
    orders, slack_ns = evidence.orders, evidence.asked.clock_ns + 1_000_000
    held = orders[["order", *BUYER, "sale_id", "status", "accepted_ns", "settled_ns"]]
    found = answers.merge(held, on="order", how="left", suffixes=("", "_ledger"))
    # A request that is answered again under its key names its first acceptance.
    bought = evidence.bought.set_index("order")[["first_ns", "done_ns", "certain"]]
    found = found.join(bought[bought.index >= 0], on="order")
    ids, status = found["order_id"], found["status"]
    lost = status.isna()
    unsettled = ~lost & ~status.isin(TERMINAL)
    moved = (found[BUYER] != found[[f"{name}_ledger" for name in BUYER]].set_axis(BUYER, axis=1)).any(axis=1)
    named = evidence.asked.contract.buy.order_id is not None
    elsewhere = found["certain"].notna() & (found["sale_id"] != found["certain"]) & ~lost & named
    early = found["accepted_ns"] < found["first_ns"].astype("float64") - slack_ns
    late = found["accepted_ns"] > found["done_ns"].astype("float64") + slack_ns
    # By two clocks, of gate and ledger.
    settled_ns = found["settled_ns"].astype("float64")
    hasty = settled_ns < found["accepted_ns"] - 2 * slack_ns
    timeless = settled_ns.isna() & ("settled_us" not in evidence.unseen)
    timeless |= settled_ns > float(evidence.asked.read_ns + slack_ns)
    timeless &= status.isin(TERMINAL)
    repeated = orders["order"].duplicated()
    return find(
        f"{len(answers):,} accepted purchases looked up",
        Breach(lost.sum(), "are not in the ledger", "order", ids[lost]),
        Breach(unsettled.sum(), "have not come to an end", "order", ids[unsettled]),
        Breach((~lost & moved).sum(), "belong to another buyer, product or key", "order", ids[~lost & moved]),
        Breach(elsewhere.sum(), "belong to another sale than the open one", "order", ids[elsewhere]),
        Breach(
            (early | late).sum(), "were accepted before or after their requests", "order", ids[early | late]
        ),
        Breach(hasty.sum(), "were settled before they were accepted", "order", ids[hasty]),
        Breach(timeless.sum(), "were settled at no time until the ledger was read", "order", ids[timeless]),
        Breach(repeated.sum(), "are in the ledger more than once", "order", orders.loc[repeated, "order_id"]),
        chances=len(answers),
    )


def order_ids_are_unique(evidence: Evidence) -> Finding:
    """No two purchases are answered with the same order id, unless one is a retry of the other: same buyer,
    same product, same Idempotency-Key."""
    accepted = evidence.accepted
    if evidence.asked.contract.buy.order_id is None:
        return Finding(0, "this engine names no orders", 0)
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
        chances=len(accepted),
    )


def no_phantom_orders(evidence: Evidence) -> Finding:
    """Every order in the ledger was asked for. Either its buyer was told ACCEPTED, or it belongs to a request
    whose outcome the client never learnt: one such request of that buyer, product and key for each order,
    sent before the order was accepted, and not long before, unless a fault or an overload held it back.
    Samples of the ledger during the run never count more orders than purchases were sent until then, or fewer
    than before, nor others than it had settled by its own word."""
    asked, orders = evidence.asked, evidence.orders
    if evidence.state.partial:
        raise Unknown("orders that no client was told of can't be seen")
    unanswered = orders[~orders["order"].isin(evidence.accepted["order"])]
    buyer = BUYER[:2] if "idempotency_key" in evidence.unseen else BUYER
    placed = unanswered.groupby(buyer).size()
    tries = evidence.unknown.groupby(buyer)["sent_ns"].agg(["size", "min", "max"]).reindex(placed.index)
    excess = (placed - tries["size"].fillna(0)).clip(lower=0)
    tried = unanswered[[*buyer, "accepted_ns"]].join(tries.astype("float64"), on=buyer)
    accepted_ns, slack_ns = tried["accepted_ns"], asked.clock_ns + 1_000_000
    patience_ns = asked.timeout_ns + slack_ns + round(GRACE_S * 1e9)
    known_ns = accepted_ns.fillna(0)
    times = {
        "intended_ns": known_ns - patience_ns,
        "sent_ns": known_ns - patience_ns,
        "done_ns": known_ns,
    }
    late = (accepted_ns > tried["max"] + patience_ns) & ~asked.is_slow(pd.DataFrame(times))
    untimely = (accepted_ns < tried["min"] - slack_ns) | late
    phantoms = int(excess.sum() + untimely.sum())
    strange = untimely | pd.MultiIndex.from_frame(unanswered[buyer]).isin(excess.index[excess > 0])
    seen = judge_orders(evidence)
    found = find(
        f"{len(unanswered):,} of {len(orders):,} orders have no accepted answer"
        + (f"; {len(unanswered) - phantoms:,} explained by an unknown outcome" if len(unanswered) else ""),
        Breach(phantoms, "explained by nothing", "order", unanswered.loc[strange, "order_id"]),
        *seen.breaches,
        chances=len(orders),
    )
    return seen.doubt(found)


def a_key_buys_once(evidence: Evidence) -> Finding:
    """One Idempotency-Key is one purchase: all requests of a buyer under one key place one order, and all
    accepted answers to them name that order. A second order that the ledger rejected has bought nothing."""
    placed = evidence.orders["status"] != "REJECTED"
    orders = evidence.orders[placed & (evidence.orders["key"] != "")]
    answers = evidence.accepted[evidence.accepted["key"] != ""].drop_duplicates([*BUYER, "order"])
    again, other = orders[orders.duplicated(BUYER)], answers[answers.duplicated(BUYER)]
    retries = (evidence.sent["key"] != "") & evidence.sent.duplicated(BUYER)
    return find(
        f"{len(orders):,} orders under a key, {retries.sum():,} retries",
        Breach(len(again), "bought again under a key already used", "order", again["order_id"]),
        Breach(len(other), "answers name another order for the same key", "op", other["op"]),
        chances=int(retries.sum()),
    )


def a_key_tells_the_truth(evidence: Evidence) -> Finding:
    """As long as an Idempotency-Key is remembered, whoever asks again under it hears of the order that
    it placed. Once an order is accepted that is confirmed or still waits, no later request under its key
    is refused, for whatever reason, and no more than one in ten of them is turned away without a reason."""
    asked, orders = evidence.asked, evidence.orders
    placed = orders[(orders["key"] != "") & orders["status"].isin(LIVE)]
    accepted = evidence.accepted[(evidence.accepted["key"] != "")]
    lives = accepted["order"].isin(placed["order"]) | ~accepted["order"].isin(orders["order"])
    # Known to its client when it was answered, to the engine when it was accepted.
    told = accepted[lives].groupby(BUYER)["done_ns"].min().astype("float64")
    held = placed.groupby(BUYER)["accepted_ns"].min() + asked.clock_ns + 1_000_000
    if "idempotency_key" in evidence.unseen:
        held = held[:0]  # which key placed an order that nobody was told of is a guess
    known = pd.concat([told, held], axis=1).min(axis=1).rename("known_ns")
    keyed = evidence.sent[evidence.sent["key"] != ""]
    later = keyed.join(known, on=BUYER)
    age_ns = later["sent_ns"].astype("float64") - later["known_ns"]
    # Widened times make it younger, by the doubt of both requests; it may be older by as much.
    doubt_ns = 4 * keyed["unsure_ns"].max()
    later = later[(age_ns > 0) & (age_ns + doubt_ns < asked.remembered_ns)]
    wrong = later[~later["outcome"].isin(["ACCEPTED", "UNAVAILABLE", "UNKNOWN"])]
    excused = asked.is_slow(later) | is_beside(find_outage(evidence), later)
    return find(
        f"{len(later):,} requests under the key of an order that lives",
        Breach(len(wrong), "were refused", "op", wrong["op"]),
        Breach(count_turned_away(later.assign(excused=excused)), "were turned away"),
        chances=len(later),
    )


def payment_decides(evidence: Evidence) -> Finding:
    """Every order ends as its payment did: FAILED if the payment was declined, and only then; the ledger
    tells no reason against one that is CONFIRMED. Without the payment's settings
    (engine.payment_decline_rate, for an engine elsewhere) nobody knows which payments were declined."""
    orders = evidence.orders[evidence.orders["status"].isin(TERMINAL)]
    ids = orders["order_id"]
    failed = orders["status"] == "FAILED"
    if evidence.asked.declines is None:
        said = "the payment's settings are not known"
        if failed.any():
            raise Unknown(f"{failed.sum():,} of {len(orders):,} orders failed, and {said}")
        return Finding(0, f"no order failed, and {said}", 0)
    declined = ids.map(evidence.asked.declines).astype(bool)
    unpaid, paid = declined & ~failed, failed & ~declined
    excused = (orders["status"] == "CONFIRMED") & orders["reason"].notna()
    return find(
        f"{declined.sum():,} of {len(orders):,} payments declined",
        Breach(unpaid.sum(), "orders did not fail though their payment was declined", "order", ids[unpaid]),
        Breach(paid.sum(), "orders failed though their payment was approved", "order", ids[paid]),
        Breach(excused.sum(), "orders are CONFIRMED, with a reason not to be", "order", ids[excused]),
        chances=len(orders),
    )


def no_dead_letters(evidence: Evidence) -> Finding:
    """Fulfilment can use every record that it receives: none is put aside as a dead letter."""
    if "dead letters" in evidence.state.without:
        return Finding(0, "this engine has no dead letters", 0)
    dead = read(evidence.state.dead, "number of dead letters")
    return Finding(dead, f"{dead:,} dead letters", max(dead, len(evidence.accepted) + len(evidence.unknown)))
