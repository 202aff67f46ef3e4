"""The referee: says after each example, in a moment, what the judge's rules say of many at once (records.py).

Here it is known which orders a loss may have cost what; and only what is wrong here can be made short.
What Redis lost before it was relayed is gone, as promised to nobody: its buyers count as never answered.
An order that is a surprise (losses.py) may cost another one its unit or its key, of those that were not
settled before it and that were accepted before a rebuild knew of it: one order each, and no more; none if it
is FAILED, since the ledger gives it neither. Whoever was told SOLD_OUT before a loss may see units on sale
after it.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from engine.model.purchase import Outcome
from simulation.protocol.example.losses import Surprise
from simulation.protocol.example.processes import DECLINED
from simulation.protocol.example.world import World

_BY_KEY: Final = "its Idempotency-Key"
"""How the reason begins for which the ledger rejects the second order of a key."""

Buyer = tuple[int, int, str | None]
"""User, product and key."""


def find_faults(world: World) -> list[str]:
    """Return what an example that has drained shows to be wrong, a line each."""
    sales, orders = world.database.read("read_sales"), world.database.read("read_orders")
    return [
        *world.loop.failures,
        *_check_openings(world, sales),
        *_check(world, sales, orders, find_gone(world, orders)),
    ]


def find_gone(world: World, orders: list[Any]) -> set[str]:
    """Return the orders that Redis lost before they were relayed, and that are not in the ledger."""
    return world.losses.lost - {row["order_id"] for row in orders}


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
        yield f"nothing is stranded: {unrest}"
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
    costly = [row for row in orders if row["order_id"] in surprises and row["status"] != "FAILED"]
    allowed = Counter(row["sale_id"] for row in costly)
    rejected: Counter[int] = Counter()
    for row in orders:
        if row["status"] != "REJECTED":
            continue
        order_id, is_by_key = row["order_id"], row["reason"].startswith(_BY_KEY)
        rejected[row["sale_id"]] += not is_by_key
        if not any(
            surprises[other["order_id"]].may_cost(order_id)
            for other in costly
            if (_buyer_of(other) == _buyer_of(row) if is_by_key else other["sale_id"] == row["sale_id"])
        ):
            yield f"guard never needed: order {order_id} is REJECTED, {row['reason']}"
    for sale_id, count in rejected.items():
        if count > allowed[sale_id]:
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
