"""Opening a sale is safe to repeat, and what its answer says is true, whatever fails in between."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest
from asyncpg.transaction import Transaction
from redis.asyncio import Redis

from engine.gate.gate import Gate
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack
from engine.model.sale import SaleTerms
from engine.settings import Settings
from engine.stages import reconciliation
from engine.stages.audit import Comparison
from engine.stages.fulfilment import run_fulfilment
from engine.stages.reconciliation import reconciling
from engine.tests.backend import running
from engine.tests.http.test_front_door import Client, serve
from engine.tests.http.test_looks import frozen
from engine.tests.orders import SHARD
from engine.tests.proxy import Proxy
from engine.tests.test_server import eventually

TERMS = "productId=1&stock=5"
OTHER_TERMS = [
    "productId=2&stock=5",
    "productId=1&stock=6",
    "productId=1&stock=5&limit=1",
    "productId=1&stock=5&quantity=2",
    "productId=1&stock=5&startsAt=1000000000000",
    "productId=1&stock=5&endsAt=4000000000000",
]


@pytest.fixture
async def client(settings_without_bus: Settings) -> AsyncIterator[Client]:
    settings = msgspec.structs.replace(settings_without_bus, look_timeout_ms=1_000, gate_timeout_ms=60_000)
    async for client in serve(settings):
        yield client


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the keeper finish what was left at once."""
    monkeypatch.setattr(reconciliation, "_OPENING_S", 0.0)


async def count_sales(settings: Settings) -> int:
    assert settings.postgres_url
    connection = await asyncpg.connect(settings.postgres_url)
    # What a front door has sent and given up may be under way yet.
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND xact_start < $1"
    before = await connection.fetchval("SELECT clock_timestamp()")
    while await connection.fetchval(others, before):  # noqa: ASYNC110 - PostgreSQL has no event for it
        await asyncio.sleep(0.02)
    count: int = await connection.fetchval("SELECT count(*) FROM sales")
    await connection.close()
    return count


async def is_on_sale(client: Client, product_id: int = 1) -> bool:
    return (await client.ask("GET", f"/purchase/stock?productId={product_id}"))[0] == 200


async def test_under_one_key_there_is_one_sale_however_often_and_wherever_it_is_asked_for(
    settings_without_bus: Settings,
) -> None:
    # How soon so many are answered is the machine's affair.
    patient = msgspec.structs.replace(settings_without_bus, look_timeout_ms=60_000)
    async for client in serve(patient):
        async for other in serve(patient):
            asked = [
                each.init(TERMS, Idempotency_Key="spring") for each in (client, other) for _ in range(20)
            ]
            answers = await asyncio.gather(*asked)
            assert {status for status, _ in answers} == {200}
            [sale] = {msgspec.json.encode(body) for _, body in answers}
        assert await count_sales(settings_without_bus) == 1
        await client.buy()
        status, again = await client.init(TERMS, Idempotency_Key="spring")
        assert (status, msgspec.json.encode(again)) == (200, sale)
        assert (await client.stock())["sold"] == 1, "a repeat leaves the stock as it is"
        _, second = await client.init(TERMS, Idempotency_Key="summer")
        assert (await client.init(TERMS, Idempotency_Key="spring"))[1] == again
        assert (await client.stock())["saleId"] == second["saleId"], "nor does it replace a newer sale"


async def test_a_repeat_touches_no_sale_that_has_left_the_gate(client: Client, redis: Redis) -> None:
    await client.init(TERMS, Idempotency_Key="k")
    await redis.delete(SHARD.sale(1))
    assert (await client.init(TERMS, Idempotency_Key="k"))[0] == 200
    assert not await is_on_sale(client)


