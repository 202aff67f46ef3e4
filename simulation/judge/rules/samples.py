"""What the probes saw of Flashgrid's stores while the run went on: counts that no right engine can have had.

What a sample tells was so at some time from its own moment until the next one's.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.asked import NEVER
from simulation.judge.rules.evidence import Breach, Evidence
from simulation.model.contract import FLASHGRID

WAITING = {"outbox_entries": "outbox", "pending_orders": "pending", "queue_messages": "queue"}
"""The columns that count what is on its way to the ledger, and the fields of the final state."""


def judge_units(evidence: Evidence) -> list[Breach]:
    """Return the samples in which units for sale are below zero, more than were asked for, or, of products
    with one sale and while nothing explains it, fewer or more than purchases can have left; the last one
    if the gate holds others; and those in which more orders were released than ever failed."""
    seen = _take(evidence, "stock_remaining")
    left, sales = seen["stock_remaining"], evidence.asked.frame
    failed = evidence.orders[evidence.orders["status"] == "FAILED"]
    odd = (left < 0) | (left > sales["stock"].sum())
    if not sales["product_id"].duplicated().any():
        quantity = sales.set_index("product_id")["quantity"]
        taken = _sum_until(pd.concat([evidence.takers, evidence.held]), "sent_ns", seen["until_ns"], quantity)
        sold = _sum_until(evidence.bought, "done_ns", seen["at_ns"] - 1_000_000, quantity)
        gone = sales["stock"].sum() - left
        odd |= ~seen["excused"] & ((gone > taken) | (gone < sold - failed["quantity"].sum()))
    gate = evidence.state.gate
    if gate is not None:
        held = gate.loc[gate["product_id"].isin(sales["product_id"]), "remaining"].sum()
        odd |= _is_last(seen, evidence) & (left != held)
    released = _take(evidence, "ledger_failed")
    more = released["ledger_failed"] > len(failed)
    return [
        Breach(odd.sum(), "samples saw units for sale that can't be", "second", seen.loc[odd, "t_s"]),
        Breach(more.sum(), "samples saw more released than failed", "second", released.loc[more, "t_s"]),
    ]


def judge_orders(evidence: Evidence) -> list[Breach]:
    """Return the samples in which the ledger has confirmed more orders than purchases were sent until then,
    or fewer than it had confirmed before; and the last one if the ledger holds others."""
    seen = _take(evidence, "ledger_confirmed")
    confirmed = seen["ledger_confirmed"]
    odd = confirmed > _sum_until(evidence.takers, "sent_ns", seen["until_ns"])
    # During a fault a probe may meet a server that is behind.
    odd |= ~seen["excused"] & (confirmed < confirmed.cummax())
    sales = evidence.asked_sales
    odd |= _is_last(seen, evidence) & (confirmed != (sales["sold"] // sales["quantity"]).sum())
    return [Breach(odd.sum(), "samples saw a number of orders that can't be", "second", seen.loc[odd, "t_s"])]


def judge_waiting(evidence: Evidence) -> list[Breach]:
    """Return where more waited than purchases had been sent, or, after all had drained, anything at all."""
    if not evidence.asked.alone:
        return []
    odd: list[float] = []
    for name, part in WAITING.items():
        seen = _take(evidence, name)
        sent = _sum_until(pd.concat([evidence.takers, evidence.held]), "sent_ns", seen["until_ns"])
        more = ~seen["excused"] & (seen[name] > sent)
        more |= _is_last(seen, evidence) & (seen[name] > 0) & (getattr(evidence.state, part) in (0, set()))
        odd += seen.loc[more, "t_s"].tolist()
    return [Breach(len(odd), "samples saw more waiting than can be", "second", odd)]


def _is_last(seen: pd.DataFrame, evidence: Evidence) -> "pd.Series[bool]":
    """Return which sample was taken when all had drained, and the stores had been read: the last one."""
    settled = evidence.asked.alone and evidence.state.drained_s is not None
    return (seen["until_ns"] == NEVER) & settled


def _take(evidence: Evidence, name: str) -> pd.DataFrame:
    """Return the samples that have a number there, with `at_ns` and `until_ns`, and whether a fault may be
    `excused` for it; none of an engine with other stores."""
    timeline = evidence.timeline
    if name not in timeline or evidence.asked.contract != FLASHGRID:
        timeline = pd.DataFrame({"t_s": [], name: []})
    at_ns = (timeline["t_s"] * 1e9).round().astype("int64")
    # Times of the samples are whole milliseconds.
    until_ns = at_ns.shift(-1, fill_value=NEVER - 10**6) + 10**6
    times = {"intended_ns": at_ns, "sent_ns": at_ns, "done_ns": until_ns}
    excused = evidence.asked.is_slow(pd.DataFrame(times), patient=True)
    seen = timeline[["t_s", name]].assign(at_ns=at_ns, until_ns=until_ns, excused=excused)
    return seen[seen[name].notna()].astype({name: "int64"})


def _sum_until(
    requests: pd.DataFrame, name: str, moments_ns: "pd.Series[int]", quantity: "pd.Series[int] | None" = None
) -> npt.NDArray[np.int64]:
    """Return how many of the requests had their time `name` by each moment; with a `quantity` for each
    product, how many units those take."""
    found = requests.dropna(subset=[name]).sort_values(name)
    units = np.ones(len(found)) if quantity is None else found["product_id"].map(quantity).fillna(0)
    sums = np.concatenate([[0], np.cumsum(units)]).astype(np.int64)
    times = found[name].to_numpy("int64")
    result: npt.NDArray[np.int64] = sums[np.searchsorted(times, moments_ns.to_numpy("int64"), side="right")]
    return result
