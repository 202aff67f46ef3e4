"""The referee: makes a record of an example, and has the judge's rules decide about it.

What Redis lost before it was relayed is gone, as promised to nobody: its buyers count as never answered.
An order that is a surprise (losses.py) may cost another one its unit or its key, of those that were not
settled before it and that were accepted before a rebuild knew of it: one order each, and no more. Whoever
was told SOLD_OUT before a loss may see units on sale after it.
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
from simulation.protocol.example.losses import Surprise
from simulation.protocol.example.processes import DECLINED
from simulation.protocol.example.requests import Purchase
from simulation.protocol.example.world import World

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
"""Rules that a surprise may break; here each of its orders is looked at, the judge has no eye for them."""
_LOAD: Final = {"no server errors", "the sale happened"}
"""Rules about a load, of which there is none."""
JUDGED: Final = 16
"""One in so many examples is judged by the judge, too, which takes longer than the example itself."""


_BY_KEY: Final = "its Idempotency-Key"
"""How the reason begins for which the ledger rejects the second order of a key."""

Buyer = tuple[int, int, str | None]
"""User, product and key."""


def find_faults(world: World) -> list[str]:
    """Return what an example that has drained shows to be wrong, a line each."""
    sales, orders = world.database.read("read_sales"), world.database.read("read_orders")
    gone = world.losses.lost - {row["order_id"] for row in orders}
    excused = set(_LOAD)
    if world.losses.count:
        excused |= _AFTER_A_LOSS
    if any(row["order_id"] in world.losses.surprises for row in orders):
        excused |= _AFTER_A_SURPRISE
    faults = [
        *world.loop.failures,
        *_check_openings(world, sales),
        *_check(world, sales, orders, gone),
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


def _check(world: World, sales: list[Any], orders: list[Any], gone: set[str]) -> Iterator[str]:
    """Yield what the judge's rules say, as far as an example needs them, in words of its own."""
    if unrest := world.find_unrest():
        yield f"it does not come to rest: {unrest}"
    if world.was_rebuilt and not world.losses.count:
        # The audit heals what it finds, which must be nothing.
        yield "units are conserved: the gate was rebuilt, and nothing had been lost"
    if world.bus.dead:
        yield f"no dead letters: {world.bus.dead[0]}"
    terms = {row["sale_id"]: row for row in sales}
    ledger = {row["order_id"]: row for row in orders}
    for order_id, row in ledger.items():
        status, sale = row["status"], terms[row["sale_id"]]
        if row["quantity"] != sale["quantity"] or row["product_id"] != sale["product_id"]:
            yield f"terms are as asked: order {order_id} is not as its sale"
        if (status == "FAILED") != (row["user_id"] == DECLINED) and status != "REJECTED":
            yield f"payment decides: order {order_id} of user {row['user_id']} is {status}"
    for sale_id, sale in terms.items():
        held = sum(row["quantity"] for row in orders if row["sale_id"] == sale_id and _is_sold(row))
        if not held == sale["sold"] <= sale["stock"]:
            yield f"no oversell: sale {sale_id} has {held} confirmed, {sale['sold']} of {sale['stock']} sold"
    yield from _check_surprises(world.losses.surprises, terms, orders)
    told: dict[str, Buyer] = {}
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
    silent: dict[Buyer, list[str]] = {}
    for order_id, row in ledger.items():
        if order_id not in told:
            silent.setdefault(_buyer_of(row), []).append(order_id)
    for buyer, its in silent.items():
        if len(its) > unknown[buyer]:
            yield f"no phantom orders: nobody asked for {its}"


def _check_surprises(
    surprises: dict[str, Surprise], terms: dict[int, Any], orders: list[Any]
) -> Iterator[str]:
    """Yield what only the ledger could tell, and what no surprise explains."""
    settled = Counter(row["sale_id"] for row in orders if row["order_id"] in surprises)
    rejected: Counter[int] = Counter()
    for row in orders:
        if row["status"] != "REJECTED":
            continue
        order_id, is_by_key = row["order_id"], row["reason"].startswith(_BY_KEY)
        rejected[row["sale_id"]] += not is_by_key
        if not any(
            surprises[other["order_id"]].may_cost(order_id)
            for other in orders
            if other["order_id"] in surprises
            and (_buyer_of(other) == _buyer_of(row) if is_by_key else other["sale_id"] == row["sale_id"])
        ):
            yield f"guard never needed: order {order_id} is REJECTED, {row['reason']}"
    for sale_id, count in rejected.items():
        if count > settled[sale_id]:
            yield f"guard never needed: {count} orders of sale {sale_id} are REJECTED"
    by_user: dict[tuple[int, int], list[Any]] = {}
    by_buyer: dict[Buyer, list[Any]] = {}
    for row in orders:
        if _is_sold(row):
            by_user.setdefault((row["sale_id"], row["user_id"]), []).append(row)
        if row["idempotency_key"] is not None:
            by_buyer.setdefault(_buyer_of(row), []).append(row)
    for (sale_id, user_id), its in by_user.items():
        quantity, limit = terms[sale_id]["quantity"], terms[sale_id]["user_limit"]
        if limit is not None and _count_unexplained(surprises, its, limit // quantity):
            yield f"user limit is kept: user {user_id} has {len(its)} orders of sale {sale_id}, limit {limit}"
    for buyer, its in by_buyer.items():
        if sum(map(_is_sold, its)) > 1 or _count_unexplained(surprises, its, 1):
            yield f"a key buys once: {buyer} has {len(its)} orders, of which {sum(map(_is_sold, its))} bought"


def _count_unexplained(surprises: dict[str, Surprise], orders: list[Any], most: int) -> int:
    """Return how many orders are too many, though the gate may not have known of those that are surprises."""
    ids = [row["order_id"] for row in orders]
    known = [surprises[order_id] for order_id in ids if order_id in surprises]
    if len(ids) <= most:
        return 0
    late = sum(all(each.is_over_for(order_id) for each in known) for order_id in ids)
    return late or max(0, len(ids) - most - len(known))


def _is_sold(row: Any) -> bool:
    return bool(row["status"] == "CONFIRMED")


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
