"""What became of the sales: units, orders, and how long it took to sell out and to settle."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from simulation.judge.asked import Asked
from simulation.judge.numbers.latency import delay_ms, take_percentiles
from simulation.model.events import Restocked
from simulation.model.state import FinalState


def settled_orders(state: FinalState) -> pd.DataFrame | None:
    """Return the settled orders of the ledger; None where it could not be read."""
    return None if state.orders is None else state.orders.dropna(subset=["accepted_us", "settled_us"])


def measure_fulfilment(state: FinalState) -> dict[str, Any]:
    """Return the orders by status, the delay of fulfilment, and how long the drain took."""
    orders = settled_orders(state)
    delay = take_percentiles(np.empty(0) if orders is None else delay_ms(orders))
    counts = {
        word: None if state.orders is None else int((state.orders["status"] == word.upper()).sum())
        for word in ("confirmed", "failed", "rejected")
    }
    return {
        **counts,
        "lag_p50_ms": delay["p50"],
        "lag_p99_ms": delay["p99"],
        "drained_s": state.drained_s,
        "bus": "rabbitmq" if state.bus else "none" if "outbox" in state.without else "outbox",
    }


def measure_stock(state: FinalState, asked: Asked) -> dict[str, int | None]:
    """Return the units of all sales: asked for, confirmed, left at the gate, and sold beyond what was
    asked for."""
    orders, sales, gate = state.orders, state.sales, state.gate
    sold = oversold = None
    if orders is not None and sales is not None:
        units = orders[orders["status"] == "CONFIRMED"].groupby("sale_id")["quantity"].sum()
        excess = units.sub(asked.match(sales)["stock"], fill_value=0).clip(lower=0)
        sold, oversold = int(units.sum()), int(excess.sum())
    current = gate
    if gate is not None and sales is not None:
        current = gate[gate["sale_id"].isin(asked.match(sales).index)]
    return {
        "initial": sum(sale.stock for sale in asked.sales),
        "sold": sold,
        "remaining": None if current is None else int(current["remaining"].sum()),
        "oversold": oversold,
    }


def time_to_sell_out(history: pd.DataFrame, restocks: Sequence[Restocked] = ()) -> float | None:
    """Return the seconds from the first request to the last accepted purchase; None where nothing sold out.

    Of a restocked product, only the answers before its restock count: the time that its first stock took.
    """
    first_s = float(history["intended_ns"].min()) / 1e9
    for restock in restocks:
        later = (history["product_id"] == restock.product_id) & (history["done_ns"] >= restock.at_s * 1e9)
        history = history[~later.fillna(False)]
    moment_s = _sold_out_at(history)
    return None if moment_s is None else moment_s - first_s


def measure_restock(
    history: pd.DataFrame, state: FinalState, restock: Restocked, restocks: Sequence[Restocked]
) -> dict[str, Any]:
    """Return the restock, the units confirmed of it, and how long it took to sell out, if it did."""
    following = (each.at_s for each in restocks if each.product_id == restock.product_id)
    next_s = min((at_s for at_s in following if at_s > restock.at_s), default=math.inf)
    done = history["done_ns"]
    within = history["product_id"] == restock.product_id
    within &= ((done >= restock.at_s * 1e9) & (done < next_s * 1e9)).fillna(False)
    # A request that was sent before the restock was open may have been refused by the sale before.
    stale = (history["outcome"] == "SOLD_OUT") & (history["sent_ns"] < restock.opened_s * 1e9).fillna(True)
    moment_s = _sold_out_at(history[within & ~stale])
    confirmed = None
    if (orders := settled_orders(state)) is not None:
        mine = orders[(orders["sale_id"] == restock.sale_id) & (orders["status"] == "CONFIRMED")]
        confirmed = int(mine["quantity"].sum())
    return {
        **msgspec.to_builtins(restock),
        "sold": confirmed,
        "sold_out_after_s": None if moment_s is None else moment_s - restock.at_s,
    }


def _sold_out_at(history: pd.DataFrame) -> float | None:
    """Return when the last purchase of a sold-out product was accepted, in seconds from the run's start."""
    sold_out = history.loc[history["outcome"] == "SOLD_OUT", "product_id"].unique()
    accepted = history[(history["outcome"] == "ACCEPTED") & history["product_id"].isin(sold_out)]
    if accepted.empty:
        return None
    # A retry under the same key is told ACCEPTED long after: only the first answer for an order counts.
    return float(accepted.groupby("order_id")["done_ns"].min().max()) / 1e9
