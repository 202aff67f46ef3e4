"""The story of a purchase: its tries, its order, the reads of it, and the faults meanwhile."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import pandas as pd

from simulation.judge.figures import Run
from simulation.judge.rules.evidence import BUYER, Breach
from simulation.judge.rules.pairing import OF_OP, with_keys
from simulation.judge.thresholds import Metrics
from simulation.judge.verdict import find_breaches, gather
from simulation.model.events import Interval
from simulation.model.outcome import REFUSALS, TERMINAL
from simulation.model.state import FinalState
from simulation.report.story.story import Step
from simulation.report.words import FAULTS, count, seconds

UNTIMED: Final = "; nobody tells when"
UNTOLD: Final = "; no answer names it, but it fits the buyer, the product and the key"
UNEXPLAINED: Final = "; no answer names it, and no purchase fits it"


@dataclass(frozen=True, eq=False)
class Record:
    """What a story is told from."""

    run: Run
    metrics: Metrics
    history: pd.DataFrame
    """Every operation, reads too."""
    faults: Sequence[Interval]

    @property
    def state(self) -> FinalState:
        """What the stores held at the end."""
        return self.metrics.state

    @cached_property
    def zero_us(self) -> int:
        """The run's start, in Unix microseconds."""
        return round(self.metrics.started_at.timestamp() * 1e6)

    @cached_property
    def orders(self) -> pd.DataFrame:
        """The ledger's orders by id; none where it could not be read."""
        orders = with_keys(self.state, self.metrics.history)
        if orders is None:
            names = ["sale_id", "product_id", "user_id", "idempotency_key", "accepted_us", "settled_us"]
            return pd.DataFrame(columns=names)
        # A ledger of another engine may not tell how many units an order has: it is one then.
        orders = orders.assign(quantity=orders["quantity"].fillna(1))
        return orders.drop_duplicates("order_id").set_index("order_id")

    @cached_property
    def breaches(self) -> Mapping[str, Sequence[Breach]]:
        """Where each rule is broken, by its name."""
        run = self.metrics
        return find_breaches(gather(run.history, run.state, run.asked, run.reads, run.timeline))

    @cached_property
    def told(self) -> frozenset[str]:
        """The ids of the orders that clients were told of."""
        if not self.names_orders:
            return frozenset()
        return frozenset(self.history.loc[self.history["kind"] == "buy", "order_id"].dropna())

    def knows(self, order_id: str) -> bool:
        """Return whether the run has that order: a store holds it, or an answer or a read names it."""
        held = order_id in self.orders.index or order_id in (self.state.pending or ())
        return bool(held or (self.history["order_id"] == order_id).any())

    @property
    def names_orders(self) -> bool:
        """Whether the engine's answers name orders."""
        return self.metrics.asked.contract.buy.order_id is not None

    @property
    def unread(self) -> str:
        """Why nobody can tell of orders."""
        return f"nobody can say: {self.state.unread.get('ledger', f'the {self.ledger} could not be read')}"

    @property
    def has_stages(self) -> bool:
        """Whether the engine has an outbox, a gate and a ledger as Flashgrid has them."""
        return "outbox" not in self.state.without

    @property
    def ledger(self) -> str:
        """What the orders are read from, in words."""
        return "ledger" if self.has_stages else "witness"

    def since_start(self, moment_us: Any) -> float | None:
        """Return a store's time in seconds from the run's start."""
        return None if pd.isna(moment_us) else (int(moment_us) - self.zero_us) / 1e6

    def find_fault_words(self, start_s: float, end_s: float) -> Iterator[Step]:
        """Yield a step for each fault that overlaps the span."""
        for fault in self.faults:
            if fault.start_s <= end_s and fault.end_s >= start_s:
                words = f"{fault.kind.replace('_', ' ')} {fault.on}, until {fault.end_s:.4f} s"
                said = fault.failed or FAULTS.get(fault.kind, "")
                yield Step(what="fault", at_s=fault.start_s, words=f"{words}: {said}")


