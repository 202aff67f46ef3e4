"""What the probes saw of Flashgrid's stores while the run went on: counts that no right engine can have had.

What a sample tells was so at some time from its own moment until the next one's. When orders were accepted
and settled is the ledger's word: a count that is ahead of it is wrong, and one that is PROMPT_NS behind it
for LATE_NS. But one that stands still meanwhile may be of a server that is no longer in charge.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from simulation.judge.asked import LONG_AGO, NEVER, PROMPT_NS
from simulation.judge.rules.evidence import Breach, Evidence, Finding, Unknown
from simulation.model.contract import FLASHGRID

WAITING = {"outbox_entries": "outbox", "pending_orders": "pending", "queue_messages": "queue"}
"""The columns that count what is on its way to the ledger, and the fields of the final state."""
LATE_NS = 2 * PROMPT_NS


class Seen(NamedTuple):
    """What the samples tell."""

    breaches: list[Breach]
    still: int
    """How many are late, of a count that stands still."""

    def doubt(self, found: Finding) -> Finding:
        """Return the finding. Raises Unknown if nothing breaks the rule, and samples are in doubt."""
        if self.still and not found.violations:
            raise Unknown(f"{found.detail}; but {self.still:,} samples saw a count that stood still")
        return found


def judge_units(evidence: Evidence) -> Seen:
    """Return the samples in which units for sale are below zero, more than were asked for, or, of products
    with one sale and while nothing explains it, fewer or more than purchases can have left; the last one
    if the gate holds others; and those in which more orders were released than had failed until then, or
    fewer."""
    if not _shows(evidence, "stock_remaining", "ledger_failed"):
        return Seen([], 0)
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
    count = released["ledger_failed"]
    wrong = (count < 0) | _is_ahead(released, count, failed, evidence)
    # A gate that was rebuilt, or a sale that was replaced, counts from 0.
    still = 0
    if not evidence.asked.faults and not sales["product_id"].duplicated().any():
        late, still = _find_late(released, count < _count_settled(released, failed, evidence), count)
        wrong |= late
    breaches = [
        Breach(odd.sum(), "samples saw units for sale that can't be", "second", seen.loc[odd, "t_s"]),
        Breach(wrong.sum(), "samples saw others released than failed", "second", released.loc[wrong, "t_s"]),
    ]
    return Seen(breaches, still)


def judge_orders(evidence: Evidence) -> Seen:
    """Return the samples in which the ledger has confirmed more orders than purchases were sent until then,
    fewer than it had confirmed before, or others than it says that it had settled; and the last one if the
    ledger holds others."""
    if not _shows(evidence, "ledger_confirmed"):
        return Seen([], 0)
    seen = _take(evidence, "ledger_confirmed")
    confirmed = seen["ledger_confirmed"]
    odd = confirmed > _sum_until(evidence.takers, "sent_ns", seen["until_ns"])
    # During a fault a probe may meet a server that is behind.
    odd |= ~seen["excused"] & (confirmed < confirmed.cummax())
    orders, sales = evidence.orders, evidence.asked_sales
    orders = orders[orders["status"] == "CONFIRMED"]
    odd |= _is_ahead(seen, confirmed, orders, evidence)
    # Nobody told the probes of a restock that was not answered.
    told = sales.index[(sales["asked_ns"] == LONG_AGO) | sales["named"].notna()]
    settled = _count_settled(seen, orders[orders["sale_id"].isin(told)], evidence)
    late, still = _find_late(seen, confirmed < settled, confirmed)
    odd |= late
    odd |= _is_last(seen, evidence) & (confirmed != (sales["sold"] // sales["quantity"]).sum())
    breach = Breach(odd.sum(), "samples saw a number of orders that can't be", "second", seen.loc[odd, "t_s"])
    return Seen([breach], still)


def judge_waiting(evidence: Evidence) -> Seen:
    """Return where less than nothing waited, or more than purchases had been sent; for long, more than the
    ledger lacked, and what had waited since a fault; or, after all had drained, anything at all."""
    if not evidence.asked.alone or not _shows(evidence, *WAITING):
        return Seen([], 0)
    odd: list[float] = []
    still = 0
    for name, part in WAITING.items():
        seen = _take(evidence, name)
        sent = _sum_until(pd.concat([evidence.takers, evidence.held]), "sent_ns", seen["until_ns"])
        more = (seen[name] < 0) | (~seen["excused"] & (seen[name] > sent))
        if evidence.state.orders is not None:
            late, stood = _find_late(
                seen, seen[name] > _count_unsettled(seen, name, evidence), seen[name], "slow"
            )
            more, still = more | late, still + stood
        more |= _is_last(seen, evidence) & (seen[name] > 0) & (getattr(evidence.state, part) in (0, set()))
        odd += seen.loc[more, "t_s"].tolist()
    return Seen([Breach(len(odd), "samples saw more waiting than can be", "second", odd)], still)


def _count_unsettled(seen: pd.DataFrame, name: str, evidence: Evidence) -> "pd.Series[int]":
    """Return for each sample how many orders had been accepted and not settled, by the ledger, and the least
    that had waited since the last fault."""
    orders = evidence.orders.fillna({"accepted_ns": LONG_AGO})
    placed = _sum_until(orders, "accepted_ns", seen["until_ns"] + evidence.asked.clock_ns + 10**6)
    since = seen["slow"].cumsum()
    left = seen[name].groupby(since).cummin().where(since > 0, 0)
    return left + placed - _count_settled(seen, orders, evidence)


def _is_ahead(
    seen: pd.DataFrame, count: "pd.Series[int]", orders: pd.DataFrame, evidence: Evidence
) -> "pd.Series[bool]":
    """Return in which samples more was counted than those of the orders that had been settled."""
    orders = orders.fillna({"settled_ns": LONG_AGO})
    return count > _sum_until(orders, "settled_ns", seen["until_ns"] + evidence.asked.clock_ns + 10**6)


def _count_settled(seen: pd.DataFrame, orders: pd.DataFrame, evidence: Evidence) -> npt.NDArray[np.int64]:
    """Return how many of the orders had certainly been settled PROMPT_NS before each sample."""
    return _sum_until(orders, "settled_ns", seen["at_ns"] - PROMPT_NS - evidence.asked.clock_ns - 10**6)


def _find_late(
    seen: pd.DataFrame, odd: "pd.Series[bool]", count: "pd.Series[int]", excused: str = "excused"
) -> tuple["pd.Series[bool]", int]:
    """Return which of the odd samples are in a row that lasts for LATE_NS, and in which the count changes;
    and the number of those in which it does not. A sample that could not be read ends a row."""
    odd &= ~seen[excused]
    row = ((odd != odd.shift()) | (seen.index.to_series().diff() > 1)).cumsum()
    at_ns, counts = seen["at_ns"].groupby(row), count.groupby(row)
    late = odd & (at_ns.transform("max") - at_ns.transform("min") >= LATE_NS)
    moves = counts.transform("max") > counts.transform("min")
    return late & moves, int((late & ~moves).sum())


def _is_last(seen: pd.DataFrame, evidence: Evidence) -> "pd.Series[bool]":
    """Return which sample was taken when all had drained, and the stores had been read: the last one."""
    settled = evidence.asked.alone and evidence.state.drained_s is not None
    return (seen["until_ns"] == NEVER) & settled


def _shows(evidence: Evidence, *names: str) -> bool:
    """Return whether the probes counted any of these; those of an engine with other stores say nothing."""
    return evidence.asked.contract == FLASHGRID and any(name in evidence.timeline for name in names)


def _take(evidence: Evidence, name: str) -> pd.DataFrame:
    """Return the samples that have a number there, with `at_ns` and `until_ns`, whether a fault may be
    `excused` for it, and whether it is `slow` since one is not seen to be over."""
    timeline = evidence.timeline
    if name not in timeline:
        timeline = pd.DataFrame({"t_s": [], name: []})
    at_ns = (timeline["t_s"] * 1e9).round().astype("int64")
    # Times of the samples are whole milliseconds.
    until_ns = at_ns.shift(-1, fill_value=NEVER - 10**6) + 10**6
    spans = pd.DataFrame({"intended_ns": at_ns, "sent_ns": at_ns, "done_ns": until_ns})
    excused, slow = (evidence.asked.is_slow(spans, patient=patient) for patient in (True, False))
    seen = timeline[["t_s", name]].assign(at_ns=at_ns, until_ns=until_ns, excused=excused, slow=slow)
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
