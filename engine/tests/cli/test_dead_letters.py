"""What a person can do about records that nobody could fulfil: see them, send them again, give them up."""

import aio_pika
import pytest
from redis.asyncio import Redis

from engine.bus.publisher import Publisher
from engine.bus.topology import DEAD
from engine.cli import stores
from engine.cli.stores import open_stores
from engine.errors import BusUnavailable
from engine.gate.client import Shard
from engine.ledger.ledger import Ledger
from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, encode_lots
from engine.model.sale import Sale
from engine.settings import Settings
from engine.stages.fulfilment import run_fulfilment
from engine.tests.backend import CONFIRMED, FAILED, read_statuses, running, until_settled
from engine.tests.orders import SHARD, ids, make_terms, mark_pending, open_at_gate, reserve
from engine.tests.stages.test_reconciliation import run_command


@pytest.fixture(params=["bus", "outbox"])
def any_settings(request: pytest.FixtureRequest) -> Settings:
    """An engine whose dead letters are in a queue, and one whose dead letters are in a stream."""
    name = "settings" if request.param == "bus" else "settings_without_bus"
    settings: Settings = request.getfixturevalue(name)
    return settings


@pytest.fixture
async def sale(settings_without_bus: Settings, redis: Redis) -> Sale:
    assert settings_without_bus.postgres_url
    ledger = await Ledger.connect(settings_without_bus.postgres_url)
    await ledger.migrate()
    sale = await ledger.open_sale(make_terms(10))
    await ledger.close()
    await open_at_gate(redis, sale, remaining=8)
    return sale


async def put_aside(settings: Settings, redis: Redis, poison: list[DeadLetter]) -> None:
    """Do what fulfilment does with records that it can't use."""
    if settings.amqp_url:
        publisher = Publisher(settings.amqp_url)
        await publisher.put_aside(poison)
        await publisher.close()
    else:
        for record in poison:
            await redis.xadd(SHARD.dead, {"body": record.body, "reason": record.reason})


def as_record(lot: Lot) -> DeadLetter:
    return DeadLetter(encode_lots([lot]), "unknown sale")


async def ids_of(settings: Settings) -> list[str]:
    code, output = await run_command(settings, "dead-letters", "list")
    assert code == 0, output
    return [line.split()[0] for line in output.splitlines()]


async def test_dead_letters_are_listed_and_shown_and_stay(
    redis: Redis, any_settings: Settings, sale: Sale
) -> None:
    [lost] = reserve(sale)
    await put_aside(any_settings, redis, [as_record(lost), DeadLetter(b"rubbish\xff", "no JSON")])
    code, output = await run_command(any_settings, "dead-letters", "list")
    rows = [line.split(maxsplit=3) for line in output.splitlines()]
    where = "queue" if any_settings.amqp_url else "stream"
    assert [row[1:] for row in rows] == [[where, "1", "unknown sale"], [where, "0", "no JSON"]]
    code, output = await run_command(any_settings, "dead-letters", "show", rows[0][0][:8])
    assert code == 0
    assert lost.order_ids[0] in output
    assert await ids_of(any_settings) == [row[0] for row in rows], "looking changes nothing"


async def test_a_dead_letter_replayed_is_settled_once(
    redis: Redis, any_settings: Settings, sale: Sale
) -> None:
    twice, other = reserve(sale, 2)
    await mark_pending(redis, [twice, other])
    await put_aside(
        any_settings, redis, [as_record(twice), as_record(twice), DeadLetter(b"rubbish", "no JSON")]
    )
    await put_aside(any_settings, redis, [DeadLetter(encode_lots([other, twice]), "a whole message")])
    async with running(any_settings, run_fulfilment):
        code, output = await run_command(any_settings, "dead-letters", "replay", "--all")
        assert code == 0, output
        await until_settled(redis)
    assert await read_statuses(any_settings) == dict.fromkeys(ids([twice, other]), CONFIRMED)
    assert len(await ids_of(any_settings)) == 1, "what can't be read stays"