@pytest.mark.parametrize("terms", OTHER_TERMS)
async def test_a_key_with_other_terms_opens_nothing(
    client: Client, settings_without_bus: Settings, terms: str
) -> None:
    await client.init(TERMS, Idempotency_Key="k")
    status, problem = await client.init(terms, Idempotency_Key="k")
    assert (status, problem["code"], problem["field"]) == (422, "KEY_REUSED", "Idempotency-Key")
    assert await count_sales(settings_without_bus) == 1


async def test_a_bad_key_opens_nothing(client: Client, settings_without_bus: Settings) -> None:
    status, problem = await client.init(TERMS, Idempotency_Key="a b")
    assert (status, problem["field"]) == (400, "Idempotency-Key")
    assert await count_sales(settings_without_bus) == 0


@pytest.mark.parametrize(("service", "code"), [("redis", "GATE"), ("postgres", "LEDGER")])
async def test_a_frozen_service_is_answered_soon_with_nothing_opened_and_that_is_true(
    client: Client, settings_without_bus: Settings, stack: Stack, service: str, code: str
) -> None:
    await client.init("productId=2&stock=5")  # connections that last
    with frozen(stack, service):
        for headers in ({}, {}, {"Idempotency_Key": "k"}):
            # Any other wait takes a minute.
            async with asyncio.timeout(30):
                status, problem = await client.init(TERMS, **headers)
            assert (status, problem["code"]) == (503, f"{code}_UNAVAILABLE")
            assert "nothing was opened" in problem["detail"]
    assert await count_sales(settings_without_bus) == 1
    assert not await is_on_sale(client)
    assert (await client.init(TERMS, Idempotency_Key="k"))[0] == 200


async def test_a_sale_that_the_gate_did_not_get_opens_by_itself_and_closes_no_other(
    settings_without_bus: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch, waits: None
) -> None:
    async with Proxy(settings_without_bus.redis_url or "").listen() as proxy:
        check = Gate.check

        async def check_and_freeze(self: Gate, *arguments: Any) -> None:
            await check(self, *arguments)
            proxy.freeze()

        settings = msgspec.structs.replace(settings_without_bus, redis_url=proxy.url, look_timeout_ms=500)
        async for client in serve(settings):
            async for other in serve(settings_without_bus):
                await other.init("productId=2&stock=1000")
                with monkeypatch.context() as patched:
                    patched.setattr(Gate, "check", check_and_freeze)
                    status, problem = await client.init(TERMS)
                    assert (status, problem["code"]) == (503, "OUTCOME_UNKNOWN")
                    assert "may open by itself" in problem["detail"]
                generation = await redis.hget(SHARD.fence, "open")
                assert not await is_on_sale(other)
                async with running(settings_without_bus, run_fulfilment):
                    while not await is_on_sale(other):
                        assert (await other.buy(product=2))[0] == 200
                async with reconciliation.reconciling(settings_without_bus) as reconciling:
                    assert await reconciling.audit.run(await reconciling.read_generation()) == []
                assert await redis.hget(SHARD.fence, "open") == generation, "it was never closed"
                assert (await other.buy(product=1))[0] == 200
                assert await other.ledger.find_unoffered(0) == []


async def test_an_audit_takes_a_sale_on_its_way_for_no_disagreement(
    client: Client, settings_without_bus: Settings
) -> None:
    await client.init("productId=2&stock=5")
    [balance] = await client.ledger.find_current_sales()
    await client.ledger.open_sale(msgspec.structs.replace(balance.sale.terms, product_id=1))
    async with reconciliation.reconciling(settings_without_bus) as reconciling:
        assert await reconciling.audit.run(1) == []
        [on_its_way] = await client.ledger.find_unoffered(0)
        await client.ledger.note_offered(on_its_way.sale.sale_id)
    async with reconciliation.reconciling(settings_without_bus) as reconciling:
        assert await reconciling.audit.run(1) == [], "a difference must show twice"
        found: list[Comparison] = []
        while not found:  # the door's own looks at the gate are writes, which an audit waits for
            found = await reconciling.audit.run(1)
        [lost] = found
        assert lost.offer.product_id == 1, "a sale that the gate had is missed"


