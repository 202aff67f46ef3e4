"""The engine's real steps in any order: examples of any kind hold, and deliberate bugs show."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from engine.model.purchase import Outcome
from engine.model.sale import SaleTerms
from simulation.campaign.mutation import copy_engine, mutate
from simulation.protocol.hunt import (
    Attempt,
    Found,
    Hunts,
    load_bugs,
    load_edits,
    play,
    private_stores,
    write_hunts,
)
from simulation.protocol.processes import DECLINED, FulfilmentProcess, Stores
from simulation.protocol.referee import find_faults
from simulation.protocol.steps import Fate, Step
from simulation.protocol.world import World

# On a busy machine each step waits for its turn at the processor.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SALE = SaleTerms(product_id=1, stock=2)
LOCK = "PostgreSQL try_lock"
EXAMPLES = 12
"""With one seed; `flashsim interleave` goes on for as long as is wanted."""
DOOR, OTHER_DOOR, RELAY, FULFILMENT, OTHER_FULFILMENT = 0, 1, 2, 4, 5


@pytest.fixture(scope="module")
def stores() -> Iterator[Stores]:
    with private_stores() as stores:
        yield stores


@pytest.fixture
def world(stores: Stores) -> Iterator[World]:
    """Two front doors, two relays, two fulfilments, and a sale of two units that is open."""
    world = World(stores)
    world.open_sale(DOOR, SALE, "first", at_once=True)
    yield world
    world.end()


def approach(world: World, number: int, what: str) -> Step:
    """Let a process go on until it is about to take this step."""
    process = world.processes[number]
    for _ in range(100):
        for waiting in list(process.waiting):
            if waiting.what == what:
                return waiting
            if waiting in process.waiting:
                world.run(process, waiting, 1)
    raise AssertionError(f"{process.name} does not come to {what}")


def step(world: World, number: int, what: str, fate: Fate = Fate.DONE) -> None:
    """Let a process go on until it has taken this step."""
    world.run(world.processes[number], approach(world, number, what), 1, fate)


def rebuild_up_to(world: World, number: int, what: str) -> None:
    """Let a keeper rebuild until it has taken this step, while the other fulfilment pauses."""
    keeper, other = world.processes[number], world.processes[FULFILMENT + OTHER_FULFILMENT - number]
    for _ in range(100):
        for process in (other, keeper):
            for waiting in list(process.waiting):
                if waiting.what == what:
                    step(world, number, what)
                    return
                # The other keeper waits before the lock.
                if waiting in process.waiting and (process is keeper or waiting.what != LOCK):
                    world.run(process, waiting, 1)
        world.pass_time(600)
    raise AssertionError(f"{keeper.name} does not come to {what}")


def let_alone(world: World, number: int, rounds: int = 60, ms: int = 0) -> None:
    """Let one process go on, while all others stand still, and so much time pass with each round."""
    process = world.processes[number]
    for _ in range(rounds):
        for waiting in list(process.waiting):
            if waiting in process.waiting:
                world.run(process, waiting, 1)
        if ms:
            world.pass_time(ms)


def is_open(world: World) -> bool:
    return bool(world.memory.call("HEXISTS", "fg:{0}:mark", "open"))


def read_sale(world: World) -> list[bytes | None]:
    """Return id and remaining units of the sale at the gate."""
    found: list[bytes | None] = world.memory.call("HMGET", "fg:{0}:sale:1", "sale_id", "remaining")
    return found


def buy(
    world: World, *users: int, door: int = DOOR, key: str | None = None, product_id: int = 1
) -> list[Outcome | None]:
    """Have users buy, and the front door ask the gate."""
    first = len(world.purchases)
    world.buy(door, product_id, [(user, key) for user in users])
    while any(purchase.done is None for purchase in world.purchases[first:]):
        step(world, door, world.processes[door].waiting[-1].what)
    return [purchase.outcome for purchase in world.purchases[first:]]


def statuses(world: World) -> list[str]:
    return sorted(row["status"] for row in world.database.read("read_orders"))


def test_a_plain_sale_ends_as_the_ledger_says(world: World) -> None:
    assert buy(world, 1, DECLINED) == [Outcome.ACCEPTED] * 2
    assert buy(world, 2) == [Outcome.SOLD_OUT]
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "FAILED"], [])
    assert world.memory.call("HGET", "fg:{0}:sale:1", "remaining") == b"1"


def test_what_a_front_door_repeats_of_the_sale_before_ends_before_an_operator_is_told_of_the_next(
    world: World,
) -> None:
    assert buy(world, 1, 2, 2) == [Outcome.ACCEPTED] * 2 + [Outcome.SOLD_OUT]
    assert buy(world, 1) == [Outcome.SOLD_OUT]
    world.open_sale(OTHER_DOOR, SALE, "second", at_once=True)
    assert world.openings["second"].opened
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.settle_down()
    assert find_faults(world) == []


def test_a_confirm_that_is_lost_has_its_entry_published_again(world: World) -> None:
    buy(world, 1)
    step(world, RELAY, "bus publish", Fate.LOST)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def test_a_commit_whose_answer_is_lost_is_settled_once(world: World) -> None:
    buy(world, 1)
    step(world, RELAY, "bus publish")
    step(world, FULFILMENT, "PostgreSQL settle_plain", Fate.LOST)
    world.crash(FULFILMENT)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def test_a_release_whose_answer_is_lost_gives_one_unit_back(world: World) -> None:
    buy(world, DECLINED)
    step(world, RELAY, "bus publish")
    step(world, FULFILMENT, "Redis clear", Fate.LOST)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["FAILED"], [])
    assert world.memory.call("HMGET", "fg:{0}:sale:1", "remaining", "released") == [b"2", b"1"]


def test_what_a_copy_lacks_and_a_front_door_knows_closes_the_gate(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    step(world, RELAY, "bus publish")
    world.lose_memory(0)
    assert not world.losses.is_unnoticed
    assert not world.may_pass(600)
    # The one that knows nothing may not sell before the other one has asked.
    assert buy(world, 2, door=OTHER_DOOR) == [Outcome.GATE_UNAVAILABLE]
    world.settle_down()
    assert buy(world, 2, 2) == [Outcome.ACCEPTED, Outcome.SOLD_OUT]
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "CONFIRMED"], [])


def test_a_copy_from_right_after_a_rebuild_is_known_to_be_another_servers(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "Redis reopen")
    # No front door has asked the server yet.
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    step(world, RELAY, "bus publish")
    world.lose_memory(0)
    assert buy(world, 2, 2, door=OTHER_DOOR) == [Outcome.GATE_UNAVAILABLE] * 2
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def test_what_only_the_dead_knew_is_a_surprise_that_the_ledger_guards_against(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    step(world, RELAY, "bus publish")
    world.crash(DOOR)
    world.lose_memory(0)
    assert world.losses.is_unnoticed
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def test_a_gate_that_lacks_what_the_ledger_has_is_closed_as_soon_as_a_keeper_looks(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    step(world, RELAY, "bus publish")
    world.crash(DOOR)
    world.lose_memory(0)
    step(world, FULFILMENT, "PostgreSQL settle_plain")
    keeper = world.processes[OTHER_FULFILMENT]
    # Its first look takes fewer steps than two audits.
    for _ in range(10):
        for waiting in [each for each in keeper.waiting if each.what != "bus deliver"]:
            world.run(keeper, waiting, 1)
    assert not is_open(world)


@pytest.mark.parametrize("user", [1, DECLINED])
def test_an_order_that_comes_back_with_a_copy_after_it_was_settled_is_cleared_again(
    world: World, user: int
) -> None:
    buy(world, user)
    step(world, RELAY, "Redis XACK")
    world.take_copy()
    step(world, FULFILMENT, "bus acknowledge")
    # It alone has been answered since.
    world.crash(FULFILMENT)
    world.lose_memory(0)
    assert world.losses.list_pending()
    world.settle_down()
    assert find_faults(world) == []


def test_an_order_that_redis_loses_before_it_was_relayed_is_no_fault(world: World) -> None:
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.lose_memory(None)
    assert len(world.losses.lost) == 1
    world.settle_down()
    assert (statuses(world), find_faults(world)) == ([], [])


def test_a_message_that_arrives_after_the_rebuild_is_settled_and_its_unit_is_gone(world: World) -> None:
    buy(world, 1)
    step(world, RELAY, "bus publish", Fate.LATE)
    world.lose_memory(None)
    late, world.bus.late = world.bus.late, []
    world.settle_down()
    assert world.memory.call("HGET", "fg:{0}:sale:1", "remaining") == b"2"
    world.bus.late = late
    world.arrive()
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])
    assert world.memory.call("HGET", "fg:{0}:sale:1", "remaining") == b"1"


def test_a_key_buys_once_though_a_relay_publishes_what_was_lost_after_the_rebuild(world: World) -> None:
    assert buy(world, 1, key="a") == [Outcome.ACCEPTED]
    found = world.aim("bus publish", RELAY)
    assert found
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "Redis reopen")
    assert buy(world, 1, key="a") == [Outcome.ACCEPTED]
    world.run(*found, 1)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "REJECTED"], [])
    assert world.memory.call("HGET", "fg:{0}:sale:1", "remaining") == b"1"


def test_a_key_buys_once_though_redis_forgot_what_it_got_before_its_answer_was_heard(world: World) -> None:
    world.take_copy()
    world.buy(DOOR, 1, [(1, "a")])
    step(world, DOOR, "Redis reserve", Fate.LOST)
    step(world, RELAY, "bus publish")
    world.lose_memory(0)
    for ms in (1, 1_100):
        world.pass_time(ms)
        for door in (DOOR, OTHER_DOOR):
            step(world, door, "Redis vouch")
    assert buy(world, 1, key="a") == [Outcome.ACCEPTED]
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "REJECTED"], [])
    assert world.memory.call("HGET", "fg:{0}:sale:1", "remaining") == b"1"


def test_a_keeper_that_lost_its_lock_writes_nothing_over_the_next_rebuild(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "PostgreSQL next_generation")
    assert world.holds_lock
    world.lose_lock()
    world.settle_down()
    assert buy(world, 1, 2, 2)[:2] == [Outcome.ACCEPTED] * 2
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "CONFIRMED"], [])


def test_a_gate_without_memory_stays_closed_while_the_queue_holds_purchases(world: World) -> None:
    buy(world, 1, 2)
    step(world, RELAY, "bus publish")
    world.lose_memory(None)
    for process in (OTHER_FULFILMENT, FULFILMENT):
        approach(world, process, "PostgreSQL read_generation")
    keeper = cast(FulfilmentProcess, world.processes[FULFILMENT])
    for _ in range(60):
        for waiting in [each for each in keeper.waiting if each.task is keeper.keeper]:
            world.run(keeper, waiting, 1)
    assert not is_open(world)
    world.settle_down()
    assert buy(world, 1) == [Outcome.SOLD_OUT]
    assert find_faults(world) == []


def test_a_gate_without_memory_stays_closed_while_a_consumer_holds_purchases(world: World) -> None:
    buy(world, 1, 2)
    step(world, RELAY, "bus publish")
    step(world, OTHER_FULFILMENT, "bus deliver")
    world.lose_memory(None)
    let_alone(world, FULFILMENT, ms=100)
    assert not is_open(world)
    world.settle_down()
    assert buy(world, 1) == [Outcome.SOLD_OUT]
    assert find_faults(world) == []


def test_a_gate_that_is_closed_stays_so_while_its_outbox_holds_purchases(world: World) -> None:
    buy(world, 1)
    world.take_copy()
    buy(world, 2)
    world.lose_memory(0)
    assert buy(world, 1) == [Outcome.GATE_UNAVAILABLE]
    let_alone(world, FULFILMENT, ms=100)
    assert not is_open(world)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def test_one_keeper_rebuilds_at_a_time(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "Redis begin")
    let_alone(world, OTHER_FULFILMENT, ms=100)
    assert sum("Redis begin" in line for line in world.trace) == 1
    world.settle_down()
    assert find_faults(world) == []


def test_a_rebuild_that_redis_forgot_does_not_open_the_gate(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "Redis restore")
    approach(world, FULFILMENT, "Redis reopen")
    world.lose_memory(None)
    step(world, FULFILMENT, "Redis reopen")
    assert not is_open(world)
    world.settle_down()
    assert (read_sale(world)[1], find_faults(world)) == (b"2", [])


def test_a_rebuild_that_was_overtaken_writes_nothing_over_what_was_sold_since(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "Redis begin")
    page = approach(world, FULFILMENT, "Redis restore")
    world.lose_lock()
    let_alone(world, OTHER_FULFILMENT, ms=100)
    assert is_open(world)
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.run(world.processes[FULFILMENT], page, 1)
    assert read_sale(world)[1] == b"1"
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def test_a_rebuilt_gate_knows_what_each_buyer_has_bought(world: World) -> None:
    world.open_sale(DOOR, SaleTerms(product_id=2, stock=4, limit=1), "second", at_once=True)
    assert buy(world, 1, product_id=2) == [Outcome.ACCEPTED]
    world.settle_down()
    world.lose_memory(None)
    world.settle_down()
    assert buy(world, 1, 2, product_id=2) == [Outcome.LIMIT_REACHED, Outcome.ACCEPTED]
    world.settle_down()
    assert find_faults(world) == []


def test_a_front_door_that_is_late_puts_no_older_sale_in_place_of_a_newer_one(world: World) -> None:
    world.open_sale(OTHER_DOOR, SALE, "second")
    late = approach(world, OTHER_DOOR, "Redis open_sale")
    world.open_sale(DOOR, SALE, "third", at_once=True)
    world.run(world.processes[OTHER_DOOR], late, 1)
    assert read_sale(world)[0] == b"%d" % (world.openings["third"].sale_id or 0)
    world.settle_down()
    assert find_faults(world) == []


def test_an_operator_whose_sale_may_be_written_is_not_told_that_it_is_not(world: World) -> None:
    world.open_sale(DOOR, SALE, "second")
    step(world, DOOR, "PostgreSQL commit", Fate.LOST)
    assert world.openings["second"].unsure == 1
    world.settle_down()
    assert find_faults(world) == []


def test_a_copy_of_an_earlier_generation_closes_the_gate(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.settle_down()
    world.lose_memory(None)
    world.settle_down()
    assert buy(world, 1, door=OTHER_DOOR) == [Outcome.ACCEPTED]
    world.settle_down()
    world.lose_memory(0)
    let_alone(world, DOOR, rounds=8)
    assert not is_open(world)
    world.settle_down()
    assert buy(world, 1) == [Outcome.SOLD_OUT]


def test_a_front_door_that_knows_more_than_a_copy_closes_the_gate_by_itself(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.lose_memory(0)
    let_alone(world, DOOR, rounds=8)
    assert not is_open(world)


def test_a_rebuild_leaves_no_evidence_of_units_that_it_counts(world: World) -> None:
    buy(world, 1)
    step(world, RELAY, "Redis XACK")
    world.take_copy()
    step(world, FULFILMENT, "bus acknowledge")
    approach(world, FULFILMENT, "rest 0.5")
    world.lose_memory(0)
    let_alone(world, FULFILMENT, rounds=8)
    assert not is_open(world)
    assert world.losses.list_pending()
    rebuild_up_to(world, FULFILMENT, "Redis reopen")
    assert not world.losses.list_pending()


def test_a_relay_publishes_after_an_outage_of_the_bus_what_it_held(world: World) -> None:
    buy(world, 1)
    step(world, RELAY, "bus publish", Fate.CUT)
    let_alone(world, RELAY)
    assert world.bus.list_bodies()
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def test_the_same_seed_gives_the_same_examples(stores: Stores) -> None:
    once, again = (play(stores, 3, 3) for _ in range(2))
    assert once.faults == again.faults == []
    assert once.steps == again.steps
    assert once.actions == again.actions
    assert once.steps != play(stores, 4, 3).steps


def test_an_assertion_that_fails_is_a_fault(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(world: World) -> list[str]:
        raise AssertionError("the referee fails")

    monkeypatch.setattr("simulation.protocol.machine.find_faults", fail)
    assert "the referee fails" in play(stores, 3, 1, shrink=False).faults[0]


def test_a_page_tells_what_hunts_found(tmp_path: Path) -> None:
    found = Found(seed=7, examples=25, steps=Counter(a=1_000, b=200), faults=["a unit <too> many"])
    bug = Attempt(name="unit-vanishes", text="A unit vanishes.", model=None, found=found, expected=True)
    for result, words in (
        (Hunts(command="c", hunts=[found]), "0 of 1"),
        (Hunts(command="c", bugs=[bug]), "1 of 1"),
    ):
        write_hunts(result, tmp_path)
        page = (tmp_path / "interleave.html").read_text()
        assert words in page
        assert "a unit &lt;too&gt; many" in page
        assert "1,200" in page


def test_examples_of_every_kind_hold(stores: Stores) -> None:
    actions = set[str]()
    for number in range(1, 5):
        found = play(stores, number, EXAMPLES)
        assert "\n".join([*found.story, *found.program, *found.faults]) == ""
        assert found.examples >= EXAMPLES
        actions |= found.actions.keys()
    assert actions >= {
        "buy",
        "open",
        "crash",
        "copy",
        "go back",
        "wipe",
        "restart",
        "lose channel",
        "6000 ms",
    }
    assert actions >= {"go on: cut", "go on: answer lost", "go on: late"}


@pytest.mark.parametrize("name", load_bugs())
def test_a_bug_fits_the_engine(name: str, tmp_path: Path) -> None:
    mutation = load_edits(name)
    copy_engine(tmp_path)
    mutate(mutation, tmp_path)
    for edit in mutation.edits:
        if edit.file.endswith(".py"):
            compile((tmp_path / "engine" / edit.file).read_text(), edit.file, "exec")