async def test_a_dropped_order_fails_and_its_unit_is_sold_on(
    redis: Redis, any_settings: Settings, sale: Sale
) -> None:
    dropped, kept = reserve(sale, 2)
    await mark_pending(redis, [dropped, kept])
    await put_aside(any_settings, redis, [as_record(dropped), as_record(kept)])
    first, second = await ids_of(any_settings)
    code, output = await run_command(any_settings, "dead-letters", "drop", first)
    assert (code, output) == (0, f"{first} dropped: 1 orders failed\n")
    assert await read_statuses(any_settings) == {dropped.order_ids[0]: FAILED}
    assert await redis.hget(SHARD.sale(1), "remaining") == b"9"
    assert await ids_of(any_settings) == [second]


async def test_a_replay_killed_before_it_deleted_the_dead_letter_loses_nothing_and_sells_nothing_twice(
    redis: Redis, settings: Settings, sale: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    [lost] = reserve(sale)
    await mark_pending(redis, [lost])
    await put_aside(settings, redis, [as_record(lost)])

    async def die(*_: object) -> None:
        raise ConnectionResetError

    async with open_stores(settings, [Shard(redis)]) as [stored]:
        with monkeypatch.context() as patch:
            patch.setattr(aio_pika.IncomingMessage, "ack", die)
            await stored.send()
            with pytest.raises(BusUnavailable):
                await stored.delete()
    assert len(await ids_of(settings)) == 1
    async with running(settings, run_fulfilment):
        await until_settled(redis)
        assert (await run_command(settings, "dead-letters", "replay", "--all"))[0] == 0
        while await ids_of(settings):
            pass
    assert await read_statuses(settings) == {lost.order_ids[0]: CONFIRMED}


async def test_a_replay_that_the_bus_does_not_confirm_keeps_the_dead_letter(
    redis: Redis, settings: Settings, sale: Sale, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put_aside(settings, redis, [as_record(reserve(sale)[0])])

    async def fail(*_: object) -> None:
        raise BusUnavailable("no confirm")

    monkeypatch.setattr(Publisher, "publish", fail)
    async with open_stores(settings, [Shard(redis)]) as [stored]:
        with pytest.raises(BusUnavailable):
            await stored.send()
    assert len(await ids_of(settings)) == 1


async def test_a_whole_message_that_the_broker_gave_up_is_replayed(
    redis: Redis, settings: Settings, sale: Sale, bus_url: str
) -> None:
    batch = reserve(sale, 2)
    await mark_pending(redis, batch)
    await put_aside(settings, redis, [])
    publisher = Publisher(bus_url)
    await publisher.read_queue()
    await publisher.close()
    async with await aio_pika.connect(bus_url) as connection, connection.channel() as channel:
        await channel.default_exchange.publish(
            aio_pika.Message(encode_lots(batch), headers={"x-first-death-reason": "delivery_limit"}), DEAD
        )
    async with running(settings, run_fulfilment):
        _, output = await run_command(settings, "dead-letters", "replay", "--all")
        assert "2 purchases" in output
        await until_settled(redis)
    assert await read_statuses(settings) == dict.fromkeys(ids(batch), CONFIRMED)


async def test_a_dead_letter_may_be_looked_at_any_number_of_times(
    redis: Redis, settings: Settings, bus_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 4 drops a message that came back 20 times."""
    monkeypatch.setattr(stores, "_MOST_RETURNS", 2)
    await put_aside(settings, redis, [DeadLetter(b"{}", "unreadable")])
    [first] = await read_dead_letters(settings, redis)
    await put_aside(settings, redis, [DeadLetter(b"[]", "of no use")])
    for _ in range(6):
        assert await read_dead_letters(settings, redis) == [first, (b"[]", "of no use")]
    async with await aio_pika.connect(bus_url) as connection, connection.channel() as channel:
        message = await (await channel.get_queue(DEAD)).get()
        assert message is not None
        assert 0 < int(str(message.headers["x-delivery-count"])) <= 2


async def read_dead_letters(settings: Settings, redis: Redis) -> list[tuple[bytes, str]]:
    async with open_stores(settings, [Shard(redis)]) as stored:
        return [(each.body, each.reason) for each in stored]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["drop"], "--all"), (["replay", "ab"], "0 dead letters have an id that begins with ab")],
)
async def test_a_dead_letter_must_be_named(
    redis: Redis, settings_without_bus: Settings, arguments: list[str], said: str
) -> None:
    code, output = await run_command(settings_without_bus, "dead-letters", *arguments)
    assert (code, said in output, output.count("\n")) == (1, True, 1)