@pytest.mark.parametrize("has_key", [True, False])
async def test_a_commit_without_an_answer_may_open_the_sale_and_a_repeat_finds_it(
    client: Client,
    settings_without_bus: Settings,
    monkeypatch: pytest.MonkeyPatch,
    waits: None,
    has_key: bool,
) -> None:
    headers = {"Idempotency_Key": "k"} if has_key else {}
    commit = Transaction.commit

    async def commit_unheard(self: Transaction) -> None:
        await commit(self)
        raise ConnectionResetError("the answer is lost")

    with monkeypatch.context() as patched:
        patched.setattr(Transaction, "commit", commit_unheard)
        status, problem = await client.init(TERMS, **headers)
    assert (status, problem["code"]) == (503, "OUTCOME_UNKNOWN")
    assert "may open by itself" in problem["detail"]
    assert ("repeat with the same Idempotency-Key" in problem["detail"]) == has_key
    if has_key:
        assert (await client.init(TERMS, **headers))[0] == 200
    else:
        async with running(settings_without_bus, run_fulfilment):
            await eventually(lambda: is_on_sale(client))
    assert await count_sales(settings_without_bus) == 1
    assert await is_on_sale(client)


@pytest.mark.usefixtures("waits")
async def test_sales_that_somebody_holds_in_the_ledger_are_offered_and_hold_up_no_other(
    client: Client, settings_without_bus: Settings
) -> None:
    ledger, products = client.ledger, range(1, 21)
    for product_id in products:
        await ledger.open_sale(SaleTerms(product_id=product_id, stock=5))
    somebody = await asyncpg.connect(settings_without_bus.postgres_url)
    async with reconciling(settings_without_bus) as reconciliation:
        async with somebody.transaction():
            await somebody.execute("SELECT FROM sales WHERE product_id < 20 FOR UPDATE")
            async with asyncio.timeout(10):  # A lock is waited for one second.
                await reconciliation.offer_left()
            assert [(await client.stock(product_id))["remaining"] for product_id in products] == [5] * 20
            assert len(await ledger.find_unoffered(0)) == 19
        await reconciliation.offer_left()
    assert await ledger.find_unoffered(0) == []
    await somebody.close()


@pytest.mark.usefixtures("waits")
async def test_many_sales_that_are_left_keep_a_keeper_from_its_work_no_longer_than_one(
    client: Client, settings_without_bus: Settings
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, sold_out_ms=2_000)
    for _ in range(2):
        for product_id in range(1, 101):
            await client.ledger.open_sale(SaleTerms(product_id=product_id, stock=5))
        async with reconciling(settings) as reconciliation:
            # Front doors repeat what they know of a product's older sale for two seconds.
            async with asyncio.timeout(100):
                await reconciliation.offer_left()
        assert await client.ledger.find_unoffered(0) == []


async def test_a_sale_that_was_not_committed_is_not_there(
    client: Client, settings_without_bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(self: Transaction) -> None:
        raise ConnectionResetError("before anything was sent")

    with monkeypatch.context() as patched:
        patched.setattr(Transaction, "start", fail)
        status, problem = await client.init(TERMS)
    assert (status, problem["code"]) == (503, "LEDGER_UNAVAILABLE")
    assert await count_sales(settings_without_bus) == 0


async def test_an_open_sale_is_answered_even_if_the_ledger_goes_away_then(
    client: Client, monkeypatch: pytest.MonkeyPatch, stack: Stack
) -> None:
    note = Ledger.note_offered

    async def note_frozen(self: Ledger, sale_id: int) -> None:
        with frozen(stack, "postgres"):
            await note(self, sale_id)

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "note_offered", note_frozen)
        assert (await client.init(TERMS, Idempotency_Key="k"))[0] == 200
    await client.buy()
    assert (await client.init(TERMS, Idempotency_Key="k"))[0] == 200
    assert (await client.stock())["sold"] == 1
