"""What holds when the gate loses its memory: it sells nothing until it knows again, then exactly the rest."""

import asyncio
import contextlib
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import aiohttp
import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from engine.bus.consumer import Consumer
from engine.bus.publisher import Publisher
from engine.errors import GateUnavailable
from engine.gate.clearing import Clearing
from engine.gate.client import Shard
from engine.gate.fence import Fence, read_generations, vouch
from engine.gate.gate import Gate
from engine.gate.restoring import Restoring
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack
from engine.model.lot import encode_lots
from engine.model.purchase import Outcome
from engine.model.sale import Sale
from engine.settings import Settings
from engine.stages.fulfilment import run_fulfilment
from engine.stages.keeper import run_keeper
from engine.stages.lifecycle import Pause
from engine.stages.reconciliation import Reconciliation, reconciling
from engine.stages.relay import run_relay
from engine.tasks import cancel
from engine.tests.backend import CONFIRMED, FAILED, read_statuses, running, until_relayed, until_settled
from engine.tests.gate.test_watch import gate_sells, restart
from engine.tests.orders import SHARD, make_terms, mark_pending, read_stock, reserve
from engine.tests.services import execute
from engine.tests.test_server import PROGRAM, environment_of, eventually, get, post, serving
from engine.tests.test_server import buy as buy_over_http

Answers = list[tuple[Outcome, str | None]]


@pytest.fixture
async def ledger(settings_without_bus: Settings) -> AsyncIterator[Ledger]:
    assert settings_without_bus.postgres_url
    ledger = await Ledger.connect(settings_without_bus.postgres_url)
    await ledger.migrate()
    yield ledger
    await ledger.close()


@pytest.fixture
async def gate(settings_without_bus: Settings) -> AsyncIterator[Gate]:
    gate = Gate(settings_without_bus)
    yield gate
    await gate.close()


async def open_sale(
    ledger: Ledger, gate: Gate, stock: int, limit: int | None = None, product_id: int = 1
) -> Sale:
    sale = await ledger.open_sale(make_terms(stock, product_id, limit))
    await gate.open_sale(sale)
    return sale


async def buy(gate: Gate, count: int, key: str | None = None, product_id: int = 1) -> Answers:
    return await asyncio.gather(*(gate.reserve(user, product_id, key) for user in range(1, count + 1)))


def orders_of(answers: Answers) -> set[str]:
    return {order_id for _, order_id in answers if order_id}


async def until_open(gate: Gate) -> None:
    while (await gate.reserve(1, 999, None))[0] is Outcome.GATE_UNAVAILABLE:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def until_remaining(gate: Gate, units: int, product_id: int = 1) -> None:
    while True:
        with contextlib.suppress(GateUnavailable):
            stock = await read_stock(gate, product_id)
            if stock and stock.remaining == units:
                return
        await asyncio.sleep(0.02)


async def take_copy(redis: Redis) -> dict[bytes, Any]:
    """What a snapshot of Redis would hold."""
    names: list[Any] = await redis.keys("*")
    return {name: await redis.dump(name) for name in names}


async def restore_copy(redis: Redis, copy: dict[bytes, Any]) -> None:
    """Put Redis back to an older snapshot, as a restart from it or a lagging replica does."""
    async with redis.pipeline(transaction=True) as pipe:
        pipe.flushall()
        for name, value in copy.items():
            pipe.restore(name, 0, value)
        await pipe.execute()


async def test_a_wiped_gate_sells_nothing_until_it_is_rebuilt(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=10)
    await buy(gate, 4)
    async with running(settings_without_bus, run_fulfilment):
        await until_settled(redis)
    await redis.flushall()
    fresh = Gate(settings_without_bus)
    assert {outcome for outcome, _ in await buy(gate, 5)} == {Outcome.GATE_UNAVAILABLE}
    assert {outcome for outcome, _ in await buy(fresh, 5)} == {Outcome.GATE_UNAVAILABLE}
    await fresh.close()
    async with running(settings_without_bus, run_fulfilment):
        await until_open(gate)
        assert await read_stock(gate, 1) == (1, 10, 6)
        counts = Counter(outcome for outcome, _ in await buy(gate, 10))
    assert counts == {Outcome.ACCEPTED: 6, Outcome.SOLD_OUT: 4}
    assert Counter((await read_statuses(settings_without_bus)).values()) == {CONFIRMED: 10}


