"""Histories and final states for the tests, made by a model of a correct engine."""

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from hypothesis import settings

from simulation.judge.asked import LONG_AGO, Asked, AskedSale
from simulation.judge.verdict import RULES, Check, Rule
from simulation.judge.verdict import judge as judge_run
from simulation.model.events import Recovery
from simulation.model.state import GATE_TYPES, ORDER_TYPES, SALE_TYPES, FinalState

STATUS = {
    "ACCEPTED": 200,
    "SOLD_OUT": 429,
    "LIMIT_REACHED": 409,
    "NOT_STARTED": 403,
    "SALE_ENDED": 410,
    "UNKNOWN_PRODUCT": 404,
    "INVALID": 400,
    "UNAVAILABLE": 503,
    "UNKNOWN": 0,
}


TROUBLE = Recovery(kind="cut", on="redis", start_s=0, end_s=1, recovered_after_s=0.0)
"""The fault behind an answer that is lost."""


@dataclass(frozen=True)
class Terms:
    """A sale of the model; its id is its place in the list, from 1."""

    product_id: int = 1
    stock: int = 3
    quantity: int = 1
    limit: int | None = None
    starts_us: int | None = None
    ends_us: int | None = None
    opens_ns: int = 0
    """When it replaces the earlier sale of its product."""

    def ask(self) -> AskedSale:
        """Return the sale as it is asked for: within a microsecond of the moment when it opens."""
        return AskedSale(
            product_id=self.product_id,
            stock=self.stock,
            quantity=self.quantity,
            limit=self.limit,
            starts_ns=None if self.starts_us is None else 1_000 * self.starts_us,
            ends_ns=None if self.ends_us is None else 1_000 * self.ends_us,
            asked_ns=self.opens_ns - 1_000 if self.opens_ns else LONG_AGO,
            opened_ns=self.opens_ns + 1_000 if self.opens_ns else LONG_AGO,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Played(FinalState):
    """The final state of a run of the model, and what was asked of it."""

    asked: Asked


def judge(
    history: pd.DataFrame,
    state: FinalState,
    reads: pd.DataFrame | None = None,
    timeline: pd.DataFrame | None = None,
    rules: Sequence[Rule] = RULES,
    **changes: Any,
) -> list[Check]:
    """Return the checks of a run that `play` played; `changes` are of what was asked."""
    assert isinstance(state, Played)
    return judge_run(history, state, replace(state.asked, **changes), reads, timeline, rules)


def judging(runs: int) -> settings:
    """Return Hypothesis' settings for a test that judges so many runs, fewer in `make quick`."""
    return settings(max_examples=-(-runs * settings().max_examples // 100))


@dataclass(frozen=True)
class Ask:
    """A request: when it is sent, when the gate sees it, and what becomes of its answer."""

    user_id: int
    product_id: int = 1
    key: str | None = None
    sent_ns: int = 0
    gate_ns: int = 0
    done_ns: int = 0
    lost: bool = False
    """The client never hears the answer."""
    arrives: bool = True
    """Whether a lost request reached the gate."""
    declined: bool = False


@dataclass(frozen=True)
class Look:
    """A read: of an order, by its place among those that the model has accepted, or else of a stock."""

    product_id: int = 1
    order: int | None = None
    sent_ns: int = 0
    gate_ns: int = 0
    done_ns: int = 0


@dataclass
class Model:
    """A correct engine, one request at a time; declined units come back `release_ns` later."""

    sales: Sequence[Terms]
    release_ns: int = 50
    orders: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.remaining = {number: sale.stock for number, sale in enumerate(self.sales, 1)}
        self.bought: dict[tuple[int, int], int] = defaultdict(int)
        self.answers: dict[tuple[int, int, str], str] = {}
        self.releases: list[tuple[int, int, int, int]] = []

    def decide(self, ask: Ask) -> tuple[str, str | None]:
        """Return the outcome, and the order id of an accepted purchase."""
        self.release_until(ask.gate_ns)
        number = self.current(ask.product_id, ask.gate_ns)
        if number == 0:
            return "UNKNOWN_PRODUCT", None
        sale = self.sales[number - 1]
        if ask.key and (known := self.answers.get((ask.user_id, ask.product_id, ask.key))):
            return "ACCEPTED", known
        if sale.starts_us is not None and ask.gate_ns // 1000 < sale.starts_us:
            return "NOT_STARTED", None
        if sale.ends_us is not None and ask.gate_ns // 1000 >= sale.ends_us:
            return "SALE_ENDED", None
        buyer = (ask.user_id, number)
        if sale.limit is not None and self.bought[buyer] + sale.quantity > sale.limit:
            return "LIMIT_REACHED", None
        if self.remaining[number] < sale.quantity:
            return "SOLD_OUT", None
        self.remaining[number] -= sale.quantity
        self.bought[buyer] += sale.quantity
        if ask.declined:
            self.releases.append((ask.gate_ns + self.release_ns, *buyer, sale.quantity))
        order_id = str(uuid.UUID(int=len(self.orders) + 1))
        self.orders.append(
            order(order_id, ask, number, sale.quantity, "FAILED" if ask.declined else "CONFIRMED")
            | {"gate_ns": ask.gate_ns}
        )
        if ask.key:
            self.answers[ask.user_id, ask.product_id, ask.key] = order_id
        return "ACCEPTED", order_id

    def show(self, op: int, look: Look) -> list[dict[str, Any]]:
        """Return the row of a read, if there is something to read."""
        self.release_until(look.gate_ns)
        times = {"sent_ns": look.sent_ns, "done_ns": look.done_ns}
        if look.order is None:
            number = self.current(look.product_id, look.gate_ns)
            units = self.sales[number - 1].stock, self.remaining[number]
            return [read_stock(op, look.sent_ns, *units) | times | {"product_id": look.product_id}]
        if not self.orders:
            return []
        row = self.orders[look.order % len(self.orders)]
        status = row["status"] if look.gate_ns >= row["gate_ns"] + 100 else "PENDING"
        return [read_order(op, row["order_id"], look.sent_ns, status) | times]

    def current(self, product_id: int, now_ns: int) -> int:
        """Return the number of the product's sale at that moment; 0 if there is none."""
        opened = [
            number
            for number, sale in enumerate(self.sales, 1)
            if sale.product_id == product_id and sale.opens_ns <= now_ns
        ]
        return max(opened, default=0)

    def release_until(self, now_ns: int) -> None:
        """Release the units of payments that were declined long enough ago."""
        for release in sorted(self.releases):
            due, user_id, number, quantity = release
            if due <= now_ns:
                if number == self.current(self.sales[number - 1].product_id, due):
                    self.remaining[number] += quantity
                    self.bought[user_id, number] -= quantity
                self.releases.remove(release)


def order(
    order_id: str, ask: Ask, sale_id: int, quantity: int = 1, status: str = "CONFIRMED"
) -> dict[str, Any]:
    """Return a row of the ledger."""
    reason = {"FAILED": "declined", "REJECTED": "no unit left"}.get(status)
    accepted_us = ask.gate_ns // 1000
    return {
        "order_id": order_id,
        "sale_id": sale_id,
        "product_id": ask.product_id,
        "user_id": ask.user_id,
        "quantity": quantity,
        "status": status,
        "reason": reason,
        "idempotency_key": ask.key,
        "accepted_us": accepted_us,
        "settled_us": accepted_us,
    }


def operation(op: int, ask: Ask, outcome: str, order_id: str | None = None) -> dict[str, Any]:
    """Return a row of the history."""
    result = {"ACCEPTED": "ok", "UNKNOWN": "unknown"}.get(outcome, "fail")
    return {
        "op": op,
        "driver": 0,
        "user_id": ask.user_id,
        "product_id": ask.product_id,
        "key": ask.key,
        "intended_ns": ask.sent_ns,
        "sent_ns": ask.sent_ns,
        "done_ns": ask.done_ns,
        "status": STATUS[outcome],
        "outcome": outcome,
        "result": result,
        "order_id": order_id,
        "attempt": 0,
        "first_op": op,
        "kind": "buy",
        "order_status": None,
        "initial": None,
        "remaining": None,
        "sold": None,
        "end": "answered" if STATUS[outcome] else "timeout",
        "unsure_ns": 0,
        "door": 0,
    }


def read_order(op: int, order_id: str, sent_ns: int, status: str | None) -> dict[str, Any]:
    """Return a row of the history: a read of an order, answered ten nanoseconds after it was sent; without a
    status it was not found."""
    shown = {"outcome": "NOT_FOUND", "result": "fail", "status": 404} if status is None else {}
    return _look(op, "order", sent_ns) | {"order_id": order_id, "order_status": status} | shown


def read_stock(op: int, sent_ns: int, initial: int, remaining: int) -> dict[str, Any]:
    """Return a row of the history: a read of stock, answered ten nanoseconds after it was sent."""
    units = {"initial": initial, "remaining": remaining, "sold": initial - remaining}
    return _look(op, "stock", sent_ns) | units


def _look(op: int, kind: str, sent_ns: int) -> dict[str, Any]:
    ask = Ask(0, sent_ns=sent_ns, done_ns=sent_ns + 10)
    return operation(op, ask, "ACCEPTED") | {"kind": kind, "outcome": "SHOWN", "result": "ok"}


def history_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows as a history, in its types."""
    frame = pd.DataFrame(rows, columns=list(operation(0, Ask(1), "ACCEPTED")))
    whole = dict.fromkeys(
        ["op", "user_id", "product_id", "intended_ns", "attempt", "first_op", "unsure_ns", "door"], "int64"
    )
    maybe = dict.fromkeys(["sent_ns", "done_ns", "initial", "remaining", "sold"], "Int64")
    text = dict.fromkeys(["key", "order_id", "order_status"], "str")
    words = dict.fromkeys(["outcome", "result", "kind", "end"], "category")
    return frame.astype({**whole, **maybe, **text, **words})


def orders_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows as the ledger's orders, in their types."""
    frame = pd.DataFrame(rows, columns=list(ORDER_TYPES))
    return frame.astype(
        {name: "Int64" if str(kind) == "int64" else "str" for name, kind in ORDER_TYPES.items()}
    )


def play(asks: Sequence[Ask], sales: Sequence[Terms]) -> tuple[pd.DataFrame, Played]:
    """Return the history that clients of a correct engine see, and the final state of its stores."""
    history, _, state = play_and_look(asks, (), sales)
    return history, state


def play_and_look(
    asks: Sequence[Ask], looks: Sequence[Look], sales: Sequence[Terms]
) -> tuple[pd.DataFrame, pd.DataFrame, Played]:
    """Return what `play` does, and in the middle the reads; an order is PENDING for 100 ns."""
    model = Model(sales)
    rows, reads = {}, []
    requests: list[Ask | Look] = [*asks, *looks]
    for op, ask in sorted(enumerate(requests), key=lambda pair: pair[1].gate_ns):
        if isinstance(ask, Look):
            reads += model.show(op, ask)
            continue
        outcome, order_id = model.decide(ask) if ask.arrives or not ask.lost else ("UNKNOWN", None)
        rows[op] = operation(op, ask, *(("UNKNOWN", None) if ask.lost else (outcome, order_id)))
        if ask.lost:
            rows[op]["done_ns"] = None
    model.release_until(2**62)
    confirmed: dict[int, int] = defaultdict(int)
    failed: dict[int, int] = defaultdict(int)
    for row in model.orders:
        units = confirmed if row["status"] == "CONFIRMED" else failed
        units[row["sale_id"]] += row["quantity"]
    gate: list[list[Any]] = [
        [s.product_id, i, s.stock, model.remaining[i], failed[i], s.limit, s.quantity]
        + [None if hour is None else hour / 1_000 for hour in (s.starts_us, s.ends_us)]
        for i, s in enumerate(sales, 1)
        if i == model.current(s.product_id, 2**62)
    ]
    state = Played(
        asked=Asked(
            sales=[sale.ask() for sale in sales],
            faults=[TROUBLE] if any(ask.lost for ask in asks) else [],
            declines={row["order_id"] for row in model.orders if row["status"] == "FAILED"}.__contains__,
        ),
        gate=pd.DataFrame(gate, columns=list(GATE_TYPES)).astype(
            GATE_TYPES | dict.fromkeys(["starts_ms", "ends_ms"], "Float64")
        ),
        pending=frozenset(),
        outbox=0,
        queue=0,
        dead=0,
        sales=pd.DataFrame(
            [
                [i, s.product_id, s.stock, confirmed[i], s.limit, s.quantity, s.starts_us, s.ends_us]
                for i, s in enumerate(sales, 1)
            ],
            columns=list(SALE_TYPES),
        ).astype(dict.fromkeys(SALE_TYPES, "Int64")),
        orders=orders_of(model.orders),
        drained_s=0.1,
    )
    return history_of([rows[op] for op in sorted(rows)]), history_of(reads), state


def with_orders(state: Played, rows: Sequence[dict[str, Any]]) -> Played:
    """Return the state with other orders, and the sales' own counts in agreement with them."""
    assert state.sales is not None
    orders, sales = orders_of(rows), state.sales.copy()
    units = orders[orders["status"] == "CONFIRMED"].groupby("sale_id")["quantity"].sum()
    sales["sold"] = sales["sale_id"].map(units).fillna(0).astype("Int64")
    return replace(state, orders=orders, sales=sales)


def order_rows(state: FinalState) -> list[dict[str, Any]]:
    """Return the ledger's orders as rows to change."""
    assert state.orders is not None
    return [
        {str(name): None if pd.isna(value) else value for name, value in row.items()}
        for row in state.orders.to_dict("records")
    ]


def at(time: int, user_id: int, **more: object) -> Ask:
    """Return a request that is sent, decided and answered within ten nanoseconds of `time`."""
    return replace(Ask(user_id, sent_ns=time, gate_ns=time + 5, done_ns=time + 10), **more)  # type: ignore[arg-type]


def broken(checks: list[Check]) -> set[str]:
    """Return the names of the broken rules."""
    return {check.name for check in checks if check.holds is False}


def edited(history: pd.DataFrame, op: int, **values: object) -> pd.DataFrame:
    """Return the history with other values in the row of `op`; the status follows the outcome."""
    if "outcome" in values:
        values = {"status": STATUS[str(values["outcome"])]} | values
    rows = history.astype({"outcome": "str", "result": "str"})
    for name, value in values.items():
        rows[name] = rows[name].mask(rows["op"] == op, value)
    return rows
