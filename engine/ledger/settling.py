"""Settling: lots get their terminal states, a batch in one transaction and one round trip."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, repeat
from operator import attrgetter
from typing import Any, Final

import asyncpg
import msgspec

from engine.errors import LedgerUnavailable
from engine.ledger.queries import RECORD_ERRORS, Connections, describe
from engine.metrics import LEDGER_BATCH, LEDGER_SECONDS, ORDERS
from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, count_orders, encode_lots, split_lots, without_orders
from engine.model.order import Order, OrderStatus

_LACKS: Final = (asyncpg.UndefinedFunctionError, asyncpg.InsufficientPrivilegeError)


class Settlement(msgspec.Struct, frozen=True):
    """What became of a batch of lots. Orders that are named nowhere here were settled before."""

    settled: Counter[OrderStatus] = msgspec.field(default_factory=Counter)
    """Number of orders that this call settled, by status."""
    failed: list[Order] = []
    """The FAILED orders, also those that were settled before."""
    dead_letters: dict[str, DeadLetter] = {}
    """By order id: orders that the ledger can't take."""


async def settle_lots(
    connections: Connections, lots: Sequence[Lot], declines: Mapping[str, str], remember_s: int
) -> Settlement:
    """Settle a batch of lots; see Ledger.settle."""
    settlement = Settlement()
    with LEDGER_SECONDS.time():
        for part in _part_keys(lots):
            if not declines and await _settle_plain(connections, part, remember_s):
                settlement.settled[OrderStatus.CONFIRMED] += count_orders(part)
            else:
                await _settle_any(connections, _drop_duplicates(part), declines, remember_s, settlement)
    LEDGER_BATCH.observe(count_orders(lots))
    for status, count in settlement.settled.items():
        ORDERS.labels(status.value).inc(count)
    return settlement


async def _settle_plain(connections: Connections, lots: Sequence[Lot], remember_s: int) -> bool:
    """Settle new lots, all paid, within the stock and under keys that have bought nothing yet; return False,
    with nothing written, if not."""
    kinds = {(lot.sale_id, lot.product_id, lot.quantity) for lot in lots}
    guarded, within = ("_keyed", [remember_s]) if _has_keys(lots) else ("", [])
    try:
        if len(kinds) > 1:
            rows = await connections.fetch(f"settle_many{guarded}", *_write_columns(lots), *within)
        else:
            [kind] = kinds
            rows = await connections.fetch(
                f"settle_plain{guarded}",
                *kind,
                _write_order_ids(lots),
                _write_user_ids(lots),
                _write_column(lots, "accepted_ms"),
                _list_keys(lots),
                *within,
            )
    except RECORD_ERRORS:
        return False
    except LedgerUnavailable as error:
        # Its schema is older: settle_batch was always there.
        if len(kinds) > 1 and isinstance(error.__cause__, _LACKS):
            return False
        raise
    return bool(rows[0]["settled"])


async def _settle_any(
    connections: Connections,
    lots: Sequence[Lot],
    declines: Mapping[str, str],
    remember_s: int,
    settlement: Settlement,
) -> None:
    """Settle distinct orders, and note in `settlement` what became of them."""
    size = count_orders(lots)
    query, within = ("settle_keyed", [remember_s]) if _has_keys(lots) else ("settle_batch", [])
    try:
        rows = await connections.fetch(
            query,
            *_write_columns(lots),
            [declines.get(order_id) for lot in lots for order_id in lot.order_ids] if declines else None,
            *within,
        )
    except RECORD_ERRORS as error:
        if size == 1:
            settlement.dead_letters[lots[0].order_ids[0]] = DeadLetter(encode_lots(lots), describe(error))
            return
        for half in split_lots(lots, size // 2):
            await _settle_any(connections, half, declines, remember_s, settlement)
        return
    if confirmed := size - len(rows):
        settlement.settled[OrderStatus.CONFIRMED] += confirmed
    if rows:
        _note_rows(settlement, lots, rows)


def _note_rows(settlement: Settlement, lots: Sequence[Lot], rows: Iterable[asyncpg.Record]) -> None:
    """Note the orders that were not CONFIRMED just now."""
    orders = [(lot, number) for lot in lots for number in range(len(lot))]
    for place, status, reason, fresh in rows:
        lot, number = orders[place - 1]
        order_id = lot.stem + lot.places[number]
        if status is None:
            body = encode_lots([lot.cut(number, number + 1)])
            settlement.dead_letters[order_id] = DeadLetter(body, "unknown sale")
            continue
        if fresh:
            settlement.settled[OrderStatus(status)] += 1
        if status == OrderStatus.FAILED:
            settlement.failed.append(
                Order(
                    order_id=order_id,
                    user_id=lot.user_ids[number],
                    product_id=lot.product_id,
                    sale_id=lot.sale_id,
                    quantity=lot.quantity,
                    status=OrderStatus.FAILED,
                    reason=reason,
                )
            )


def _part_keys(lots: Sequence[Lot]) -> list[Sequence[Lot]]:
    """Return the lots in parts, in none of which two orders have the same key: one part, but after a loss."""
    keyed = [
        (lot.product_id, user_id, key)
        for lot in lots
        if lot.keys is not None
        for user_id, key in zip(lot.user_ids, lot.keys, strict=True)
        if key is not None
    ]
    if len(set(keyed)) == len(keyed):
        return [lots]
    first, rest = split_lots(lots, count_orders(lots) // 2)
    return [*_part_keys(first), *_part_keys(rest)]


def _drop_duplicates(lots: Sequence[Lot]) -> Sequence[Lot]:
    """Return the lots with each order once."""
    distinct: list[Lot] = []
    seen: set[str] = set()
    for lot in lots:
        distinct += without_orders([lot], seen)
        seen.update(lot.order_ids)
    return distinct


# PostgreSQL reads an array from its text faster than the client writes its binary form.


def _write_columns(lots: Sequence[Lot]) -> tuple[Any, ...]:
    """Return the arrays that batches of any sales are written as."""
    return (
        _write_order_ids(lots),
        _write_column(lots, "sale_id"),
        _write_column(lots, "product_id"),
        _write_user_ids(lots),
        _write_column(lots, "quantity"),
        _list_keys(lots),
        _write_column(lots, "accepted_ms"),
    )


def _write_order_ids(lots: Iterable[Lot]) -> str:
    return "{" + ",".join([lot.stem + f",{lot.stem}".join(lot.places) for lot in lots]) + "}"


def _write_user_ids(lots: Iterable[Lot]) -> str:
    user_ids = [user_id for lot in lots for user_id in lot.user_ids]
    return "{" + msgspec.json.encode(user_ids)[1:-1].decode("ascii") + "}"


def _write_column(lots: Sequence[Lot], name: str) -> str:
    """Return the array of a field's values, each as often as its lot has orders."""
    values = zip(lots, map(attrgetter(name), lots), strict=True)
    return "{" + "".join([f"{value}," * len(lot.user_ids) for lot, value in values]).removesuffix(",") + "}"


def _has_keys(lots: Sequence[Lot]) -> bool:
    return any(lot.keys is not None for lot in lots)


def _list_keys(lots: Sequence[Lot]) -> list[Any] | None:
    """Return the Idempotency-Keys; None if there are none."""
    if not _has_keys(lots):
        return None
    return list(chain.from_iterable(lot.keys or repeat(None, len(lot)) for lot in lots))
