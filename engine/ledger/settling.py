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
    connections: Connections, lots: Sequence[Lot], declines: Mapping[str, str]
) -> Settlement:
    """Settle a batch of lots; see Ledger.settle."""
    settlement = Settlement()
    size = count_orders(lots)
    with LEDGER_SECONDS.time():
        if not declines and await _settle_plain(connections, lots):
            settlement.settled[OrderStatus.CONFIRMED] = size
        else:
            await _settle_any(connections, _drop_duplicates(lots), declines, settlement)
    LEDGER_BATCH.observe(size)
    for status, count in settlement.settled.items():
        ORDERS.labels(status.value).inc(count)
    return settlement


async def _settle_plain(connections: Connections, lots: Sequence[Lot]) -> bool:
    """Settle new lots, all paid and within the stock; return False, with nothing written, if not."""
    kinds = {(lot.sale_id, lot.product_id, lot.quantity) for lot in lots}
    try:
        if len(kinds) > 1:
            await connections.fetch("settle_many", *_write_columns(lots))
            return True
        [kind] = kinds
        rows = await connections.fetch(
            "settle_plain",
            *kind,
            _write_order_ids(lots),
            _write_user_ids(lots),
            _write_column(lots, "accepted_ms"),
            _list_keys(lots),
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
    connections: Connections, lots: Sequence[Lot], declines: Mapping[str, str], settlement: Settlement
) -> None:
    """Settle distinct orders, and note in `settlement` what became of them."""
    size = count_orders(lots)
    try:
        rows = await connections.fetch(
            "settle_batch",
            *_write_columns(lots),
            [declines.get(order_id) for lot in lots for order_id in lot.order_ids] if declines else None,
        )
    except RECORD_ERRORS as error:
        if size == 1:
            settlement.dead_letters[lots[0].order_ids[0]] = DeadLetter(encode_lots(lots), describe(error))
            return
        for half in split_lots(lots, size // 2):
            await _settle_any(connections, half, declines, settlement)
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
    return "{" + ",".join(map(str, chain.from_iterable([lot.user_ids for lot in lots]))) + "}"


def _write_column(lots: Sequence[Lot], name: str) -> str:
    """Return the array of a field's values, each as often as its lot has orders."""
    values = zip(lots, map(attrgetter(name), lots), strict=True)
    return "{" + "".join([f"{value}," * len(lot.user_ids) for lot, value in values]).removesuffix(",") + "}"


def _list_keys(lots: Sequence[Lot]) -> list[Any] | None:
    """Return the Idempotency-Keys; None if there are none."""
    if all(lot.keys is None for lot in lots):
        return None
    return list(chain.from_iterable(lot.keys or repeat(None, len(lot)) for lot in lots))