def tell_request(record: Record, row: Any) -> list[Step]:
    """Return the steps of one operation of the history: planned, sent, answered."""
    number = f"request {row.op}"
    if row.kind != "buy":
        asks = f"asks for order {row.order_id}" if row.kind == "order" else "asks for the stock"
        number = f"read {row.op}, {asks}"
    elif row.attempt:
        number += f", try {row.attempt + 1} of request {row.first_op}"
    planned_s = row.intended_ns / 1e9
    phase = next(
        (name for name, start, end in record.run.scenario.phases() if start <= planned_s < end), None
    )
    who = f"user {row.user_id} buys product {row.product_id}" if row.kind == "buy" else ""
    key = (f"under key {row.key}" if isinstance(row.key, str) else "without a key") if who else ""
    planned = ", ".join(filter(None, [number, who, key, phase and f'phase "{phase}"']))
    steps = [Step(what="planned", at_s=planned_s, words=planned)]
    if pd.isna(row.sent_ns):
        at_s = planned_s if pd.isna(row.done_ns) else row.done_ns / 1e9
        words = "its connection was refused" if row.end == "refused" else "the driver gave it up unsent"
        return [*steps, Step(what="not sent", at_s=at_s, words=words)]
    sent_s = row.sent_ns / 1e9
    late = seconds(sent_s - planned_s)
    steps.append(
        Step(
            what="sent", at_s=sent_s, words=f"{late} after its planned start, by driver process {row.driver}"
        )
    )
    if pd.isna(row.done_ns):
        timeout_s = record.run.scenario.driver.timeout_ms / 1e3
        at_s = sent_s + timeout_s if row.end == "timeout" else None
        why = {
            "timeout": f"no answer within {seconds(timeout_s)}",
            "reset": "the connection closed before an answer was complete; when is not recorded",
            "garbage": "what came back is no HTTP",
        }.get(str(row.end), "no answer")
        return [
            *steps,
            Step(what="unanswered", at_s=at_s, after_s=sent_s, words=f"{why}: the client never learnt more"),
        ]
    answer = f"{row.status or row.end} {row.outcome}"
    if row.kind == "order" and isinstance(row.order_status, str):
        answer += f", {row.order_status}"
    if row.kind == "stock" and not pd.isna(row.remaining):
        answer += f", {row.remaining} of {row.initial} left"
    took = f"{seconds(row.done_ns / 1e9 - planned_s)} after its planned start"
    if isinstance(row.order_id, str) and row.kind == "buy":
        answer += f", order {row.order_id}" if record.names_orders else ", which names no order"
    steps.append(Step(what="answered", at_s=row.done_ns / 1e9, words=f"{answer}, {took}"))
    return steps


def tell_order(record: Record, order_id: str, sent_s: float | None) -> list[Step]:
    """Return the steps of an order at the stores: reserved, relayed (at Flashgrid), settled, released.

    `sent_s` is when its purchase was first sent, None if nobody knows.
    """
    if order_id not in record.orders.index:
        if order_id in (record.state.pending or ()):
            words = "the gate holds its unit; the ledger has not settled it"
            if not record.has_stages:
                words = "the witness shows it as PENDING"
            return [Step(what="reserved", words=words, after_s=sent_s)]
        if record.state.orders is None:
            return [Step(what="settled", words=record.unread, after_s=sent_s)]
        lacks = "no order left for this purchase" if order_id.startswith(OF_OP) else "no such order"
        return [Step(what="not settled", words=f"the {record.ledger} has {lacks}")]
    order = record.orders.loc[order_id]
    reserved_s, settled_s = (record.since_start(order[name]) for name in ("accepted_us", "settled_us"))
    units = f"{order['quantity']} unit{'s' if order['quantity'] != 1 else ''}"
    told = "" if order_id in record.told else UNEXPLAINED if sent_s is None else UNTOLD
    clock = " (gate's clock, whole ms)" if record.has_stages else " (engine's clock)"
    words = f"{units} of sale {order['sale_id']}, for order {order_id}{told}"
    words += UNTIMED if reserved_s is None else clock
    steps = [Step(what="reserved", at_s=reserved_s, after_s=sent_s, words=words)]
    begun_s = steps[0].place_s
    if settled_s is None and order["status"] in TERMINAL:
        return [*steps, Step(what="settled", words=f"{order['status']}{UNTIMED}")]
    if settled_s is None:
        left = f"queue {count(record.state.queue)} at the end"
        if record.has_stages:
            left = f"outbox {count(record.state.outbox)}, {left}"
        return [*steps, Step(what="not settled", words=f"status {order['status']}; {left}")]
    if record.has_stages:
        steps.append(_tell_relayed(record, reserved_s, settled_s, begun_s))
    reason = f" ({order['reason']})" if isinstance(order.get("reason"), str) else ""
    took = "" if reserved_s is None else f", {seconds(settled_s - reserved_s)} after it was reserved"
    steps.append(
        Step(
            what="settled",
            at_s=settled_s,
            after_s=begun_s,
            words=f"{order['status']}{reason} ({'ledger' if record.has_stages else 'engine'}'s clock){took}",
        )
    )
    if order["status"] == "FAILED":
        steps.append(
            Step(
                what="released",
                after_s=settled_s,
                words=f"{units} back {'to the gate' if record.has_stages else 'on sale'};"
                f" {_tell_released(record, order)}",
            )
        )
    if order["status"] == "REJECTED":
        ledger = "ledger" if record.has_stages else "engine"
        words = f"nothing: the {ledger} found no unit for it, so none goes back"
        steps.append(Step(what="released", after_s=settled_s, words=words))
    return steps