async def test_a_wipe_in_mid_sale_with_purchases_in_the_bus_sells_exactly_the_stock(
    settings: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=3_000)
    answers = await buy(gate, 2_000)
    async with running(settings, run_relay):
        await until_relayed(redis)
    # Nobody fulfils: RabbitMQ alone knows of two thousand units that are sold.
    await redis.flushall()
    settings = msgspec.structs.replace(settings, payment_latency_ms=20, fulfilment_batch=100)
    async with running(settings):
        while len(await read_statuses(settings)) < 2_000:
            assert {outcome for outcome, _ in await buy(gate, 2)} == {Outcome.GATE_UNAVAILABLE}
        await until_open(gate)
        answers += await buy(gate, 2_000)
        await until_settled(redis)
    statuses = await read_statuses(settings)
    assert statuses.keys() == orders_of(answers)
    assert Counter(statuses.values()) == {CONFIRMED: 3_000}
    assert await read_stock(gate, 1) == (1, 3_000, 0)


@pytest.mark.parametrize("workers", [1, 2])
async def test_an_older_copy_is_noticed_by_any_process_that_knows_more(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger, workers: int
) -> None:
    await open_sale(ledger, gate, stock=100)
    await buy(gate, 10)
    other = Gate(settings_without_bus)
    await other.reserve(1, 1, None)
    copy = await take_copy(redis)
    answers = await buy(gate, 30)
    async with running(settings_without_bus, run_fulfilment):
        await until_settled(redis)
    await restore_copy(redis, copy)
    if workers == 2:
        # A worker that lost nothing writes first, and moves on whatever the copy counts.
        assert (await other.reserve(1, 1, None))[0] is Outcome.ACCEPTED
        assert (await other.reserve(1, 1, None))[0] is Outcome.ACCEPTED
    assert (await gate.reserve(1, 1, None))[0] is Outcome.GATE_UNAVAILABLE
    assert (await other.reserve(1, 1, None))[0] is Outcome.GATE_UNAVAILABLE, "it is closed for everybody"
    async with running(settings_without_bus, run_fulfilment):
        await until_open(gate)
        assert (await read_stock(gate, 1)) == (1, 100, 59 if workers == 1 else 57)
        await buy(gate, 200)
        await until_settled(redis)
    await other.close()
    statuses = await read_statuses(settings_without_bus)
    assert Counter(statuses.values()) == {CONFIRMED: 100}
    assert statuses.keys() >= orders_of(answers)


async def test_a_copy_that_lacks_only_settlements_is_noticed_by_fulfilment(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, payment_decline_rate=1.0)
    await open_sale(ledger, gate, stock=10)
    async with running(settings, run_fulfilment):
        await buy(gate, 1)
        await until_settled(redis)
        await buy(gate, 3)
        copy = await take_copy(redis)
        await until_settled(redis)
        await restore_copy(redis, copy)
        await until_remaining(gate, 10)


async def test_an_older_copy_that_nobody_alive_knows_better_than_is_disproved_by_the_ledger(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=10)
    await buy(gate, 2)
    async with running(settings_without_bus, run_fulfilment):
        await until_settled(redis)
        copy = await take_copy(redis)
        await asyncio.sleep(0.002)  # entry ids are milliseconds
        await buy(gate, 5)
        await until_settled(redis)
    await restore_copy(redis, copy)
    fresh = Gate(settings_without_bus)
    async with running(settings_without_bus, run_fulfilment):
        await until_remaining(fresh, 3)
    await fresh.close()


async def test_a_copy_from_before_a_rebuild_stays_closed(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=10)
    copy = await take_copy(redis)
    await redis.flushall()
    async with reconciling(settings_without_bus) as reconciliation:
        assert await reconciliation.rebuild()
        await buy(gate, 3)
        async with running(settings_without_bus, run_fulfilment):
            await until_settled(redis)
        await restore_copy(redis, copy)
        assert (await gate.reserve(1, 1, None))[0] is Outcome.GATE_UNAVAILABLE
        await restore_copy(redis, copy)
        assert not await reconciliation.is_open()
        assert await reconciliation.rebuild()
    assert await read_stock(gate, 1) == (1, 10, 7)


