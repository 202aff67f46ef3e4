"""`flashgrid prune`: old orders leave the ledger, and what they sold stays sold."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from engine.cli import prune as command
from engine.gate.gate import Gate
from engine.ledger.ledger import Ledger
from engine.model.lot import Lot
from engine.model.order import OrderStatus
from engine.model.order_id import make_bound
from engine.model.sale import Sale
from engine.settings import Settings
from engine.stages.reconciliation import reconciling
from engine.tests.backend import read_sold
from engine.tests.http.test_front_door import Client, client
from engine.tests.orders import SHARD, ids, make_terms, mark_pending, read_stock, reserve
from engine.tests.stages.test_reconciliation import gate, ledger, open_sale, run_command
from engine.tests.test_server import eventually

__all__ = ["client", "gate", "ledger"]

DAY_MS = 86_400_000
NOW_MS = time.time_ns() // 1_000_000


def days_ago(days: float) -> int:
    return NOW_MS - int(days * DAY_MS)


def date_of(days: float) -> str:
    return datetime.fromtimestamp(days_ago(days) / 1000, UTC).isoformat()


def order_of(sale: Sale, days: float, users: int = 3) -> Lot:
    """A lot that was accepted so long ago."""
    accepted_ms = days_ago(days)
    stem = make_bound(accepted_ms)[:33]
    return Lot(stem, 0, sale.terms.product_id, sale.sale_id, 1, accepted_ms, list(range(1, users + 1)))


@pytest.fixture
async def history(ledger: Ledger, gate: Gate) -> dict[str, Lot]:
    """Orders of 30 and of 10 days ago, and of today: of a plain sale, of a limited one, and declined ones."""
    plain = await open_sale(ledger, gate, stock=100)
    limited = await open_sale(ledger, gate, stock=100, limit=4, product_id=2)
    lots = {
        "plain 30": order_of(plain, 30), "plain 10": order_of(plain, 10), "plain": order_of(plain, 0.1),
        "limited 30": order_of(limited, 30.001), "limited": order_of(limited, 0.2),
    }  # fmt: skip
    await ledger.settle(list(lots.values()), {})
    lots["declined 30"] = order_of(plain, 30.002)
    await ledger.settle([lots["declined 30"]], dict.fromkeys(lots["declined 30"].order_ids, "declined"))
    return lots


async def find(ledger: Ledger, lots: dict[str, Lot]) -> set[str]:
    """The names of the lots that the ledger still has."""
    return {name for name, lot in lots.items() if len(await ledger.find_orders(lot.order_ids)) == len(lot)}


async def test_old_orders_go_and_what_they_sold_stays_sold(
    settings_without_bus: Settings, redis: Redis, ledger: Ledger, gate: Gate, history: dict[str, Lot]
) -> None:
    offers = await ledger.find_offers(60)
    code, output = await run_command(settings_without_bus, "prune", "--before", date_of(20))
    assert code == 0, output
    assert output.splitlines() == [
        f"6 orders pruned, all up to {date_of(20)[:19].replace('T', ' ')} UTC",
        "3 orders stay, of sales on offer that limit what a user may buy",
    ]
    assert await find(ledger, history) == {*history} - {"plain 30", "declined 30"}
    assert await ledger.find_offers(60) == offers
    code, output = await run_command(settings_without_bus, "prune", "--before", date_of(20))
    assert (code, output.splitlines()[0].split()[0]) == (0, "0"), "again, nothing"
    async with reconciling(settings_without_bus) as reconciliation:
        await reconciliation.close(1)
        assert await reconciliation.rebuild()
    assert await read_stock(gate, 1) == (1, 100, 91)
    assert await read_stock(gate, 2) == (2, 100, 94)
    bought: Any = await redis.hgetall(f"{SHARD.prefix}buyers:2")
    assert bought == {b"1": b"2", b"2": b"2", b"3": b"2"}, "what a user may still buy"


async def test_a_pruned_order_says_so(
    client: Client, settings_without_bus: Settings, history: dict[str, Lot]
) -> None:
    async def ask(order_id: str) -> tuple[int, str]:
        status, body, _ = await client.ask("GET", f"/purchase/orders/{order_id}")
        return status, body.get("code") or body["status"]

    async def is_denied() -> bool:
        return await ask(make_bound(days_ago(40))) == (404, "UNKNOWN_ORDER")

    pruned, recent = history["plain 30"].order_ids[0], history["plain"].order_ids[0]
    assert await ask(pruned) == (200, "CONFIRMED")
    # An engine whose connections are new can't deny an order yet.
    await eventually(is_denied)
    code, output = await run_command(settings_without_bus, "prune", "--before", date_of(20))
    assert code == 0, output
    assert await ask(pruned) == (404, "PRUNED")
    assert await ask(make_bound(days_ago(40))) == (404, "PRUNED"), "nobody can tell any more"
    assert await ask(recent) == (200, "CONFIRMED")
    assert await ask(history["limited 30"].order_ids[0]) == (200, "CONFIRMED"), "it is kept"
    assert await ask(make_bound(days_ago(19))) == (404, "UNKNOWN_ORDER")


async def test_a_pruned_order_is_never_settled_again(
    settings_without_bus: Settings, ledger: Ledger, history: dict[str, Lot]
) -> None:
    sale = Sale(sale_id=1, terms=make_terms(100))
    sold = await read_sold(settings_without_bus, sale)
    code, output = await run_command(settings_without_bus, "prune", "--before", date_of(20))
    assert code == 0, output
    again, new = history["plain 30"], reserve(sale, 2)
    for lots in ([again], [*new, again], [again, history["plain 10"]]):
        settlement = await ledger.settle(lots, {})
        assert settlement.dead_letters.keys() == {*again.order_ids}
        assert "pruned" in settlement.dead_letters[again.order_ids[0]].reason
    declined = dict.fromkeys(again.order_ids, "declined")
    assert (await ledger.settle([again], declined)).settled.total() == 0
    assert await read_sold(settings_without_bus, sale) == sold + 2
    assert {order.status for order in await ledger.find_orders(ids(new))} == {OrderStatus.CONFIRMED}


@pytest.mark.parametrize(
    ("date", "said"),
    [
        ("yesterday", "'yesterday' is no date: write it like 2026-11-30, or 2026-11-30T18:00:00Z"),
        ("2026-13-01", "'2026-13-01' is no date"),
        ("30.11.2026", "'30.11.2026' is no date"),
        ("", "'' is no date"),
        ("1900-01-01", "'1900-01-01' is no date"),
        ("2999-01-01", "are still needed; the latest is 20"),
        (date_of(0.5), "orders of the last 24 h are still needed; the latest is 20"),
    ],
    ids=["a word", "no month", "another order", "nothing", "long ago", "to come", "half a day ago"],
)
async def test_a_date_that_can_not_be_is_named_in_a_line_and_nothing_is_pruned(
    settings_without_bus: Settings, ledger: Ledger, history: dict[str, Lot], date: str, said: str
) -> None:
    code, output = await run_command(settings_without_bus, "prune", "--before", date)
    assert code != 0
    assert said in output.splitlines()[-1]
    assert "Traceback" not in output
    assert await find(ledger, history) == {*history}
    assert not await ledger.find_pruned([make_bound(1)])


async def test_orders_are_kept_for_as_long_as_a_key_is_remembered(
    settings_without_bus: Settings, history: dict[str, Lot]
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, idempotency_s=21 * 86_400)
    code, output = await run_command(settings, "prune", "--before", date_of(20))
    assert code != 0
    assert "orders of the last 504 h are still needed" in output


async def test_nothing_is_pruned_that_is_older_than_a_pending_order_or_beside_a_closed_gate(
    settings_without_bus: Settings, redis: Redis, ledger: Ledger, history: dict[str, Lot]
) -> None:
    await mark_pending(redis, [order_of(Sale(sale_id=1, terms=make_terms(1)), 25)])
    code, output = await run_command(settings_without_bus, "prune", "--before", date_of(20))
    assert code != 0
    assert "is still pending: see `flashgrid dead-letters list`" in output
    code, output = await run_command(settings_without_bus, "prune", "--before", date_of(25.001))
    assert code == 0, output
    await redis.delete(SHARD.fence)
    code, output = await run_command(settings_without_bus, "prune", "--before", date_of(26))
    assert code != 0
    assert "the gate is closed" in output
    assert output.count("\n") == 1
    assert await find(ledger, history) == {*history} - {"plain 30", "declined 30"}


async def test_long_work_says_how_far_it_is(
    ledger: Ledger,
    history: dict[str, Lot],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "_STEP", 2)
    monkeypatch.setattr(command, "_SAY_EVERY_S", 0)
    await command._prune(ledger, days_ago(5))
    counts = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "up to" in line]
    assert counts == ["2", "3", "3", "5", "7", "9", "9"]


async def test_its_help_says_what_stays(settings_without_bus: Settings) -> None:
    code, output = await run_command(settings_without_bus, "prune", "--help")
    assert code == 0
    for words in ("--before DATE", "code PRUNED", "still on offer", "still pending"):
        assert words in " ".join(output.split())
