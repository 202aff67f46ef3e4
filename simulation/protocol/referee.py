"""The referee: makes a record of an example, and has the judge's rules decide about it.

What Redis lost before it was relayed is gone, as promised to nobody: its buyers count as never answered.
After a loss that nobody could notice, or of what only a relay had, the ledger's guards may have been needed,
and a key may have got two orders, of which it buys one all the same; whoever was told SOLD_OUT before a loss
may see units on sale after it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pandas as pd

from engine.model.purchase import Outcome
from simulation.judge.asked import Asked, AskedSale
from simulation.judge.verdict import judge
from simulation.model.formats import decode_pending, decode_sales, name_key
from simulation.model.history import make_history
from simulation.model.outcome import result_of
from simulation.model.state import ORDER_TYPES, SALE_TYPES, FinalState
from simulation.protocol.processes import DECLINED
from simulation.protocol.requests import Purchase
from simulation.protocol.world import World

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
_COLUMNS: Final = [
    "op", "driver", "user_id", "product_id", "key", "intended_ns", "sent_ns", "done_ns", "status", "outcome",
    "result", "order_id",
]  # fmt: skip
_CLOCKS_NS: Final = 10**16
"""An example's events are counted, not timed: no rule may compare their times with those of a store."""
_AFTER_A_LOSS: Final = {
    "sold out means sold out", "demand empties the stock", "refusals are true", "a key tells the truth"
}  # fmt: skip
"""Rules about what clients were told before a loss, which it may have made untrue."""
_AFTER_A_SURPRISE: Final = {"guard never needed", "a key buys once", "user limit is kept"}
"""Rules that a loss breaks which nobody could notice."""
_LOAD: Final = {"no server errors", "the sale happened"}
"""Rules about a load, of which there is none."""
JUDGED: Final = 16
"""One in so many examples is judged by the judge, too, which takes longer than the example itself."""


Buyer = tuple[int, int, str | None]
"""User, product and key."""


def find_faults(world: World) -> list[str]:
    """Return what an example that has drained shows to be wrong, a line each."""
    sales, orders = world.database.read("read_sales"), world.database.read("read_orders")
    gone = world.losses.lost - {row["order_id"] for row in orders}
    excused = set(_LOAD)
    if world.losses.count:
        excused |= _AFTER_A_LOSS
    if world.losses.is_unnoticed or len(gone) < len(world.losses.lost):
        excused |= _AFTER_A_SURPRISE
    faults = [
        *world.loop.failures,
        *_check_openings(world, sales),
        *_check(world, sales, orders, gone, excused),
    ]
    if not faults and sales and len(world.trace) % JUDGED == 0:
        checks = judge(_tell(world.purchases, gone), _hold(world, sales, orders), _ask(world, sales, orders))
        faults += [
            f"the judge says: {check.name}: {check.detail}"
            for check in checks
            if check.state == "broken" and check.name not in excused
        ]
    return faults


def _check_openings(world: World, sales: list[Any]) -> Iterator[str]:
    by_key = {row["idempotency_key"]: row["sale_id"] for row in sales}
    for key, opening in world.openings.items():
        if not opening.unsure and key in by_key:
            yield f"sale {key} was opened, and its operator was told that nothing happened"
        if opening.sale_id is not None and by_key.get(key) != opening.sale_id:
            yield f"sale {key} is {by_key.get(key)}, and its operator was told {opening.sale_id}"