async def test_a_restart_with_the_data_intact_is_no_loss(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger, stack: Stack
) -> None:
    await open_sale(ledger, gate, stock=1_000)
    async with reconciling(settings_without_bus) as reconciliation:
        await reconciliation.close(await reconciliation.read_generation())
        await reconciliation.rebuild()
        generation = await redis.hget(SHARD.fence, "open")
        async with running(settings_without_bus, run_fulfilment):
            await buy(gate, 300)
            await stack.kill("redis")
            await stack.start("redis")
            await eventually(partial(gate_sells, gate))
            answers = await buy(gate, 300)
            await until_settled(redis)
        assert {outcome for outcome, _ in answers} == {Outcome.ACCEPTED}
        assert await reconciliation.is_open()
        assert not await reconciliation.is_outdated()
        assert await redis.hget(SHARD.fence, "open") == generation


async def test_a_new_server_is_compared_with_the_ledger_since_its_writers_may_be_gone(
    settings_without_bus: Settings,
    redis: Redis,
    gate: Gate,
    ledger: Ledger,
    stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare, found = Reconciliation.is_outdated, list[bool]()

    async def note(self: Reconciliation) -> bool:
        found.append(await compare(self))
        return found[-1]

    monkeypatch.setattr(Reconciliation, "is_outdated", note)
    sale = await open_sale(ledger, gate, stock=10)
    await buy(gate, 1)
    keeper = asyncio.create_task(run_keeper(settings_without_bus, Clearing([Shard(redis)]), Pause()))
    try:
        await eventually(lambda: found)
        await stack.kill("redis")
        # Whoever sold and settled this is gone, and Redis comes back without it.
        await ledger.settle(reserve(sale), {})
        await stack.start("redis")
        await eventually(lambda: found[-1])

        async def is_closed() -> bool:
            return await read_generations([Shard(redis)]) == [0]

        await eventually(is_closed)
    finally:
        await cancel(keeper)


async def test_a_keeper_whose_fulfilment_never_rests_sees_that_another_one_opened_the_gate(
    settings_without_bus: Settings, redis: Redis, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.stages.keeper._REST_S", 0.2)
    await redis.flushall()
    pause = Pause()
    keeper = asyncio.create_task(run_keeper(settings_without_bus, Clearing([Shard(redis)]), pause))
    try:
        await eventually(lambda: pause.wanted)
        async with reconciling(settings_without_bus) as other:
            await eventually(other.rebuild)
        await eventually(lambda: not pause.wanted)
    finally:
        await cancel(keeper)


async def test_a_front_door_that_comes_late_to_a_server_calls_nothing_lost(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=10)
    async with reconciling(settings_without_bus) as reconciliation:
        await reconciliation.close(await reconciliation.read_generation())
        await reconciliation.rebuild()
        await eventually(partial(gate_sells, gate))
        shard, late = Shard(redis), Fence()
        await vouch(redis.execute_command, shard, late)
        # It saw another server last, and the gate went on meanwhile.
        late.server = late.server.split()[0] + b" " + b"a" * 40
        assert await vouch(redis.execute_command, shard, late)
        # A front door that has asked before goes on selling.
        await buy(gate, 3)
        async with running(settings_without_bus, run_fulfilment):
            await until_settled(redis)
        assert not await reconciliation.is_outdated()


async def test_what_a_copy_has_sold_again_hides_nothing_that_it_lacks(
    settings_without_bus: Settings, redis: Redis, ledger: Ledger, stack: Stack
) -> None:
    data, copy = stack.data_dir / "redis", stack.data_dir / "redis-copy"

    def bring_back() -> None:
        shutil.rmtree(data)
        copy.rename(data)

    first = Gate(settings_without_bus)
    await open_sale(ledger, first, stock=10)
    await buy(first, 2)
    await eventually(lambda: redis.hexists(SHARD.fence, "server"))
    shutil.copytree(data, copy)
    await buy(first, 2)
    async with running(settings_without_bus, run_fulfilment):
        await until_settled(redis)
    # Whoever sold and settled this is gone. Its copy sells again, and its successor has all of that.
    await first.close()
    for prepare in (bring_back, lambda: None):
        await restart(stack, prepare)
        gate = Gate(settings_without_bus)
        await eventually(partial(gate_sells, gate))
        await gate.close()
    async with reconciling(settings_without_bus) as reconciliation:
        assert await reconciliation.is_outdated()
        await redis.hdel(SHARD.fence, "copies")
        assert not await reconciliation.is_outdated(), "what it sold is newer than all that it lacks"
        await reconciliation.close(await reconciliation.read_generation())
        async with running(settings_without_bus, run_fulfilment):
            await eventually(reconciliation.is_open)
        assert not await reconciliation.is_outdated()
    assert await redis.hget(SHARD.sale(1), "remaining") == b"4"


@pytest.mark.parametrize("is_wiped", [True, False])
async def test_a_ledger_that_forgot_generations_lets_the_gate_open(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger, is_wiped: bool
) -> None:
    url = settings_without_bus.postgres_url
    assert url
    await open_sale(ledger, gate, stock=10)
    # The clock of the server before was a day ahead.
    latest = await ledger.next_generation(round(time.time()) + 86_400)

    async def is_ahead() -> bool:
        return await read_generations([Shard(redis)]) >= [latest]

    async with running(settings_without_bus, run_fulfilment):
        await eventually(is_ahead)
        await eventually(partial(gate_sells, gate))
        await until_settled(redis)
        await execute(url, "UPDATE gate SET generation = 1")
        if is_wiped:
            await redis.flushall()
        else:
            async with reconciling(settings_without_bus) as reconciliation:
                await reconciliation.close(await reconciliation.read_generation())
        await eventually(partial(gate_sells, gate))
        await until_settled(redis)
    assert await redis.hget(SHARD.sale(1), "remaining") == b"%d" % (
        10 - len(await read_statuses(settings_without_bus))
    )


async def test_a_gate_that_accepts_while_it_is_compared_with_the_ledger_is_not_outdated(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_sale(ledger, gate, stock=10)
    await buy(gate, 1)
    find = Ledger.find_newest

    async def settle_and_find(self: Ledger) -> dict[int, int]:
        await asyncio.sleep(0.002)  # entry ids are milliseconds
        await buy(gate, 1)
        await until_settled(redis)
        return await find(self)

    async with (
        running(settings_without_bus, run_fulfilment),
        reconciling(settings_without_bus) as reconciliation,
    ):
        await until_settled(redis)
        monkeypatch.setattr(Ledger, "find_newest", settle_and_find)
        assert not await reconciliation.is_outdated()


async def test_limits_and_keys_survive(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    settings = msgspec.structs.replace(settings_without_bus, payment_decline_rate=0.3)
    await open_sale(ledger, gate, stock=100, limit=2)
    await open_sale(ledger, gate, stock=100, product_id=2)
    first = await buy(gate, 20, key="k")
    plain = await buy(gate, 20)
    await buy(gate, 20, key="k", product_id=2)
    async with running(settings, run_fulfilment):
        await until_settled(redis)
    before: Any = await redis.hgetall(f"{SHARD.prefix}buyers:1")
    await redis.flushall()
    async with reconciling(settings) as reconciliation:
        assert await reconciliation.rebuild()
    statuses = await read_statuses(settings)
    assert {user: n for user, n in before.items() if n != b"0"} == await redis.hgetall(
        f"{SHARD.prefix}buyers:1"
    )
    assert await buy(gate, 20, key="k") == first
    assert await redis.ttl(f"{SHARD.prefix}answer:1:1:k") in range(
        settings.idempotency_s - 60, settings.idempotency_s + 1
    )
    again = await buy(gate, 20)
    for (_, one), (_, two), (outcome, _) in zip(first, plain, again, strict=True):
        bought_all = statuses[str(one)] == statuses[str(two)] == CONFIRMED
        assert outcome is (Outcome.LIMIT_REACHED if bought_all else Outcome.ACCEPTED)


async def test_late_orders_release_nothing_and_the_audit_finds_them(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    sale = await open_sale(ledger, gate, stock=10)
    late, declined = reserve(sale, 2)
    # An older copy that still holds the evidence that two units are out, but not the outbox entry.
    await mark_pending(redis, [late, declined])
    async with reconciling(settings_without_bus) as reconciliation:
        await reconciliation.close(await reconciliation.read_generation())
        await reconciliation.rebuild()
        assert not await redis.exists(SHARD.pending), "their units count as not sold, so none may go back"
        assert await reconciliation.audit.run(await reconciliation.read_generation()) == []
        async with running(settings_without_bus, run_fulfilment):
            # A relay that held two purchases of the wiped outbox; the payment of one was declined.
            await ledger.settle([declined], {declined.order_ids[0]: "declined"})
            await redis.xadd(SHARD.outbox, {"purchases": encode_lots([late, declined])})
            await until_settled(redis)
            await until_remaining(gate, 9)
    assert await read_statuses(settings_without_bus) == {
        late.order_ids[0]: CONFIRMED,
        declined.order_ids[0]: FAILED,
    }


async def test_the_gate_follows_the_ledger_in_what_is_on_offer(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=5)
    await ledger.open_sale(make_terms(7, product_id=1))
    await gate.open_sale(Sale(sale_id=99, terms=make_terms(3, product_id=3)))
    async with reconciling(settings_without_bus) as reconciliation:
        await reconciliation.close(await reconciliation.read_generation())
        await reconciliation.rebuild()
    assert await read_stock(gate, 1) == (2, 7, 7)
    assert await read_stock(gate, 3) is None, "its orders could never be settled"


async def test_of_two_processes_one_rebuilds(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=5)
    await redis.flushall()
    async with (
        reconciling(settings_without_bus) as one,
        reconciling(settings_without_bus) as two,
    ):
        done = await asyncio.gather(*(each.rebuild() for each in (one, two) for _ in range(5)))
    assert done.count(True) == 1
    assert await read_stock(gate, 1) == (1, 5, 5)


async def test_a_gate_that_was_rebuilt_meanwhile_is_not_closed_again(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=5)
    async with reconciling(settings_without_bus) as reconciliation:
        suspected = await reconciliation.read_generation()
        await reconciliation.close(suspected)
        await reconciliation.rebuild()
        await reconciliation.close(suspected)
        assert await reconciliation.is_open()


async def test_two_fulfilments_leave_the_bus_before_either_rebuilds(
    settings: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    settings = msgspec.structs.replace(settings, payment_latency_ms=50, fulfilment_batch=20)
    await open_sale(ledger, gate, stock=1_000)
    answers = await buy(gate, 800)
    async with running(settings, run_relay):
        await until_relayed(redis)
    async with running(settings, run_relay, run_fulfilment, run_fulfilment):
        await redis.flushall()
        await until_open(gate)
        generation = await redis.hget(SHARD.fence, "open")
        assert (await read_statuses(settings)).keys() == orders_of(answers)
        assert await read_stock(gate, 1) == (1, 1_000, 200)
        answers += await buy(gate, 500)
        await until_settled(redis)
        assert await redis.hget(SHARD.fence, "open") == generation, "rebuilt once"
    assert Counter((await read_statuses(settings)).values()) == {CONFIRMED: 1_000}


async def test_a_message_that_a_consumer_holds_is_under_way(
    settings: Settings, redis: Redis, gate: Gate
) -> None:
    assert settings.amqp_url
    sale = Sale(sale_id=1, terms=make_terms(5))
    publisher, consumer = Publisher(settings.amqp_url), Consumer(settings.amqp_url, prefetch=10)
    await publisher.publish(encode_lots(reserve(sale, 2)))
    async with reconciling(settings) as reconciliation:
        assert not (await reconciliation.read_traffic()).drained
        while not await consumer.read(1):
            pass
        traffic = await reconciliation.read_traffic()
        assert traffic.messages == 0
        assert not traffic.drained
        await consumer.close()
        # Not acknowledged, so it comes to wait again, and never looks drained on the way.
        while not (traffic := await reconciliation.read_traffic()).messages:
            assert not traffic.drained
    await publisher.close()


async def test_a_rebuild_that_was_overtaken_writes_nothing(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_sale(ledger, gate, stock=5)
    await redis.flushall()
    find = Ledger.find_keys

    async def overtake(self: Ledger, max_age_s: float) -> AsyncIterator[Any]:
        await redis.hset(SHARD.fence, "rebuilding", 9)
        async for page in find(self, max_age_s):
            yield page

    monkeypatch.setattr(Ledger, "find_keys", overtake)
    async with reconciling(settings_without_bus) as reconciliation:
        with pytest.raises(Exception, match="overtaken"):
            await reconciliation.rebuild()
        assert not await reconciliation.is_open()
        monkeypatch.undo()
        # PostgreSQL frees the lock of the connection that was lost a moment later.
        await eventually(reconciliation.rebuild)
    assert await read_stock(gate, 1) == (1, 5, 5)


async def test_a_rebuild_looks_again_whether_something_is_under_way(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=5)
    await buy(gate, 2)
    async with reconciling(settings_without_bus) as reconciliation:
        # As a keeper does that has looked long ago, while others opened the gate and it was closed again.
        await reconciliation.close(await reconciliation.read_generation())
        assert not await reconciliation.rebuild()
        assert not await reconciliation.is_open()
        assert await redis.hget(SHARD.sale(1), "remaining") == b"3"
        async with running(settings_without_bus, run_fulfilment):
            await until_open(gate)
    assert await read_stock(gate, 1) == (1, 5, 3)


async def test_a_rebuild_that_begins_late_leaves_an_open_gate_alone(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    await open_sale(ledger, gate, stock=5)
    await redis.flushall()
    begin = Restoring.begin

    async def lose_the_lock(self: Restoring) -> None:
        monkeypatch.undo()
        async with reconciling(settings_without_bus) as another:
            monkeypatch.setattr(Ledger, "try_lock", lambda _: contextlib.nullcontext(True))
            assert await another.rebuild()
            monkeypatch.undo()
        await buy(gate, 2)
        await begin(self)

    monkeypatch.setattr(Restoring, "begin", lose_the_lock)
    async with reconciling(settings_without_bus) as reconciliation:
        with pytest.raises(ResponseError, match="overtaken"):
            await reconciliation.rebuild()
        assert await reconciliation.is_open()
    assert await read_stock(gate, 1) == (1, 5, 3)
    assert await redis.hlen(SHARD.pending) == 1


async def run_command(settings: Settings, *arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *PROGRAM, *arguments, env=environment_of(settings), stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_a_dry_run_says_what_it_would_do_and_changes_nothing(
    settings_without_bus: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=10)
    await open_sale(ledger, gate, stock=8, product_id=2)
    await buy(gate, 4)
    await redis.delete(SHARD.sale(2))
    before = await take_copy(redis)
    code, output = await run_command(settings_without_bus, "reconcile", "--dry-run")
    lines = [text.split() for text in output.splitlines()]
    assert code == 0
    assert lines[0] == ["the", "gate", "is", "open"]
    assert "4 orders pending" in output
    assert lines[3:] == [
        ["1", "1", "10", "0", "10", "6", "+4"], ["2", "2", "8", "0", "8", "no", "such", "sale", "+8"],
    ]  # fmt: skip
    assert await take_copy(redis) == before


async def test_reconcile_by_hand_waits_for_what_is_under_way_and_opens_the_gate(
    settings: Settings, redis: Redis, gate: Gate, ledger: Ledger
) -> None:
    await open_sale(ledger, gate, stock=10)
    await buy(gate, 4)
    code, output = await run_command(settings, "reconcile", "--wait", "1")
    assert (code, "still under way after 1 s: 1 outbox entries" in output) == (1, True), output
    assert (await gate.reserve(1, 1, None))[0] is Outcome.GATE_UNAVAILABLE
    async with running(settings):
        code, output = await run_command(settings, "reconcile")
    assert code == 0, output
    assert output.splitlines()[-1].split() == ["1", "1", "10", "4", "6", "6", "0"]
    assert await read_stock(gate, 1) == (1, 10, 6)


async def test_a_server_whose_redis_was_wiped_while_it_stood_opens_by_itself(
    settings: Settings, redis: Redis
) -> None:
    await redis.flushall()
    async with serving(settings) as server, aiohttp.ClientSession() as http:
        status, _ = await post(http, f"{server.url}/purchase/init?productId=1&stock=5")
        assert (status, (await buy_over_http(http, server))[0]) == (200, 200), "a new gate is open at once"
    await redis.flushall()
    async with serving(settings) as server, aiohttp.ClientSession() as http:
        await eventually(lambda: has_status(http, f"{server.url}/readyz", 200))
        counts = Counter([(await buy_over_http(http, server))[0] for _ in range(6)])
    assert counts == {200: 4, 429: 2}


async def test_a_closed_gate_is_said_everywhere(settings_without_bus: Settings, redis: Redis) -> None:
    async with (
        serving(settings_without_bus, "--role", "front-door") as server,
        aiohttp.ClientSession() as http,
    ):
        await post(http, f"{server.url}/purchase/init?productId=1&stock=5")
        await redis.flushall()
        status, problem = await buy_over_http(http, server)
        assert (status, problem["code"]) == (503, "GATE_UNAVAILABLE")
        for path in (
            "readyz",
            "purchase/stock?productId=1",
            "purchase/orders/01890a5d-ac96-774b-bcce-b302099a8057",
        ):
            assert await has_status(http, f"{server.url}/{path}", 503), path


async def has_status(http: aiohttp.ClientSession, url: str, status: int) -> bool:
    return (await get(http, url))[0] == status
