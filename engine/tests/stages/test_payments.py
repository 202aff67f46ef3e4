"""One order that can't be paid or written holds up no other."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from engine.gate.clearing import Clearing
from engine.gate.client import Shard
from engine.gate.outbox import Outbox
from engine.ledger.ledger import Ledger
from engine.model.lot import Lot, encode_lots
from engine.settings import Settings
from engine.stages.fulfilment import Fulfilment, run_fulfilment
from engine.stages.lifecycle import Pause
from engine.tests.backend import CONFIRMED, count_statuses, open_sale, read_statuses, running, until_settled
from engine.tests.orders import SHARD, accept, ids, reserve
from engine.tests.services import execute
from engine.tests.test_server import eventually


class Gateway:
    """Fails or hangs for the orders of some users, or for all."""

    def __init__(self, bad_users: set[int], hangs: bool = False) -> None:
        self.bad_users = bad_users
        self.hangs = hangs
        self.down = False
        self.calls = 0

    async def charge(self, lots: Sequence[Lot]) -> Mapping[str, str]:
        self.calls += 1
        if self.down or self.bad_users & {user for lot in lots for user in lot.user_ids}:
            if self.hangs:
                await asyncio.sleep(3600)
            raise ConnectionResetError("the provider hung up")
        return {}


class Line:
    """A fulfilment that reads the outbox, with a gateway of the test's."""

    def __init__(self, redis: Redis, gateway: Gateway, ledger: Ledger, settings: Settings) -> None:
        outbox = Outbox(Shard(redis), "me", 3_600_000)
        self.pause = Pause()
        clearing = Clearing([Shard(redis)])
        self.fulfilment = Fulfilment(outbox, gateway, ledger, clearing, self.pause, settings)
        self.stop = asyncio.Event()

    async def __aenter__(self) -> "Line":
        self._task = asyncio.create_task(self.fulfilment.run(self.stop))
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop.set()
        await asyncio.wait_for(self._task, 15)


async def has_confirmed(settings: Settings, lots: Sequence[Lot]) -> bool:
    return dict.fromkeys(ids(lots), CONFIRMED).items() <= (await read_statuses(settings)).items()


async def counts(settings: Settings, number: int) -> bool:
    return (await count_statuses(settings)).get(CONFIRMED) == number


async def is_empty(redis: Redis) -> bool:
    return not await redis.xlen(SHARD.outbox)


@pytest.mark.parametrize("hangs", [False, True], ids=["raises", "hangs"])
async def test_an_order_that_can_not_be_paid_ends_as_a_dead_letter_and_holds_up_no_other(
    redis: Redis, settings_without_bus: Settings, hangs: bool
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, payment_timeout_ms=200, payment_attempts=2)
    batch = reserve(await open_sale(settings, redis), 600, size=30)
    bad = next(lot for lot in batch if 77 in lot.user_ids)
    bad = bad.cut(bad.user_ids.index(77), bad.user_ids.index(77) + 1)
    gateway = Gateway({77}, hangs)
    async with (
        await Ledger.connect(settings.postgres_url) as ledger,
        Line(redis, gateway, ledger, settings) as line,
    ):
        await accept(redis, batch)
        await eventually(partial(counts, settings, 599))
        assert "payment" in line.fulfilment.find_illnesses()
        other = await open_sale(settings, redis, product_id=2)
        while not await redis.xlen(SHARD.dead):
            new = reserve(other, 2)
            await accept(redis, new)
            await eventually(partial(has_confirmed, settings, new))
    dead_letters: Any = await redis.xrange(SHARD.dead)
    [(_, fields)] = dead_letters
    assert fields[b"body"] == encode_lots([bad])
    assert b"payment failed: " in fields[b"reason"]
    assert not await redis.xlen(SHARD.outbox)
    assert not line.fulfilment.find_illnesses()


async def test_while_the_gateway_is_down_every_order_waits_and_none_is_a_dead_letter(
    redis: Redis, settings_without_bus: Settings
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, payment_attempts=1)
    batch = reserve(await open_sale(settings, redis), 100, size=10)
    gateway = Gateway(set())
    gateway.down = True
    async with await Ledger.connect(settings.postgres_url) as ledger, Line(redis, gateway, ledger, settings):
        await accept(redis, batch)
        await eventually(lambda: gateway.calls > 150)  # each order has stood alone
        gateway.down = False
        await until_settled(redis)
    assert await count_statuses(settings) == {CONFIRMED: 100}
    assert not await redis.xlen(SHARD.dead)


async def test_a_stop_keeps_an_order_that_can_not_be_paid_for_the_next_start(
    redis: Redis, settings_without_bus: Settings
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, drain_s=60)
    await accept(redis, reserve(await open_sale(settings, redis), 3))
    gateway = Gateway({2})
    async with await Ledger.connect(settings.postgres_url) as ledger:
        async with Line(redis, gateway, ledger, settings):
            await eventually(partial(counts, settings, 2))
        assert await redis.xlen(SHARD.outbox)
        gateway.bad_users.clear()
        async with Line(redis, gateway, ledger, settings):
            await until_settled(redis)
    assert await count_statuses(settings) == {CONFIRMED: 3}


async def test_a_gate_that_is_closed_does_not_wait_for_an_order_that_can_not_be_paid(
    redis: Redis, settings_without_bus: Settings
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, payment_attempts=2)
    await accept(redis, reserve(await open_sale(settings, redis)))
    async with (
        await Ledger.connect(settings.postgres_url) as ledger,
        Line(redis, Gateway({1}), ledger, settings) as line,
    ):
        await eventually(line.fulfilment.find_illnesses)
        await asyncio.wait_for(line.pause.begin(), 30)
        assert await redis.xlen(SHARD.dead) == 1
        line.pause.end()


async def test_a_row_that_the_ledger_refuses_holds_up_no_other(
    redis: Redis, settings_without_bus: Settings
) -> None:
    sale = await open_sale(settings_without_bus, redis)
    assert settings_without_bus.postgres_url
    await execute(
        settings_without_bus.postgres_url,
        """CREATE FUNCTION object() RETURNS trigger LANGUAGE plpgsql AS
           $$ BEGIN IF NEW.user_id = 7 THEN RAISE 'not this one'; END IF; RETURN NEW; END $$;
           CREATE TRIGGER object BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION object()""",
    )
    async with running(settings_without_bus, run_fulfilment):
        await accept(redis, reserve(sale, 50, size=10))
        await eventually(partial(is_empty, redis))
    assert await count_statuses(settings_without_bus) == {CONFIRMED: 49}
    dead_letters: Any = await redis.xrange(SHARD.dead)
    assert [fields[b"reason"] for _, fields in dead_letters] == [b"RaiseError: not this one"]