def _check(
    world: World, sales: list[Any], orders: list[Any], gone: set[str], excused: set[str]
) -> Iterator[str]:
    """Yield what the judge's rules say, as far as an example needs them, in words of its own."""
    if unrest := world.find_unrest():
        yield f"it does not come to rest: {unrest}"
    if world.was_rebuilt and not world.losses.count:
        # The audit heals what it finds, which must be nothing.
        yield "units are conserved: the gate was rebuilt, and nothing had been lost"
    if world.bus.dead:
        yield f"no dead letters: {world.bus.dead[0]}"
    held: Counter[int] = Counter()
    by_user: Counter[tuple[int, int]] = Counter()
    by_buyer: Counter[Buyer] = Counter()
    bought: Counter[Buyer] = Counter()
    terms = {row["sale_id"]: row for row in sales}
    ledger = {row["order_id"]: row for row in orders}
    for order_id, row in ledger.items():
        buyer, status, sale = _buyer_of(row), row["status"], terms[row["sale_id"]]
        by_buyer[buyer] += 1
        if status == "CONFIRMED":
            held[row["sale_id"]] += row["quantity"]
            bought[buyer] += 1
            by_user[row["sale_id"], row["user_id"]] += row["quantity"]
        if row["quantity"] != sale["quantity"] or row["product_id"] != sale["product_id"]:
            yield f"terms are as asked: order {order_id} is not as its sale"
        if (status == "FAILED") != (row["user_id"] == DECLINED) and status != "REJECTED":
            yield f"payment decides: order {order_id} of user {row['user_id']} is {status}"
        if status == "REJECTED" and "guard never needed" not in excused:
            yield f"guard never needed: order {order_id} is REJECTED"
    for sale_id, sale in terms.items():
        if not held[sale_id] == sale["sold"] <= sale["stock"]:
            count = f"{held[sale_id]} confirmed, {sale['sold']} of {sale['stock']} sold"
            yield f"no oversell: sale {sale_id} has {count}"
    for (sale_id, user_id), units in by_user.items():
        limit = terms[sale_id]["user_limit"]
        if limit is not None and units > limit and "user limit is kept" not in excused:
            yield f"user limit is kept: user {user_id} has {units} of sale {sale_id}, and may have {limit}"
    told: dict[str, Buyer | None] = {}
    by_key: dict[Buyer, str] = {}
    unknown: Counter[Buyer] = Counter()
    for purchase in world.purchases:
        buyer, order_id = (purchase.user_id, purchase.product_id, purchase.key), purchase.order_id
        if order_id is None or order_id in gone:
            unknown[buyer] += purchase.outcome in (None, Outcome.OUTCOME_UNKNOWN)
            continue
        found = ledger.get(order_id)
        if found is None:
            yield f"accepted is settled: order {order_id} of user {purchase.user_id} is not in the ledger"
        elif _buyer_of(found) != buyer:
            yield f"accepted is settled: order {order_id} belongs to another buyer, product or key"
        if order_id in told and (told[order_id] != buyer or purchase.key is None):
            yield f"order ids are unique: {order_id} stands for two purchases"
        told[order_id] = buyer
        first_id = by_key.setdefault(buyer, order_id)
        if purchase.key is not None and first_id != order_id and "a key buys once" not in excused:
            yield f"a key buys once: {buyer} was told {first_id} and {order_id}"
    for buyer, placed in by_buyer.items():
        if buyer[2] is not None and placed > 1 and "a key buys once" not in excused:
            yield f"a key buys once: {buyer} has {placed} orders"
        if buyer[2] is not None and bought[buyer] > 1:
            yield f"a key buys once: {buyer} has bought {bought[buyer]} times"
        silent = [id_ for id_, row in ledger.items() if id_ not in told and _buyer_of(row) == buyer]
        if len(silent) > unknown[buyer]:
            yield f"no phantom orders: nobody asked for {silent}"


def _buyer_of(row: Any) -> Buyer:
    return row["user_id"], row["product_id"], row["idempotency_key"]


def _ask(world: World, sales: list[Any], orders: list[Any]) -> Asked:
    declined = {row["order_id"]: row["user_id"] == DECLINED for row in orders}
    return Asked(
        sales=[_ask_sale(world, row) for row in sales],
        declines=declined.__getitem__,
        overload=True,
        clock_ns=_CLOCKS_NS,
        started_us=world.clock.now_ms * 1000,
    )


def _ask_sale(world: World, row: Any) -> AskedSale:
    opening = world.openings[row["idempotency_key"]]
    terms = opening.terms
    return AskedSale(
        product_id=terms.product_id,
        stock=terms.stock,
        quantity=terms.quantity,
        limit=terms.limit,
        asked_ns=opening.asked,
        opened_ns=opening.opened or 2**40,
        named=opening.sale_id,
    )


def _tell(purchases: list[Purchase], gone: set[str]) -> pd.DataFrame:
    """Return the history: what clients were told, but for what is gone."""
    rows = []
    # A product that is on sale later is rightly not known before.
    known = [each for each in purchases if each.outcome is not Outcome.UNKNOWN_PRODUCT]
    for op, purchase in enumerate(known):
        told = None if purchase.order_id in gone else purchase.outcome
        word = _WORD.get(told) or str(told)
        rows.append(
            (
                op, 0, purchase.user_id, purchase.product_id, purchase.key, purchase.sent, purchase.sent,
                -1 if told is None or purchase.done is None else purchase.done, _STATUS[told],
                word, result_of(word),
                purchase.order_id if told is Outcome.ACCEPTED else None,
            )
        )  # fmt: skip
    return make_history({str(name): column for name, column in pd.DataFrame(rows, columns=_COLUMNS).items()})


def _hold(world: World, sales: list[Any], orders: list[Any]) -> FinalState:
    call = world.memory.call
    pending = call("HGETALL", name_key(0, "pending"))
    names = call("KEYS", name_key(0, "sale:*"))
    hashes = {}
    for name in names:
        flat = call("HGETALL", name)
        hashes[name] = dict(zip(flat[::2], flat[1::2], strict=True))
    outbox = name_key(0, "outbox")
    return FinalState(
        gate=decode_sales(hashes),
        pending=frozenset(decode_pending(dict(zip(pending[::2], pending[1::2], strict=True)))),
        outbox=call("XLEN", outbox) if call("EXISTS", outbox) else 0,
        queue=len(world.bus.list_bodies()),
        dead=len(world.bus.dead),
        sales=_frame([tuple(row)[:8] for row in sales], SALE_TYPES),
        orders=_frame(orders, ORDER_TYPES),
        drained_s=0.0,
    )


def _frame(rows: list[Any], types: dict[str, Any]) -> pd.DataFrame:
    frame = pd.DataFrame([tuple(row) for row in rows], columns=list(types))
    texts = {name: "str" if "string" in str(kind) else "Int64" for name, kind in types.items()}
    return frame.astype(texts)
