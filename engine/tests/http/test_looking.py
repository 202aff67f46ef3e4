"""Looks that ask at the moment share one read of each store, which begins after they asked."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from engine.gate.clearing import Clearing, KeptLot, decode_confirmed
from engine.gate.client import Shard
from engine.gate.gate import Gate
from engine.gate.looks import reads
from engine.http import looking as module
from engine.http.answers import Answer
from engine.http.looking import Look, Looking
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack
from engine.model.lot import Lot
from engine.model.order_id import PLACES, make_bound, make_stem, read_time_ms, split_order_id
from engine.model.sale import Sale
from engine.settings import Settings
from engine.tests.http.test_looks import frozen
from engine.tests.orders import make_terms
from engine.tests.services import execute
from engine.tests.test_server import eventually

CROWD = 300


class Looker:
    """Looks by itself, without HTTP, and counts how often the stores are read."""

    def __init__(self, settings: Settings, gate: Gate, ledger: Ledger) -> None:
        self.gate = gate
        self.ledger = ledger
        self.reads = Counter[str]()
        for store, name in (
            (gate.reads, "read_stocks"),
            (gate.reads, "read_orders"),
            (ledger, "find_orders"),
        ):
            setattr(store, name, partial(self._count, name, getattr(store, name)))
        self.looking = Looking(settings, gate.reads, ledger)

    async def _count(self, name: str, read: Any, questions: Any) -> Any:
        self.reads[name] += 1
        return await read(questions)

    async def stock(self, product_id: int = 1) -> tuple[int, dict[str, Any]]:
        return await self._look(partial(self.looking.show, product_id))

    async def order(self, order_id: str) -> tuple[int, dict[str, Any]]:
        return await self._look(partial(self.looking.show, order_id))

    async def status(self, order_id: str) -> str:
        status, body = await self.order(order_id)
        return str(body["status"] if status == 200 else body["code"])

    async def _look(self, ask: Any) -> tuple[int, dict[str, Any]]:
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        ask(answered.set_result)
        answer = await answered
        return answer.status, json.loads(answer.body)

    async def buy(self, count: int = 1, product_id: int = 1) -> list[str]:
        answers = await asyncio.gather(*(self.gate.reserve(101, product_id, None) for _ in range(count)))
        return [str(order_id) for _, order_id in answers]

    async def settle(self, order_ids: Iterable[str]) -> None:
        """Settle orders, each of which stays pending at the gate."""
        lots = [Lot(*split_order_id(order_id), 1, 1, 1, 1, [101]) for order_id in order_ids]
        await self.ledger.settle(lots, {})


@pytest.fixture
async def looker(settings_without_bus: Settings) -> AsyncIterator[Looker]:
    # However slow the machine is.
    settings = msgspec.structs.replace(settings_without_bus, look_timeout_ms=30_000)
    gate = Gate(settings)
    async with await Ledger.connect(settings_without_bus.postgres_url) as ledger:
        await ledger.migrate()
        sale = await ledger.open_sale(make_terms(stock=10_000))
        assert sale.sale_id == 1
        await gate.open_sale(sale)
        looker = Looker(settings, gate, ledger)
        await eventually(partial(denies, looker))
        looker.reads.clear()
        yield looker
    await gate.close()


async def denies(looker: Looker) -> bool:
    """Whether the connections to the gate are old enough for it to say that an order was never accepted."""
    _, status = await asyncio.gather(looker.stock(), looker.status(make_stem() + PLACES[0]))
    return bool(status == "UNKNOWN_ORDER")


async def test_a_crowd_shares_one_read_of_each_store(looker: Looker, redis: Redis) -> None:
    settled = await looker.buy(CROWD)
    await looker.settle(settled)
    await Clearing([Shard(redis)]).clear([Lot(*split_order_id(each), 1, 1, 1, 1, [101]) for each in settled])
    orders = [looker.order(order_id) for order_id in settled]
    answers = await asyncio.gather(*(looker.stock() for _ in range(CROWD)), *orders)
    assert Counter(status for status, _ in answers) == {200: 2 * CROWD}
    assert looker.reads == {"read_stocks": 1, "read_orders": 1, "find_orders": 1}


async def test_each_look_gets_the_answer_to_its_own_question(looker: Looker, redis: Redis) -> None:
    for product_id in range(2, 8):
        await looker.gate.open_sale(Sale(sale_id=product_id, terms=make_terms(product_id, product_id)))
    bought = await looker.buy(1_400)
    pending, settled = bought[::2], bought[1::2]
    await looker.settle(settled)
    await Clearing([Shard(redis)]).clear([Lot(*split_order_id(each), 1, 1, 1, 1, [101]) for each in settled])
    unknown = [make_stem() + PLACES[7] for _ in range(20)]
    expected = dict.fromkeys(pending, "PENDING") | dict.fromkeys(settled, "CONFIRMED")
    expected |= dict.fromkeys(unknown, "UNKNOWN_ORDER")
    order_ids = [*expected, *list(expected)[::-3]]
    products = [*range(1, 9), *range(1, 9)]
    orders, stocks = await asyncio.gather(
        asyncio.gather(*map(looker.order, order_ids)), asyncio.gather(*map(looker.stock, products))
    )
    for order_id, (status, body) in zip(order_ids, orders, strict=True):
        assert (body["status"] if status == 200 else body["code"]) == expected[order_id]
        assert status == 404 or body["orderId"] == order_id
    for product_id, (status, body) in zip(products, stocks, strict=True):
        if product_id == 8:
            assert (status, body["code"]) == (404, "UNKNOWN_PRODUCT")
        else:
            initial = 10_000 if product_id == 1 else product_id
            assert (body["productId"], body["initial"]) == (product_id, initial)
    assert looker.reads["read_orders"] <= 2 * (len(expected) // module._MOST + 1), (
        "and no more in one of them"
    )
    assert looker.reads["read_orders"] > 1


async def test_a_look_shares_no_read_that_began_before_it_asked(
    looker: Looker, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, goes_on = looker.gate.reads.read_stocks, asyncio.Event()
    has_read = asyncio.Event()

    async def read_and_wait(products: list[int]) -> Any:
        found = await read(products)
        has_read.set()
        await goes_on.wait()
        return found

    monkeypatch.setattr(looker.looking._stocks, "_read", read_and_wait)
    first = asyncio.create_task(looker.stock())
    await has_read.wait()
    await looker.buy()
    second = asyncio.create_task(looker.stock())
    await asyncio.sleep(0)
    goes_on.set()
    assert [(await look)[1]["remaining"] for look in (first, second)] == [10_000, 9_999]


async def test_a_look_that_can_not_wait_takes_nobody_along(looker: Looker) -> None:
    line, now_s, statuses = looker.looking._stocks, asyncio.get_running_loop().time(), list[int]()
    late: Look = (lambda answer: statuses.append(answer.status), now_s + looker.looking._look_s / 12)
    line.join(1, [late])
    assert (await looker.stock())[0] == 200
    assert statuses == [503], "its time is too short for a connect"
    assert looker.reads == {"read_stocks": 1}


async def test_settled_orders_are_remembered_and_no_others(looker: Looker, redis: Redis) -> None:
    settled, pending = await looker.buy(), await looker.buy()
    await looker.settle(settled)
    await Clearing([Shard(redis)]).clear([Lot(*split_order_id(settled[0]), 1, 1, 1, 1, [101])])
    for order_id in settled + pending:
        await looker.order(order_id)
    looker.reads.clear()
    assert [await looker.status(order_id) for order_id in settled + pending] == ["CONFIRMED", "PENDING"]
    assert looker.reads == {"read_orders": 1}, "of the pending one"
    unknown = make_stem() + PLACES[0]
    for _ in range(2):
        assert await looker.status(unknown) == "UNKNOWN_ORDER"
    assert looker.reads == {"read_orders": 3, "find_orders": 2}


async def test_an_order_that_was_confirmed_lately_needs_no_ledger(
    looker: Looker, redis: Redis, stack: Stack
) -> None:
    settled = await looker.buy(20)
    lots = [Lot(*split_order_id(each), 3, 1, 2, 1, [101]) for each in settled]
    await Clearing([Shard(redis)]).clear(lots, are_confirmed=True)
    with frozen(stack, "postgres"):
        answers = await asyncio.gather(*map(looker.order, settled))
    assert [body for _, body in answers] == [
        {"orderId": each, "status": "CONFIRMED", "productId": 3, "quantity": 2} for each in settled
    ]
    assert looker.reads == {"read_orders": 1}


async def test_what_is_kept_of_a_batch_is_decoded_once_for_all_that_look(
    looker: Looker, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = list[bytes]()

    def decode(kept: bytes) -> list[KeptLot]:
        decoded.append(kept)
        return decode_confirmed(kept)

    monkeypatch.setattr(reads, "decode_confirmed", decode)
    stem = make_stem()
    order_ids = [stem + place for place in PLACES[:CROWD]]
    await Clearing([Shard(redis)]).clear([Lot(stem, 0, 1, 1, 1, 1, [101] * CROWD)], are_confirmed=True)
    assert {*await asyncio.gather(*map(looker.status, order_ids))} == {"CONFIRMED"}
    assert len(decoded) == looker.reads["read_orders"] == 1


async def test_memory_is_bounded(looker: Looker, redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_REMEMBERED", 20)
    settled = await looker.buy(100)
    await looker.settle(settled)
    await Clearing([Shard(redis)]).clear([Lot(*split_order_id(each), 1, 1, 1, 1, [101]) for each in settled])
    for order_id in settled:
        await looker.order(order_id)
    looker.reads.clear()
    for order_id in reversed(settled):
        await looker.order(order_id)
    assert 80 <= looker.reads["find_orders"] < 100
    assert len(looker.looking._known) + len(looker.looking._known_longer) <= 20


async def test_an_order_that_was_pruned_is_not_shown_from_memory(
    looker: Looker, settings_without_bus: Settings
) -> None:
    """It is as old as none that could have been pruned, whatever the clock of who did it."""
    now_ms = read_time_ms(make_stem())
    young, old = (make_bound(now_ms - hours * 3_600_000)[:-1] + "1" for hours in (11, 25))
    await looker.settle([young, old])
    for order_id in (young, old):
        assert await looker.status(order_id) == "CONFIRMED"
    await looker.ledger.begin_pruning(make_bound(now_ms - 24 * 3_600_000))
    await execute(settings_without_bus.postgres_url or "", "DELETE FROM orders")
    assert [await looker.status(order_id) for order_id in (young, old)] == ["CONFIRMED", "PRUNED"]


async def test_an_order_that_was_pruned_is_not_shown_from_the_gate(
    looker: Looker, redis: Redis, settings_without_bus: Settings
) -> None:
    """One that was settled a day after it was accepted, and pruned at once."""
    now_ms = read_time_ms(make_stem())
    young, old = (make_bound(now_ms - hours * 3_600_000)[:-1] + "1" for hours in (11, 25))
    lots = [Lot(*split_order_id(each), 1, 1, 1, 1, [101]) for each in (young, old)]
    await looker.ledger.settle(lots, {})
    await Clearing([Shard(redis)]).clear(lots, are_confirmed=True)
    await looker.ledger.begin_pruning(make_bound(now_ms - 24 * 3_600_000))
    await execute(settings_without_bus.postgres_url or "", "DELETE FROM orders")
    assert [await looker.status(order_id) for order_id in (young, old)] == ["CONFIRMED", "PRUNED"]


async def test_an_order_that_the_ledger_showed_while_the_gate_did_not_answer_is_never_pending_again(
    looker: Looker, settings_without_bus: Settings, stack: Stack
) -> None:
    """Also to one that did not look before, on a connection that is new to this process."""
    [order_id] = await looker.buy()
    await looker.settle([order_id])
    assert await looker.status(order_id) == "PENDING", "the gate alone is asked"
    gate = Gate(settings_without_bus)
    first, second = (Looker(settings_without_bus, gate, looker.ledger) for _ in range(2))
    with frozen(stack, "redis"):
        assert await first.status(order_id) == "CONFIRMED"
    assert await second.status(order_id) == "CONFIRMED"
    await gate.close()


async def test_there_is_a_connection_to_look_however_many_sales_are_opened_at_once(looker: Looker) -> None:
    checks = [looker.gate.check(1, 10) for _ in range(CROWD)]
    outcomes = asyncio.gather(*checks, return_exceptions=True)
    looks = await asyncio.gather(*(looker.stock() for _ in range(5)))
    assert {status for status, _ in looks} == {200}
    assert any(await outcomes), "the others' connections were all taken"
