"""Orders in which nothing is lost but answers."""

from engine.model.purchase import Outcome
from simulation.protocol.example.processes import DECLINED
from simulation.protocol.example.world import World
from simulation.protocol.orders.guide import (
    DOOR,
    FULFILMENT,
    OTHER_DOOR,
    RELAY,
    SALE,
    approach,
    buy,
    let_alone,
    read_sale,
    statuses,
    step,
)
from simulation.protocol.referee import find_faults
from simulation.protocol.steps import Fate


def a_plain_sale_ends_as_the_ledger_says(world: World) -> None:
    assert buy(world, 1, DECLINED) == [Outcome.ACCEPTED] * 2
    assert buy(world, 2) == [Outcome.SOLD_OUT]
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "FAILED"], [])
    assert world.memory.call("HGET", "fg:{0}:sale:1", "remaining") == b"1"


def what_a_front_door_repeats_of_the_sale_before_ends_before_an_operator_is_told_of_the_next(
    world: World,
) -> None:
    assert buy(world, 1, 2, 2) == [Outcome.ACCEPTED] * 2 + [Outcome.SOLD_OUT]
    assert buy(world, 1) == [Outcome.SOLD_OUT]
    world.open_sale(OTHER_DOOR, SALE, "second", at_once=True)
    assert world.openings["second"].opened
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.settle_down()
    assert find_faults(world) == []


def an_operator_who_asks_twice_is_told_of_a_sale_after_what_front_doors_repeat_of_the_one_before(
    world: World,
) -> None:
    assert buy(world, 1, 2, 2) == [Outcome.ACCEPTED] * 2 + [Outcome.SOLD_OUT]
    world.open_sale(OTHER_DOOR, SALE, "second")
    step(world, OTHER_DOOR, "Redis open_sale")
    world.open_sale(OTHER_DOOR, SALE, "second", at_once=True)
    assert world.openings["second"].opened
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.settle_down()
    assert find_faults(world) == []


def an_operator_is_told_of_a_sale_that_a_keeper_opened_after_what_front_doors_repeat(world: World) -> None:
    assert buy(world, 1, 2) == [Outcome.ACCEPTED] * 2
    world.open_sale(OTHER_DOOR, SALE, "second")
    step(world, OTHER_DOOR, "PostgreSQL commit")
    world.crash(OTHER_DOOR)
    world.pass_time(6_000)
    approach(world, FULFILMENT, "Redis open_sale")
    assert buy(world, 2) == [Outcome.SOLD_OUT]
    step(world, FULFILMENT, "PostgreSQL note_offered")
    world.open_sale(OTHER_DOOR, SALE, "second", at_once=True)
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.settle_down()
    assert find_faults(world) == []


def a_confirm_that_is_lost_has_its_entry_published_again(world: World) -> None:
    buy(world, 1)
    step(world, RELAY, "bus publish", Fate.LOST)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def a_commit_whose_answer_is_lost_is_settled_once(world: World) -> None:
    buy(world, 1)
    step(world, RELAY, "bus publish")
    step(world, FULFILMENT, "PostgreSQL settle_plain", Fate.LOST)
    world.crash(FULFILMENT)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def a_release_whose_answer_is_lost_gives_one_unit_back(world: World) -> None:
    buy(world, DECLINED)
    step(world, RELAY, "bus publish")
    step(world, FULFILMENT, "Redis clear", Fate.LOST)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["FAILED"], [])
    assert world.memory.call("HMGET", "fg:{0}:sale:1", "remaining", "released") == [b"2", b"1"]


def a_front_door_that_is_late_puts_no_older_sale_in_place_of_a_newer_one(world: World) -> None:
    world.open_sale(OTHER_DOOR, SALE, "second")
    late = approach(world, OTHER_DOOR, "Redis open_sale")
    world.open_sale(DOOR, SALE, "third", at_once=True)
    world.run(world.processes[OTHER_DOOR], late, 1)
    assert read_sale(world)[0] == b"%d" % (world.openings["third"].sale_id or 0)
    world.settle_down()
    assert find_faults(world) == []


def an_operator_whose_sale_may_be_written_is_not_told_that_it_is_not(world: World) -> None:
    world.open_sale(DOOR, SALE, "second")
    step(world, DOOR, "PostgreSQL commit", Fate.LOST)
    assert world.openings["second"].unsure == 1
    world.settle_down()
    assert find_faults(world) == []


def a_relay_publishes_after_an_outage_of_the_bus_what_it_held(world: World) -> None:
    buy(world, 1)
    step(world, RELAY, "bus publish", Fate.CUT)
    let_alone(world, RELAY)
    assert world.bus.list_bodies()
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])
