"""Nobody is told that an order was never accepted while it may have been."""

import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import UUID

import msgspec
import pytest
from redis.asyncio import Redis

from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, encode_lots
from engine.model.order_id import make_stem, split_order_id
from engine.settings import Settings
from engine.stages import reconciliation
from engine.stages.reconciliation import reconciling
from engine.tests.backend import take_dead_letters
from engine.tests.http.test_front_door import Client, serve
from engine.tests.orders import SHARD
from engine.tests.stages.test_reconciliation import restore_copy, take_copy
from engine.tests.test_server import eventually


@pytest.fixture
async def client(settings_without_bus: Settings) -> AsyncIterator[Client]:
    async for client in serve(msgspec.structs.replace(settings_without_bus, look_timeout_ms=500)):
        await eventually(partial(is_unknown, client, make_id()))
        yield client


async def is_unknown(client: Client, order_id: str) -> bool:
    return await look(client, order_id) == UNKNOWN


async def look(client: Client, order_id: str) -> tuple[int, str]:
    status, body, headers = await client.ask("GET", f"/purchase/orders/{order_id}")
    assert (status == 503) == ("Retry-After" in headers)
    return status, body.get("code") or body["status"]


def make_id(ahead_s: float = 0) -> str:
    """An order id that nobody was given, of another time."""
    stem = make_stem()
    milliseconds = f"{int((time.time() + ahead_s) * 1000):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}{stem[13:]}000"


async def rebuild(settings: Settings) -> None:
    async with reconciling(settings) as reconciler:
        await reconciler.close(await reconciler.read_generation())
        assert await reconciler.rebuild()


UNKNOWN = (404, "UNKNOWN_ORDER")
NOT_KNOWN_YET = (503, "GATE_UNAVAILABLE")


async def test_an_order_that_an_older_copy_lacks_is_not_denied(client: Client, redis: Redis) -> None:
    await client.init()
    await client.buy()
    copy = await take_copy(redis)
    _, accepted = await client.buy()
    assert await look(client, make_id()) == UNKNOWN
    await restore_copy(redis, copy)
    assert await look(client, accepted["orderId"]) == NOT_KNOWN_YET
    assert (await client.buy())[0] == 503, "and then the gate is closed"
    assert await look(client, accepted["orderId"]) == NOT_KNOWN_YET


async def test_what_another_front_door_was_answered_is_not_denied_by_a_server_that_is_new(
    client: Client, redis: Redis, settings_without_bus: Settings
) -> None:
    await client.init()
    async for other in serve(settings_without_bus):
        copy = await take_copy(redis)
        _, accepted = await other.buy()
        for each in (client, other):
            for watching in each.gate._watching:
                watching.cancel()
        await restore_copy(redis, copy)
        await redis.client_kill_filter(_type="normal", skipme=True)
        assert await look(client, accepted["orderId"]) == NOT_KNOWN_YET


async def test_a_front_door_at_which_nobody_buys_closes_a_gate_that_forgot(
    client: Client, redis: Redis, settings_without_bus: Settings
) -> None:
    await client.init()
    copy = await take_copy(redis)
    await client.buy()
    await restore_copy(redis, copy)
    async for other in serve(settings_without_bus):
        await eventually(partial(is_closed, other))


async def is_closed(client: Client) -> bool:
    return (await client.buy(product=77))[0] == 503


