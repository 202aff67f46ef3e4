"""What a loss excuses, and what it does not: examples in which the gate is made to be wrong."""

from collections.abc import Iterator

import pandas as pd
import pytest

from engine.model.purchase import Outcome
from engine.model.sale import SaleTerms
from simulation.judge.asked import Asked
from simulation.judge.verdict import Check, judge
from simulation.model.formats import name_key
from simulation.model.state import FinalState
from simulation.protocol.example.processes import DECLINED, FrontDoor, Stores
from simulation.protocol.example.requests import Purchase
from simulation.protocol.example.world import World
from simulation.protocol.hunt import play
from simulation.protocol.orders.guide import (
    DOOR,
    FULFILMENT,
    OTHER_DOOR,
    RELAY,
    SALE,
    buy,
    is_open,
    let_alone,
    step,
)
from simulation.protocol.records import Record, judge_records, make_record
from simulation.protocol.referee import find_faults
from simulation.protocol.stores.bus import StepPublisher

# On a busy machine each step waits for its turn at the processor.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ACCEPTED = Outcome.ACCEPTED


@pytest.fixture
def world(stores: Stores) -> Iterator[World]:
    world = World(stores)
    yield world
    world.end()


def open_sale(world: World, terms: SaleTerms = SALE) -> None:
    world.open_sale(DOOR, terms, "first", at_once=True)


def lose_what_is_relayed(world: World, key: str | None = None, user: int = 1) -> None:
    """Have Redis go back to a copy that lacks an order which is on its way; its front door knows."""
    world.take_copy()
    assert buy(world, user, key=key) == [ACCEPTED]
    step(world, RELAY, "bus publish")
    world.lose_memory(0)


def surprise(world: World, key: str | None = None, user: int = 1) -> None:
    """Have Redis lose what nobody knows who lives, and the new server sell."""
    lose_what_is_relayed(world, key, user)
    world.crash(DOOR)
    assert world.losses.surprises
    for _ in range(2):
        for door in (DOOR, OTHER_DOOR):
            step(world, door, "Redis vouch")
        world.pass_time(1_100)


def offer_too_much(world: World) -> None:
    world.memory.call("HSET", name_key(0, "sale:1"), "remaining", 5)


def judge_at_rest(world: World) -> set[str]:
    """Return the rules that are broken once everything has drained."""
    world.settle_down()
    return {fault.partition(":")[0] for fault in find_faults(world)}


def test_a_surprise_costs_one_order_its_unit(world: World) -> None:
    open_sale(world)
    surprise(world)
    assert buy(world, 2, 2, door=OTHER_DOOR) == [ACCEPTED] * 2
    assert judge_at_rest(world) == set()


def test_a_surprise_costs_no_two_orders_their_units(world: World) -> None:
    open_sale(world)
    surprise(world)
    offer_too_much(world)
    assert buy(world, 2, 2, 2, door=OTHER_DOOR) == [ACCEPTED] * 3
    assert judge_at_rest(world) == {"guard never needed"}


def test_a_surprise_that_is_declined_costs_nobody_a_unit(world: World) -> None:
    open_sale(world)
    surprise(world, user=DECLINED)
    world.memory.call("HSET", name_key(0, "sale:1"), "remaining", 3)
    assert buy(world, 2, 2, 2, door=OTHER_DOOR) == [ACCEPTED] * 3
    assert judge_at_rest(world) == {"guard never needed"}


def test_what_a_surprise_excuses_ends_with_the_rebuild_that_knows_of_it(world: World) -> None:
    open_sale(world)
    surprise(world)
    assert judge_at_rest(world) == set()
    assert is_open(world)
    offer_too_much(world)
    assert buy(world, 2, 2, door=OTHER_DOOR) == [ACCEPTED] * 2
    assert judge_at_rest(world) == {"guard never needed"}


def test_the_death_of_the_one_who_noticed_excuses_nothing_after_the_rebuild(world: World) -> None:
    open_sale(world)
    lose_what_is_relayed(world)
    assert judge_at_rest(world) == set()
    world.crash(DOOR)
    offer_too_much(world)
    assert buy(world, 2, 2, door=OTHER_DOOR) == [ACCEPTED] * 2
    assert judge_at_rest(world) == {"guard never needed"}


def test_the_death_of_the_one_who_noticed_excuses_nothing_once_the_gate_is_closed(world: World) -> None:
    open_sale(world)
    lose_what_is_relayed(world)
    for _ in range(9):
        if is_open(world):
            step(world, DOOR, "Redis vouch")
    world.crash(DOOR)
    assert not world.losses.surprises


def test_an_order_that_was_settled_before_a_surprise_is_not_excused_by_it(world: World) -> None:
    open_sale(world)
    offer_too_much(world)
    assert buy(world, 2, 2, 2, door=OTHER_DOOR) == [ACCEPTED] * 3
    step(world, RELAY, "Redis XACK")
    step(world, FULFILMENT, "bus acknowledge")
    surprise(world, user=DECLINED)
    assert "guard never needed" in judge_at_rest(world)


@pytest.mark.parametrize("told", [Outcome.SOLD_OUT, Outcome.LIMIT_REACHED])
def test_a_loss_excuses_refusals_until_gate_and_ledger_agree(world: World, told: Outcome) -> None:
    open_sale(world)
    assert buy(world, 1) == [ACCEPTED]
    world.purchases[-1].outcome, world.purchases[-1].order_id = told, None
    world.lose_memory(None)
    assert judge_at_rest(world) == set()
    assert list(judge_records([make_record(world)])) == []
    world.pass_time(600)
    assert buy(world, 2) == [ACCEPTED]
    world.settle_down()
    world.purchases.append(
        Purchase(4, 1, None, world.purchases[-1].sent + 2, None, world.purchases[-1].sent + 3, told)
    )
    [(_, faults)] = judge_records([make_record(world)])
    about = "refusals are true" if told is Outcome.LIMIT_REACHED else "sold out means sold out"
    assert about in {fault.split(": ")[1] for fault in faults}


