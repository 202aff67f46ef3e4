"""Records of examples for the whole judge, which takes as long for one as for many: they are judged together.

In one record no two examples have a product in common, so no rule takes one for the other.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from threading import Event
from typing import Any, Final

import msgspec
import pandas as pd

from engine.model.purchase import Outcome
from simulation.judge.asked import Asked, AskedSale
from simulation.judge.verdict import judge
from simulation.model.formats import decode_pending, decode_sales, name_key
from simulation.model.history import make_history
from simulation.model.outcome import result_of
from simulation.model.state import ORDER_TYPES, SALE_TYPES, FinalState
from simulation.protocol.example.processes import DECLINED
from simulation.protocol.example.world import World
from simulation.protocol.referee import find_gone

_STATUS: Final = {
    Outcome.ACCEPTED: 200,
    Outcome.SOLD_OUT: 429,
    Outcome.LIMIT_REACHED: 409,
    Outcome.UNKNOWN_PRODUCT: 404,
    Outcome.GATE_UNAVAILABLE: 503,
    Outcome.OUTCOME_UNKNOWN: 503,
    Outcome.OVERLOADED: 503,
    None: 0,
}
_WORD: Final = {
    Outcome.GATE_UNAVAILABLE: "UNAVAILABLE",
    Outcome.OVERLOADED: "UNAVAILABLE",
    Outcome.OUTCOME_UNKNOWN: "UNKNOWN",
    None: "UNKNOWN",
}
_REFUSALS: Final = {Outcome.SOLD_OUT, Outcome.LIMIT_REACHED}
_COLUMNS: Final = [
    "op", "driver", "user_id", "product_id", "key", "intended_ns", "sent_ns", "done_ns", "status", "outcome",
    "result", "order_id",
]  # fmt: skip
_CLOCKS_NS: Final = 10**16
"""An example's events are counted, not timed: no rule may compare their times with those of a store."""
_NEVER_NS: Final = 2**40
_AFTER_A_SURPRISE: Final = {
    "guard never needed", "a key buys once", "user limit is kept", "demand empties the stock",
    "a key tells the truth",
}  # fmt: skip
"""Rules that a surprise may break: the referee looks at each order, for which the judge has no eye."""
_LOAD: Final = {"no server errors", "the sale happened"}
"""Rules about a load, of which there is none."""
_PRODUCTS: Final = 1_000
"""More than an example has."""


class Record(msgspec.Struct):
    """What an example leaves."""

    trace: list[str]
    excused: list[str]
    """Rules that what was lost may have broken."""
    asked: list[AskedSale]
    told: list[list[Any]]
    """A row for each purchase, _COLUMNS."""
    gate: dict[int, dict[bytes, bytes]]
    """The gate's sales by product."""
    pending: set[str]
    waiting: tuple[int, int, int]
    """Entries of the outbox, messages of the queue, and dead letters."""
    sales: list[list[Any]]
    orders: list[list[Any]]
    started_us: int

    def move(self, products: int) -> None:
        """Give each product another number."""
        self.asked = [replace(sale, product_id=sale.product_id + products) for sale in self.asked]
        for rows, column in ((self.told, 3), (self.sales, 1), (self.orders, 2)):
            for row in rows:
                row[column] += products
        self.gate = {product + products: sale for product, sale in self.gate.items()}


class Tally:
    """What all examples did together, and who is told of the first one that is wrong."""

    def __init__(self, say: Callable[[str], None], stop: Event) -> None:
        self._say = say
        self.stop = stop
        self.examples = 0
        self.drain_steps = 0
        self.steps: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.trace: list[str] = []
        """What happened in the last example that failed."""
        self.faults: list[str] = []
        self.records: list[Record] = []
        """Of the examples that were well."""

    def note_wrong(self, trace: list[str]) -> None:
        """Note that an example is wrong, perhaps a shorter one than before."""
        if not self.trace:
            self._say(f"found at example {self.examples}, making it short")
        self.trace = trace


