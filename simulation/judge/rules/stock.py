"""Rules about units: none is sold twice, none appears, and none vanishes."""

import numpy as np
import pandas as pd

from simulation.judge.asked import NEVER
from simulation.judge.rules.evidence import LIVE, Breach, Evidence, Finding, find, find_excess, read
from simulation.judge.rules.samples import judge_units, judge_waiting
from simulation.judge.rules.service import HAND_OVER_NS
from simulation.model.contract import FLASHGRID


def no_oversell(evidence: Evidence) -> Finding:
    """No sale confirms more units than were asked to be its stock, and buyers are never promised more
    units than that at once: those of a declined payment are free when it is settled. The ledger's own count
    of sold units agrees with its orders."""
    sales, orders, bought = evidence.sales, evidence.orders, evidence.bought
    oversold = (np.maximum(sales["CONFIRMED"], sales["sold"]) - sales["stock"]).clip(lower=0)
    # Its own count may have orders that the witness can't see.
    miscounted = (sales["sold"] - sales["CONFIRMED"]).abs() * (not evidence.is_blind)

    of_product = sales.groupby("product_id").agg({"stock": "sum", "quantity": "max"})
    lost = bought[~bought["order"].isin(orders["order"])]
    quantity = lost["product_id"].map(of_product["quantity"]).fillna(1)
    lost = lost.assign(quantity=quantity, from_ns=lost["done_ns"].astype("float64"), to_ns=float(NEVER))
    promised = pd.concat([evidence.holds, lost], ignore_index=True)
    named = promised[promised["sale_id"].isin(sales.index)].astype({"sale_id": "int64"})
    overpromised = max(
        find_excess(named, ["sale_id"], sales["stock"]).sum(),
        find_excess(promised, ["product_id"], of_product["stock"]).sum(),
    )
    return find(
        f"{sales['CONFIRMED'].sum():,} units confirmed of {sales['stock'].sum():,} in stock",
        Breach(oversold.sum(), "units too many", "sale", sales.index[oversold > 0]),
        Breach(
            miscounted.sum(), "units apart from the sale's own count", "sale", sales.index[miscounted > 0]
        ),
        Breach(overpromised, "units promised beyond the stock at once"),
        chances=evidence.beyond,
    )


def units_are_conserved(evidence: Evidence) -> Finding:
    """No unit appears or vanishes. For every sale the stock equals the units left for sale, plus the units
    held by confirmed and pending orders, plus the units on their way to the ledger. The units of failed
    orders were released, and no others. Samples of what is for sale during the run never show more
    units, or fewer, than purchases can have left."""
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
    released, seen = _count_misreleased(evidence, gate, current), judge_units(evidence)
    found = find(
        f"{current['stock'].sum():,} units = {current['remaining_gate'].sum():,.0f} left for sale"
        f" + {current['live'].sum():,} held by orders + {flying.sum():,.0f} on their way"
        + (f"; {forgotten.sum():,} of the sales are not for sale" if forgotten.any() else ""),
        Breach(off.sum(), "units unaccounted for", "sale", current.loc[off > 0, "sale_id"]),
        Breach(released, "units apart in what was released and what failed"),
        *seen.breaches,
        chances=(current["live"] + current["FAILED"] + flying > 0).sum(),
    )
    return seen.doubt(found)


def _count_misreleased(evidence: Evidence, gate: pd.DataFrame, current: pd.DataFrame) -> int:
    """Return by how many units the gate's own count of released units is off those of failed orders. A gate
    that was rebuilt may have counted fewer."""
    if "released" not in gate or evidence.asked.contract != FLASHGRID:
        return 0
    more = current["product_id"].map(gate["released"]).fillna(0) - current["FAILED"]
    negative = gate["released"].clip(upper=0).abs().sum()
    asked = evidence.asked
    whole = not asked.faults and not asked.overload and not len(evidence.pending)
    return int(more.abs().sum() if whole else more.clip(lower=0).sum() + negative)


def nothing_is_stranded(evidence: Evidence) -> Finding:
    """Once the load is over, everything drains within the time that the scenario allows (drain_s): no
    reservation waits to be settled, nothing waits on its way to the ledger, and sales are open. Before, no
    order waits for as long as a recovery may take while none is settled, or younger ones of its product are.
    Samples of the stores during the run never show that more waits than purchases were sent, nor for long
    more than the ledger has still to settle."""
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
    stuck, seen = _find_stuck(evidence), judge_waiting(evidence)
    breaches = (
        Breach(stranded, "left"),
        Breach(len(stuck), "orders waited without a reason", "order", stuck),
        Breach(tardy, "time not drained, or sales not open, until the end"),
        *seen.breaches,
    )
    return seen.doubt(find(detail, *breaches, chances=len(evidence.accepted) + len(evidence.unknown)))


def _find_stuck(evidence: Evidence) -> list[str]:
    """Return the ids of the orders that were too long without any progress to the ledger."""
    asked = evidence.asked
    if evidence.state.orders is None or asked.declines is None or not asked.alone:
        return []  # a payment gateway elsewhere may be slow
    orders = evidence.orders.dropna(subset=["accepted_ns", "settled_ns"])
    orders = orders.astype({"accepted_ns": "float64", "settled_ns": "float64"}).sort_values("settled_ns")
    settled_ns = orders["settled_ns"]
    before_ns = settled_ns.shift()
    idle_ns = np.fmax(orders["accepted_ns"], before_ns.where(before_ns < settled_ns).ffill())
    youngest = orders.sort_values("accepted_ns", ascending=False).groupby("product_id")["settled_ns"]
    since_ns = np.fmin(idle_ns, youngest.cummin())
    spans = pd.DataFrame({"intended_ns": since_ns, "sent_ns": since_ns, "done_ns": settled_ns})
    long = settled_ns - since_ns > max(asked.recover_s * 1e9, HAND_OVER_NS, asked.idle_ns) + asked.clock_ns
    return orders.loc[long & ~asked.is_slow(spans), "order_id"].tolist()


def user_limit_is_kept(evidence: Evidence) -> Finding:
    """No buyer ever holds more units of a sale at once than the sale's limit for each user: an order that is
    accepted holds its units until its payment is settled as declined."""
    limits = evidence.sales["user_limit"].dropna().astype("int64")
    orders, buyer = evidence.orders, ["sale_id", "user_id"]
    least = evidence.sales.loc[limits.index].assign(most=limits // evidence.sales["quantity"])
    clients = evidence.sent.drop_duplicates("first_op").groupby(["product_id", "user_id"]).size()
    most = least.groupby("product_id")["most"].min()
    wanted = most.reindex(clients.index.get_level_values("product_id"))
    held = orders[orders["status"].isin(LIVE) & orders["sale_id"].isin(limits.index)]
    units = held.groupby(buyer)["quantity"].sum()
    more = units.index[units > units.index.get_level_values(0).map(limits.to_dict())]
    holds = evidence.holds[evidence.holds["sale_id"].isin(limits.index)]
    excess = find_excess(holds, buyer, limits)
    at_once = excess.index[excess > 0].difference(more)
    return find(
        f"{len(units):,} buyers of sales with a limit",
        Breach(len(more), "of them hold more", "user", more.get_level_values(1)),
        Breach(len(at_once), "have held more at once", "user", at_once.get_level_values(1)),
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