def _tell_relayed(record: Record, reserved_s: float | None, settled_s: float, begun_s: float) -> Step:
    empty_s = _find_empty_outbox(record, reserved_s)
    relayed_s = settled_s if empty_s is None else min(empty_s, settled_s)
    seen = ", when the outbox was seen empty" if empty_s is not None and empty_s < settled_s else ""
    way = "RabbitMQ" if record.state.bus else "fulfilment, without a bus"
    words = f"from the outbox to {way}, until {relayed_s:.4f} s{seen}; no store keeps the moment"
    return Step(what="relayed", after_s=begun_s, words=words)


def _find_empty_outbox(record: Record, since_s: float | None) -> float | None:
    """Return when a probe saw the outbox empty for the first time since a moment; None if none did."""
    if since_s is None or "outbox_entries" not in record.metrics.timeline:
        return None
    seen = record.metrics.timeline[
        (record.metrics.timeline["t_s"] > since_s) & (record.metrics.timeline["outbox_entries"] == 0)
    ]
    return None if seen.empty else float(seen["t_s"].iloc[0])


def _tell_released(record: Record, order: Any) -> str:
    said = "no store keeps the moment"
    gate = record.state.gate
    if not record.has_stages:
        return said
    if gate is None:
        return f"{said}, and the gate could not be read"
    sale = gate[gate["sale_id"] == order["sale_id"]]
    if sale.empty:
        return f"{said}, and the gate has another sale of the product by now"
    orders = record.orders
    failed = orders[(orders["sale_id"] == order["sale_id"]) & (orders["status"] == "FAILED")]
    units = int(failed["quantity"].sum())
    if "released" not in sale:
        return said
    released = int(sale["released"].iloc[0])
    return f"{said}; at the end the gate counts {released:,} units released, the ledger {units:,} failed"


def find_orders(record: Record, rows: pd.DataFrame) -> list[str]:
    """Return the ids of the orders that these purchases placed: those they were told, and those that the
    ledger holds for the same buyer, product and key, and nobody was told of."""
    told = list(dict.fromkeys(rows["order_id"].dropna()))
    open_ended = rows[rows["result"] == "unknown"]
    if open_ended.empty or record.orders.empty:
        return told
    known = set(record.history.loc[record.history["kind"] == "buy", "order_id"].dropna())
    untold = record.orders[~record.orders.index.isin(known)].rename(columns={"idempotency_key": "key"})
    buyers = pd.MultiIndex.from_frame(open_ended[BUYER].fillna({"key": ""}))
    mine = untold[pd.MultiIndex.from_frame(untold[BUYER].fillna({"key": ""})).isin(buyers)]
    return told + [str(order_id) for order_id in mine.index]


def find_traits(record: Record, rows: pd.DataFrame, orders: Sequence[str]) -> set[str]:
    """Return the traits by which rules look at these operations and their orders."""
    outcomes, traits = set(rows["outcome"]), set()
    traits |= {"sent"} if rows["sent_ns"].notna().any() else {"unsent"}
    traits |= {
        word
        for word, found in (
            ("accepted", "ACCEPTED" in outcomes),
            ("sold out", "SOLD_OUT" in outcomes),
            ("refused", bool(outcomes & set(REFUSALS))),
            ("unknown", bool((rows["result"] == "unknown").any())),
            ("keyed", bool(rows["key"].notna().any())),
            ("read", bool((rows["kind"] != "buy").any())),
            ("order", any(each in record.orders.index for each in orders)),
        )
        if found
    }
    timed = {
        sale.product_id
        for sale in record.run.scenario.sales
        if sale.starts_in_s is not None or sale.ends_in_s is not None
    }
    return traits | ({"timed"} if timed & set(rows["product_id"]) else set())
