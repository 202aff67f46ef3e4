"""Fairness: whether those who came first won, and what bots won of it. Pure, from history and scenario.

First come, first served is what people take for just in a queue. Larson ("Perspectives on Queues: Social
Justice and the Psychology of Queueing", Operations Research 35(6), 1987) calls it a skip to be served before
somebody who came earlier, and a slip to be overtaken so. Here a client has come when its first try was meant
to start, and what it waits for is the last unit: of those on whom the gate decided by stock, the k winners
should be the k who came first. A winner that came later than those has skipped, and for each of them somebody
who should have won has slipped.
"""

from typing import Final

import numpy as np
import pandas as pd

from simulation.scenario.schema import Scenario

Fields = dict[str, float | int | None]

DECIDED: Final = ("ACCEPTED", "SOLD_OUT")


def measure_fairness(history: pd.DataFrame, scenario: Scenario) -> Fields:
    """The fields of both measures; those of the bots only where the scenario has some."""
    fields = measure_order(history)
    return fields | measure_bots(history, scenario) if scenario.population.bots else fields


def measure_order(history: pd.DataFrame) -> Fields:
    """The order of arrival against the order of winning, all products together.

    clients                on whom the gate decided by stock: in the end accepted, or told SOLD_OUT
    winners                of these, accepted
    out_of_turn_winners    winners that came after the last one who should have won (skips)
    out_of_turn_share      of the winners, 0 to 1; 0 where the first to come were the first served
    out_of_turn_p50_ms     how much later than that one half of them came
    out_of_turn_max_ms     and the last of them
    rank_correlation       of arrival and answer among the winners: Spearman's ρ = 1 − 6·Σd² / Σn(n² − 1),
                           where d is how many places a winner moved among the n of its product. 1: answered
                           in the order in which they came; 0: in any order; −1: the other way round

    Units that payment declined are sold to somebody who came later, and are counted as out of turn. None
    where there is nothing to measure.
    """
    clients = _decide_clients(history)
    by_product = clients.groupby("product_id")
    winners = by_product["won"].transform("sum")
    place = by_product.cumcount()
    skipped = clients["won"] & (place >= winners)
    last_rightful = clients[place == winners - 1].set_index("product_id")["arrived_ns"]
    late_ms = (clients["arrived_ns"] - clients["product_id"].map(last_rightful))[skipped] / 1e6
    won = int(clients["won"].sum())
    return {
        "clients": len(clients),
        "winners": won,
        "out_of_turn_winners": int(skipped.sum()),
        "out_of_turn_share": int(skipped.sum()) / won if won else None,
        "out_of_turn_p50_ms": round(float(late_ms.median()), 3) if len(late_ms) else None,
        "out_of_turn_max_ms": round(float(late_ms.max()), 3) if len(late_ms) else None,
        "rank_correlation": _correlate(clients[clients["won"]]),
    }


def _decide_clients(history: pd.DataFrame) -> pd.DataFrame:
    """product_id, arrived_ns, won_ns and `won` of each client whom the gate decided on, as they arrived."""
    decided = history[history["outcome"].isin(DECIDED)]
    won_ns = decided[decided["outcome"] == "ACCEPTED"].groupby("first_op")["done_ns"].min()
    first = history[(history["attempt"] == 0) & history["op"].isin(decided["first_op"])]
    clients = pd.DataFrame(
        {
            "product_id": first["product_id"],
            "arrived_ns": first["intended_ns"],
            "won_ns": first["op"].map(won_ns),
        }
    )
    return clients.assign(won=clients["won_ns"].notna()).sort_values("arrived_ns", kind="stable")


def _correlate(winners: pd.DataFrame) -> float | None:
    """Spearman's ρ of arrival and answer, over all products; `winners` are in the order of their arrival."""
    by_product = winners.groupby("product_id")
    size = by_product.size().to_numpy("float64")
    if not (pairs := float((size * (size**2 - 1)).sum())):
        return None
    moved = by_product["won_ns"].rank(method="first").to_numpy("float64") - 1 - by_product.cumcount()
    return round(float(1 - 6 * (moved**2).sum() / pairs), 6)


def measure_bots(history: pd.DataFrame, scenario: Scenario) -> Fields:
    """What bots won against what they asked for and how many they are.

    people_heads, bots_heads                    those who made a request
    people_requests, bots_requests              with the retries
    people_units, bots_units                    units that they were told they have
    bots_head_share, bots_request_share, bots_unit_share    0 to 1 of both together
    people_units_per_head, bots_units_per_head  with one unit for each head, both would have the same
    """
    is_bot = history["user_id"] > scenario.population.users
    quantity = {sale.product_id: sale.quantity for sale in scenario.sales}
    accepted = history[history["outcome"] == "ACCEPTED"].drop_duplicates("order_id")
    units = accepted["product_id"].map(quantity).fillna(1)
    won_by_bot = accepted["user_id"] > scenario.population.users
    heads = [int(history.loc[mask, "user_id"].nunique()) for mask in (~is_bot, is_bot)]
    requests = [int(np.count_nonzero(mask)) for mask in (~is_bot, is_bot)]
    taken = [int(units[mask].sum()) for mask in (~won_by_bot, won_by_bot)]
    fields: Fields = {}
    for name, (people, bots) in {"heads": heads, "requests": requests, "units": taken}.items():
        fields |= {f"people_{name}": people, f"bots_{name}": bots}
    for name, (people, bots) in {"head": heads, "request": requests, "unit": taken}.items():
        fields[f"bots_{name}_share"] = bots / (people + bots) if people + bots else None
    for name, count, won in zip(("people", "bots"), heads, taken, strict=True):
        fields[f"{name}_units_per_head"] = won / count if count else None
    return fields