def make_record(world: World) -> Record:
    """Return the record of an example that has drained; what is gone was promised to nobody."""
    sales, orders = world.database.read("read_sales"), world.database.read("read_orders")
    gone = find_gone(world, orders)
    excused = set(_LOAD)
    if any(row["order_id"] in world.losses.surprises for row in orders):
        excused |= _AFTER_A_SURPRISE
    if world.losses.is_sale_forgotten:
        excused.add("accepted is settled")
    call = world.memory.call
    outbox = name_key(0, "outbox")
    return Record(
        trace=world.trace,
        excused=sorted(excused),
        asked=[_ask_sale(world, row) for row in sales],
        told=list(_tell(world, gone)),
        gate={
            int(name.rpartition(b":")[2]): _pair(call("HGETALL", name))
            for name in call("KEYS", name_key(0, "sale:*"))
        },
        pending=decode_pending(_pair(call("HGETALL", name_key(0, "pending")))),
        waiting=(
            call("XLEN", outbox) if call("EXISTS", outbox) else 0,
            len(world.bus.list_bodies()),
            len(world.bus.dead),
        ),
        sales=[list(row)[: len(SALE_TYPES)] for row in sales],
        orders=[list(row) for row in orders],
        started_us=world.clock.now_ms * 1000,
    )


def judge_records(records: Iterable[Record]) -> Iterator[tuple[Record, list[str]]]:
    """Yield the records in which rules are broken, with what the judge says of them."""
    excused = attrgetter("excused")
    for _, group in groupby(sorted(records, key=excused), excused):
        its = list(group)
        for number, record in enumerate(its):
            record.move(_PRODUCTS * number)
        if _judge(its):
            for record in its:
                if faults := _judge([record]):
                    yield record, faults


def _judge(records: Sequence[Record]) -> list[str]:
    orders = [row for record in records for row in record.orders]
    declined = {row[0]: row[3] == DECLINED for row in orders}
    asked = Asked(
        sales=[sale for record in records for sale in record.asked],
        declines=declined.__getitem__,
        overload=True,
        clock_ns=_CLOCKS_NS,
        started_us=records[0].started_us,
    )
    told = [[op, *row[1:]] for op, row in enumerate(row for record in records for row in record.told)]
    columns = {str(name): column for name, column in pd.DataFrame(told, columns=_COLUMNS).items()}
    outbox, queue, dead = (sum(numbers) for numbers in zip(*(each.waiting for each in records), strict=True))
    held = FinalState(
        gate=decode_sales(
            {
                name_key(0, f"sale:{product}").encode(): sale
                for record in records
                for product, sale in record.gate.items()
            }
        ),
        pending=frozenset[str]().union(*(record.pending for record in records)),
        outbox=outbox,
        queue=queue,
        dead=dead,
        sales=_frame([row for record in records for row in record.sales], SALE_TYPES),
        orders=_frame(orders, ORDER_TYPES),
        drained_s=0.0,
    )
    return [
        f"the judge says: {check.name}: {check.detail}"
        for check in judge(make_history(columns), held, asked)
        if check.state == "broken" and check.name not in records[0].excused
    ]


def _ask_sale(world: World, row: Any) -> AskedSale:
    opening = world.openings[row["idempotency_key"]]
    terms = opening.terms
    return AskedSale(
        product_id=terms.product_id,
        stock=terms.stock,
        quantity=terms.quantity,
        limit=terms.limit,
        asked_ns=opening.asked,
        opened_ns=opening.opened or _NEVER_NS,
        named=opening.sale_id,
    )


def _tell(world: World, gone: set[str]) -> Iterator[list[Any]]:
    """Yield what clients were told, but for what is gone, and for refusals that a loss may explain."""
    for purchase in world.purchases:
        # A product that is on sale later is rightly not known before.
        if purchase.outcome is Outcome.UNKNOWN_PRODUCT:
            continue
        if purchase.is_doubtful and purchase.outcome in _REFUSALS:
            continue
        told = None if purchase.order_id in gone else purchase.outcome
        word = _WORD.get(told) or str(told)
        yield [
            0, 0, purchase.user_id, purchase.product_id, purchase.key, purchase.sent, purchase.sent,
            -1 if told is None or purchase.done is None else purchase.done, _STATUS[told],
            word, result_of(word), purchase.order_id if told is Outcome.ACCEPTED else None,
        ]  # fmt: skip


def _pair(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _frame(rows: list[list[Any]], types: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(types))
    texts = {name: "str" if "string" in str(kind) else "Int64" for name, kind in types.items()}
    return frame.astype(texts)
