"""Rules about units: none is sold twice, none appears, and none vanishes."""

import numpy as np

from simulation.judge.rules.evidence import LIVE, Breach, Evidence, Finding, find, read


def no_oversell(evidence: Evidence) -> Finding:
    """No sale confirms more units than were asked to be its stock, and buyers are not promised more
    units than that either. The ledger's own count of sold units agrees with its orders."""
    sales, orders, accepted = evidence.sales, evidence.orders, evidence.accepted
    oversold = (np.maximum(sales["CONFIRMED"], sales["sold"]) - sales["stock"]).clip(lower=0)
    # Its own count may have orders that the witness can't see.
    miscounted = (sales["sold"] - sales["CONFIRMED"]).abs() * (not evidence.is_blind)

    lapsed = orders[orders["status"].isin(["FAILED", "REJECTED"]) & orders["order"].isin(accepted["order"])]
    of_product = sales.groupby("product_id").agg({"stock": "sum", "quantity": "max"})
    promises = accepted.drop_duplicates("order")["product_id"].value_counts()
    promised = promises * of_product["quantity"].reindex(promises.index, fill_value=1)
    promised = promised.sub(lapsed.groupby("product_id")["quantity"].sum(), fill_value=0)
    overpromised = promised.sub(of_product["stock"], fill_value=0).clip(lower=0)
    return find(
        f"{sales['CONFIRMED'].sum():,} units confirmed of {sales['stock'].sum():,} in stock",
        Breach(oversold.sum(), "units too many", "sale", sales.index[oversold > 0]),
        Breach(
            miscounted.sum(), "units apart from the sale's own count", "sale", sales.index[miscounted > 0]
        ),
        Breach(overpromised.sum(), "units promised beyond the stock"),
        chances=evidence.beyond,
    )


def units_are_conserved(evidence: Evidence) -> Finding:
    """No unit appears or vanishes. For every sale the stock equals the units left for sale, plus the units
    held by confirmed and pending orders, plus the units on their way to the ledger."""
    gate = read(evidence.state.gate, "stock for sale").drop_duplicates("product_id").set_index("product_id")
    current = evidence.sales[~evidence.sales["product_id"].duplicated(keep="last")].reset_index()
    current = current.join(gate[["sale_id", "remaining"]].add_suffix("_gate"), on="product_id")
    # A pending id is in flight only until the ledger has it; its product is known from the client's answer.
    on_way = evidence.accepted.drop_duplicates("order")
    on_way = on_way[on_way["order"].isin(evidence.pending) & ~on_way["order"].isin(evidence.orders["order"])]
    flying = current["product_id"].map(on_way["product_id"].value_counts()).fillna(0) * current["quantity"]
    forgotten = current["sale_id_gate"] != current["sale_id"]
    off = current["stock"] - current["remaining_gate"] - current["live"] - flying
    off = off.where(~forgotten, current["stock"]).abs()
    return find(
        f"{current['stock'].sum():,} units = {current['remaining_gate'].sum():,.0f} left for sale"
        f" + {current['live'].sum():,} held by orders + {flying.sum():,.0f} on their way"
        + (f"; {forgotten.sum():,} of the sales are not for sale" if forgotten.any() else ""),
        Breach(off.sum(), "units unaccounted for", "sale", current.loc[off > 0, "sale_id"]),
        chances=(current["live"] + current["FAILED"] + flying > 0).sum(),
    )


def nothing_is_stranded(evidence: Evidence) -> Finding:
    """Once the load is over, everything drains within the time that the scenario allows (drain_s): no
    reservation waits to be settled, nothing waits on its way to the ledger, and sales are open."""
    state = evidence.state
    if "waiting" in state.without and state.drained_s is not None:
        return Finding(0, "this engine has no place where a purchase waits", 0)
    left = {
        "pending reservations": None if state.pending is None else len(state.pending),
        "outbox entries": state.outbox,
        "queue messages": state.queue,
    }
    if "outbox" in state.without and state.outbox is not None:
        left = {name: count for name, count in left.items() if name != "outbox entries"}
        left = {name: count for name, count in left.items() if name != "queue messages" or state.bus}
    stranded = sum(count or 0 for count in left.values())
    if not stranded:
        for name, count in left.items():
            read(count, f"number of {name}")
    detail = ", ".join(f"{count:,} {name}" for name, count in left.items() if count is not None)
    tardy = not stranded and state.drained_s is None
    breaches = (
        Breach(stranded, "left"),
        Breach(tardy, "time not drained, or sales not open, until the end"),
    )
    return find(detail, *breaches, chances=len(evidence.accepted) + len(evidence.unknown))


def user_limit_is_kept(evidence: Evidence) -> Finding:
    """No buyer holds more units of a sale than the sale's limit for each user."""
    limits = evidence.sales["user_limit"].dropna().astype("int64")
    orders = evidence.orders
    least = evidence.sales.loc[limits.index].assign(most=limits // evidence.sales["quantity"])
    clients = evidence.sent.drop_duplicates("first_op").groupby(["product_id", "user_id"]).size()
    most = least.groupby("product_id")["most"].min()
    wanted = most.reindex(clients.index.get_level_values("product_id"))
    held = orders[orders["status"].isin(LIVE) & orders["sale_id"].isin(limits.index)]
    units = held.groupby(["sale_id", "user_id"], as_index=False)["quantity"].sum()
    excess = units[units["quantity"] > units["sale_id"].map(limits)]
    return find(
        f"{len(units):,} buyers of sales with a limit",
        Breach(len(excess), "of them hold more", "user", excess["user_id"]),
        chances=(clients.to_numpy() > wanted.to_numpy()).sum(),
    )


def guard_never_needed(evidence: Evidence) -> Finding:
    """No more is sold than there is: the ledger's guard against overselling never has to reject an order."""
    orders = evidence.orders
    rejected = orders.loc[orders["status"] == "REJECTED", "order_id"]
    breach = Breach(len(rejected), "orders rejected", "order", rejected)
    found = (breach,) if len(rejected) else ()
    return Finding(len(rejected), f"{len(rejected):,} orders rejected", len(orders), found)


def demand_empties_the_stock(evidence: Evidence) -> Finding:
    """No unit stays unsold while buyers want it: a sale that told somebody SOLD_OUT, or whose buyers took all
    it had, has nothing left. Two kinds of unsold units are allowed: those that a declined payment gave back
    too late for another buyer, and a rest that is too small for one purchase."""
    sales = evidence.asked_sales
    refused = sales.index.isin(evidence.find_sale(evidence.answered("SOLD_OUT")))
    wanted = evidence.bought["sale_id"].value_counts().reindex(sales.index, fill_value=0) * sales["quantity"]
    sufficed = refused | (wanted + sales["quantity"] > sales["stock"])
    reached = sales[sufficed]
    unsold = reached["stock"] - reached["live"]
    left = (unsold - reached["FAILED"] - reached["quantity"] + 1).clip(lower=0)
    return find(
        f"demand reached the stock of {len(reached):,} of {len(sales):,} sales; "
        f"{unsold.sum():,} units unsold there",
        Breach(left.sum(), "of them without a reason", "sale", left.index[left > 0]),
        chances=len(reached),
    )
