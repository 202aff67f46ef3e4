"""Histories and final states for the tests, made by a model of a correct engine."""

import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from simulation.judge.verdict import Check
from simulation.model.state import ORDER_TYPES, SALE_TYPES, FinalState

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


@dataclass(frozen=True)
class Terms:
    """A sale of the model; its id is its place in the list, from 1."""

    product_id: int = 1
    stock: int = 3
    quantity: int = 1
    limit: int | None = None
    starts_us: int | None = None
    opens_ns: int = 0
    """When it replaces the earlier sale of its product."""


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
        )
        if ask.key:
            self.answers[ask.user_id, ask.product_id, ask.key] = order_id
        return "ACCEPTED", order_id

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
        "settled_us": accepted_us + 5_000,
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
        "end": "answered" if STATUS[outcome] else "timeout",
        "unsure_ns": 0,
    }


def history_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows as a history, in its types."""
    frame = pd.DataFrame(rows, columns=list(operation(0, Ask(1), "ACCEPTED")))
    whole = dict.fromkeys(
        ["op", "user_id", "product_id", "intended_ns", "attempt", "first_op", "unsure_ns"], "int64"
    )
    text = {"key": "str", "order_id": "str", "outcome": "category", "result": "category"}
    return frame.astype({**whole, "sent_ns": "Int64", "done_ns": "Int64", **text})


def orders_of(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return the rows as the ledger's orders, in their types."""
    frame = pd.DataFrame(rows, columns=list(ORDER_TYPES))
    return frame.astype(
        {name: "Int64" if str(kind) == "int64" else "str" for name, kind in ORDER_TYPES.items()}
    )


def play(asks: Sequence[Ask], sales: Sequence[Terms]) -> tuple[pd.DataFrame, FinalState]:
    """Return the history that clients of a correct engine see, and the final state of its stores."""
    model = Model(sales)
    rows = {}
    for op, ask in sorted(enumerate(asks), key=lambda pair: pair[1].gate_ns):
        outcome, order_id = model.decide(ask) if ask.arrives or not ask.lost else ("UNKNOWN", None)
        rows[op] = operation(op, ask, *(("UNKNOWN", None) if ask.lost else (outcome, order_id)))
    model.release_until(2**62)
    confirmed: dict[int, int] = defaultdict(int)
    failed: dict[int, int] = defaultdict(int)
    for row in model.orders:
        units = confirmed if row["status"] == "CONFIRMED" else failed
        units[row["sale_id"]] += row["quantity"]
    state = FinalState(
        gate=pd.DataFrame(
            [
                [s.product_id, i, s.stock, model.remaining[i], failed[i]]
                for i, s in enumerate(sales, 1)
                if i == model.current(s.product_id, 2**62)
            ],
            columns=["product_id", "sale_id", "stock", "remaining", "released"],
        ),
        pending=frozenset(),
        outbox=0,
        queue=0,
        dead=0,
        sales=pd.DataFrame(
            [
                [i, s.product_id, s.stock, confirmed[i], s.limit, s.quantity, s.starts_us, None]
                for i, s in enumerate(sales, 1)
            ],
            columns=list(SALE_TYPES),
        ).astype(dict.fromkeys(SALE_TYPES, "Int64")),
        orders=orders_of(model.orders),
        drained_s=0.1,
    )
    return history_of([rows[op] for op in sorted(rows)]), state


def with_orders(state: FinalState, rows: Sequence[dict[str, Any]]) -> FinalState:
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
    """Return the history with other values in the row of `op`."""
    rows = history.astype({"outcome": "str", "result": "str"})
    for name, value in values.items():
        rows[name] = rows[name].mask(rows["op"] == op, value)
    return rows
