"""Fairness: whether the first to come won, and how much the bots won.

First come, first served is what people take for just in a queue. Larson ("Perspectives on Queues: Social
Justice and the Psychology of Queueing", Operations Research 35(6), 1987) calls it a skip to be served before
somebody who came earlier, and a slip to be overtaken in this way. Here a client arrives at the intended start
of its first try, and it waits for the last unit: of the clients that the gate accepted or told SOLD_OUT, the
k winners should be the k that came first. A winner that came later has skipped, and for each such winner
somebody who should have won has slipped.
"""

import pandas as pd

from simulation.judge.numbers.latency import take_percentiles
from simulation.scenario.schema import Scenario

Fields = dict[str, float | int | None]


def measure_fairness(history: pd.DataFrame, scenario: Scenario) -> Fields:
    """Return the fields of `measure_order`, and those of `measure_bots` where the scenario has bots."""
    fields = measure_order(history)
    return fields | measure_bots(history, scenario) if scenario.population.bots else fields


def measure_order(history: pd.DataFrame) -> Fields:
    """Compare the order of arrival with the order of winning, over all products.

    clients                clients that the gate accepted in the end, or told SOLD_OUT
    winners                accepted clients
    out_of_turn_winners    winners that came after the last client that should have won (skips)
    out_of_turn_share      their share of the winners, 0 to 1; 0 where the first to come were the first served
    out_of_turn_p50_ms     how much later than that client they came: the median
    out_of_turn_max_ms     and the maximum
    rank_correlation       of arrival and answer among the winners: Spearman's ρ = 1 − 6·Σd² / Σn(n² − 1),
                           where d is how many places a winner moved among the n of its product. 1: answered
                           in the order of arrival; 0: in any order; −1: in the reverse order

    A unit from a declined payment goes to a client that came later, which counts as out of turn. A field is
    None where there is nothing to measure.
    """
    clients = _decide_clients(history)
    by_product = clients.groupby("product_id")
    winners = by_product["won"].transform("sum")
    place = by_product.cumcount()
    last_rightful = clients[place == winners - 1].set_index("product_id")["arrived_ns"]
    skipped = clients[clients["won"] & (place >= winners)]
    skipped_ns = skipped["arrived_ns"] - skipped["product_id"].map(last_rightful)
    skipped_ms = take_percentiles(skipped_ns.to_numpy("float64") / 1e6)
    won = int(clients["won"].sum())
    return {
        "clients": len(clients),
        "winners": won,
        "out_of_turn_winners": len(skipped),
        "out_of_turn_share": len(skipped) / won if won else None,
        "out_of_turn_p50_ms": skipped_ms["p50"],
        "out_of_turn_max_ms": skipped_ms["max"],
        "rank_correlation": _correlate(clients[clients["won"]]),
    }


def _decide_clients(history: pd.DataFrame) -> pd.DataFrame:
    """Return product_id, arrived_ns, won_ns and `won` of each client that was accepted or told SOLD_OUT, in
    the order of arrival."""
    decided = history[history["outcome"].isin(["ACCEPTED", "SOLD_OUT"])]
    won_ns = decided[decided["outcome"] == "ACCEPTED"].groupby("first_op")["done_ns"].min()
    first = history[(history["attempt"] == 0) & history["op"].isin(decided["first_op"])]
    clients = first[["product_id"]].assign(arrived_ns=first["intended_ns"], won_ns=first["op"].map(won_ns))
    return clients.assign(won=clients["won_ns"].notna()).sort_values("arrived_ns", kind="stable")


def _correlate(winners: pd.DataFrame) -> float | None:
    """Return Spearman's ρ of arrival and answer, over all products; `winners` are in the order of arrival."""
    by_product = winners.groupby("product_id")
    size = by_product.size().to_numpy("float64")
    if not (pairs := float((size * (size**2 - 1)).sum())):
        return None
    moved = by_product["won_ns"].rank(method="first").to_numpy("float64") - 1 - by_product.cumcount()
    return round(float(1 - 6 * (moved**2).sum() / pairs), 6)


def measure_bots(history: pd.DataFrame, scenario: Scenario) -> Fields:
    """Compare what bots won with how many they are and how much they asked for.

    people_heads, bots_heads                    users with at least one request
    people_requests, bots_requests              their requests, retries included
    people_units, bots_units                    units that they were told they have
    bots_head_share, bots_request_share, bots_unit_share    the bots' share of both together, 0 to 1
    people_units_per_head, bots_units_per_head  equal where bots won no more than people
    """
    is_bot = history["user_id"] > scenario.population.users
    quantity = {sale.product_id: sale.quantity for sale in scenario.sales}
    fields: Fields = {}
    for name, mine in (("people", history[~is_bot]), ("bots", history[is_bot])):
        accepted = mine[mine["outcome"] == "ACCEPTED"].drop_duplicates("order_id")
        heads, units = mine["user_id"].nunique(), int(accepted["product_id"].map(quantity).fillna(1).sum())
        fields |= {f"{name}_heads": heads, f"{name}_requests": len(mine), f"{name}_units": units}
        fields[f"{name}_units_per_head"] = units / heads if heads else None
    for word in ("head", "request", "unit"):
        people, bots = fields[f"people_{word}s"] or 0, fields[f"bots_{word}s"] or 0
        fields[f"bots_{word}_share"] = bots / (people + bots) if people + bots else None
    return fields