async def test_an_order_that_a_rebuild_forgot_is_not_denied_until_it_can_not_be_under_way(
    client: Client, redis: Redis, settings_without_bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sale = await client.init()
    late, lost = [(await client.buy())[1]["orderId"] for _ in range(2)]
    await redis.delete(SHARD.outbox)  # a relay has read it, and published nothing yet
    await rebuild(settings_without_bus)
    assert await look(client, late) == NOT_KNOWN_YET
    assert await look(client, make_id(ahead_s=300)) == UNKNOWN, "it says itself that it is from afterwards"
    assert (await look(client, (await client.buy())[1]["orderId"])) == (200, "PENDING")

    lots = [Lot(*split_order_id(late), 1, sale["saleId"], 1, 1, [101])]
    async with reconciling(settings_without_bus) as reconciler:
        await reconciler.end_doubt()
        assert await look(client, late) == NOT_KNOWN_YET, "too early"
        monkeypatch.setattr(reconciliation, "_LATE_S", -1.0)
        await redis.xadd(SHARD.outbox, {"orders": 1, "purchases": encode_lots(lots)})
        await reconciler.end_doubt()
        assert await look(client, late) == NOT_KNOWN_YET, "it is under way"
        await client.ledger.settle(lots, {})
        await redis.delete(SHARD.outbox)
        await reconciler.end_doubt()
    assert await look(client, late) == (200, "CONFIRMED")
    assert await look(client, lost) == UNKNOWN


async def test_a_message_of_the_bus_is_under_way(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "_LATE_S", -1.0)
    async for client in serve(settings):
        await eventually(partial(is_unknown, client, make_id()))
        _, sale = await client.init()
        late = (await client.buy())[1]["orderId"]
        await redis.delete(SHARD.outbox)
        await rebuild(settings)
        async with reconciling(settings) as reconciler:
            bus = reconciler._bus
            assert bus is not None
            await bus.publish(encode_lots([Lot(*split_order_id(late), 1, sale["saleId"], 1, 1, [101])]))
            await reconciler.end_doubt()
            assert await look(client, late) == NOT_KNOWN_YET


async def test_a_dead_letter_is_not_denied(
    settings: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "_LATE_S", -1.0)
    async for client in serve(settings):
        await eventually(partial(is_unknown, client, make_id()))
        await client.init()
        dead = (await client.buy())[1]["orderId"]
        entries: Any = await redis.xrange(SHARD.outbox)
        await redis.delete(SHARD.outbox)
        await rebuild(settings)
        async with reconciling(settings) as reconciler:
            bus = reconciler._bus
            assert bus is not None
            await bus.put_aside([DeadLetter(entries[0][1][b"purchases"], "it can't be paid")])
            await reconciler.end_doubt()
            assert await look(client, dead) == NOT_KNOWN_YET
            [_] = await take_dead_letters(settings.amqp_url or "", 1)
            await reconciler.end_doubt()
            assert await look(client, dead) == UNKNOWN


async def test_a_dead_letter_of_an_engine_without_a_bus_is_not_denied(
    client: Client, redis: Redis, settings_without_bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciliation, "_LATE_S", -1.0)
    await client.init()
    dead = (await client.buy())[1]["orderId"]
    await redis.delete(SHARD.outbox)
    await redis.xadd(SHARD.dead, {"body": "it", "reason": "it can't be paid"})
    await rebuild(settings_without_bus)
    async with reconciling(settings_without_bus) as reconciler:
        await reconciler.end_doubt()
        assert await look(client, dead) == NOT_KNOWN_YET
        await redis.delete(SHARD.dead)
        await reconciler.end_doubt()
    assert await look(client, dead) == UNKNOWN


async def test_a_gate_that_is_new_denies_at_once(
    client: Client, redis: Redis, settings_without_bus: Settings
) -> None:
    await redis.flushall()
    async with reconciling(settings_without_bus) as reconciler:
        await reconciler.open_new()
    await eventually(partial(is_unknown, client, make_id()))


@pytest.mark.parametrize("spelling", ["{%s}", "%s%%20", "%%20%s", "%s%%0A", "urn:uuid:%s", "%s0", "%sx"])
async def test_an_odd_spelling_of_an_order_id_is_answered_with_what_one_looks_like(
    client: Client, spelling: str
) -> None:
    await client.init()
    order_id = (await client.buy())[1]["orderId"]
    path = "/purchase/orders/" + spelling % order_id
    status, problem, _ = await client.ask("GET", path)
    assert (status, problem["code"], problem["field"]) == (404, "UNKNOWN_ORDER", "orderId")
    assert "looks like" in problem["detail"]


async def test_an_order_id_in_upper_case_or_another_version_of_ids(client: Client, redis: Redis) -> None:
    await client.init()
    order_id = (await client.buy())[1]["orderId"]
    assert await look(client, order_id.upper()) == (200, "PENDING")
    assert await look(client, UUID(order_id).hex) == UNKNOWN
    await redis.flushall()
    assert await look(client, str(UUID(int=4, version=4))) == UNKNOWN, "no order has such an id"
    assert await look(client, order_id.upper()) == NOT_KNOWN_YET