def test_a_loss_that_changes_nothing_that_clients_are_told_excuses_nothing(world: World) -> None:
    open_sale(world)
    world.take_copy()
    world.lose_memory(0)
    assert not world.losses.is_doubtful
    world.let_ask()
    world.pass_time(1_100)
    assert buy(world, 1) == [ACCEPTED]
    world.lose_memory(0)
    assert world.losses.is_doubtful


def test_a_front_door_that_does_not_sell_what_is_left_is_a_fault(world: World) -> None:
    open_sale(world)
    assert judge_at_rest(world) == set()
    assert world.find_silent_doors() == []
    world.settle_down()
    # Sold out now, which each of them says.
    assert world.find_silent_doors() == []
    other: FrontDoor = world.processes[OTHER_DOOR]  # type: ignore[assignment]
    other.gate.submit = lambda purchase: purchase[3](Outcome.GATE_UNAVAILABLE, None)
    [fault] = world.find_silent_doors()
    assert fault == "an open gate sells: frontdoor 2 says GATE_UNAVAILABLE, not SOLD_OUT"


def test_what_a_relay_publishes_after_it_was_lost_is_lost_no_more(world: World) -> None:
    open_sale(world)
    assert buy(world, 1) == [ACCEPTED]
    found = world.aim("bus publish", RELAY)
    assert found
    world.lose_memory(None)
    assert len(world.losses.lost) == 1
    world.run(*found, 1)
    # What is in the bus, the engine has to settle.
    world.bus.queue.clear()
    assert judge_at_rest(world) == {"accepted is settled"}


def test_a_loss_that_the_ledger_knows_of_is_no_surprise(world: World) -> None:
    open_sale(world)
    world.take_copy()
    assert buy(world, 1) == [ACCEPTED]
    world.settle_down()
    for number in range(len(world.processes)):
        world.crash(number)
    world.lose_memory(0)
    assert not world.losses.surprises


@pytest.mark.parametrize("key", ["a", None])
def test_a_key_and_a_limit_are_excused_until_the_rebuild_that_knows_of_the_order(
    world: World, key: str | None
) -> None:
    open_sale(world, SaleTerms(product_id=1, stock=9, limit=None if key else 1))
    surprise(world, key)
    assert buy(world, 1, door=OTHER_DOOR, key=key) == [ACCEPTED]
    assert judge_at_rest(world) == set()
    world.lose_memory(None)
    assert judge_at_rest(world) == set()
    for what in ("answer:1:1:a", "buyers:*"):
        for name in world.memory.call("KEYS", name_key(0, what)):
            world.memory.call("DEL", name)
    assert buy(world, 1, door=OTHER_DOOR, key=key) == [ACCEPTED]
    broken = {"guard never needed", "a key buys once"} if key else {"user limit is kept"}
    assert judge_at_rest(world) == broken


def test_an_error_of_the_engine_that_no_store_causes_is_a_fault(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_sale(world)
    monkeypatch.delattr(StepPublisher, "count_dead_letters")
    world.lose_memory(None)
    world.settle_down()
    assert find_faults(world) == []
    world.pass_time(61_000)
    let_alone(world, FULFILMENT)
    # The keeper tries it again and again, and its log alone tells of it.
    assert "count_dead_letters" in find_faults(world)[0]


def test_a_task_that_ends_by_an_error_is_a_fault(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise TypeError("the keeper ends")

    monkeypatch.setattr("simulation.protocol.example.processes.run_keeper", fail)
    world = World(stores)
    # Nobody waits for it, and it is not forgotten.
    assert "the keeper ends" in find_faults(world)[0]
    world.end()


def test_the_whole_judge_judges_examples_together(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    records, judged = [], list[int]()

    def count(history: pd.DataFrame, state: FinalState, asked: Asked) -> list[Check]:
        judged.append(len(asked.sales))
        return judge(history, state, asked)

    monkeypatch.setattr("simulation.protocol.records.judge", count)
    for wrong in (False, True, False):
        world = World(stores)
        open_sale(world)
        assert buy(world, 1, 3, key="a") == [ACCEPTED] * 2
        world.settle_down()
        # Only the whole judge looks at whether a refusal is true.
        assert buy(world, 2, 2) == [ACCEPTED, Outcome.SOLD_OUT]
        if wrong:
            world.purchases[-1].outcome = Outcome.LIMIT_REACHED
        world.settle_down()
        assert find_faults(world) == []
        records.append(make_record(world))
        world.end()
    assert list(judge_records(records[::2])) == []
    assert judged == [2], "nobody takes the same key in two examples for one"
    [(record, faults)] = judge_records(records)
    assert record is records[1]
    assert [fault.split(": ")[1] for fault in faults] == ["refusals are true"]


def test_what_only_the_whole_judge_finds_is_a_fault_with_its_story(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(world: World) -> Record:
        record = make_record(world)
        for row in record.told:
            row[9:] = "NOT_STARTED", "fail", None
        return record

    monkeypatch.setattr("simulation.protocol.machine.make_record", refuse)
    for alone in (False, True):
        found = play(stores, 1, 10, shrink=False, alone=alone)
        assert any("the judge says: refusals are true" in fault for fault in found.faults)
        assert any("asks" in line for line in found.story)
