"""Orders in which Redis loses what it held, or goes back to a copy."""

from engine.model.purchase import Outcome
from simulation.protocol.example.processes import DECLINED
from simulation.protocol.example.world import World
from simulation.protocol.orders.guide import (
    DOOR,
    FULFILMENT,
    OTHER_DOOR,
    OTHER_FULFILMENT,
    RELAY,
    SALE,
    buy,
    is_open,
    let_alone,
    rebuild_up_to,
    statuses,
    step,
)
from simulation.protocol.referee import find_faults
from simulation.protocol.steps import Fate


def what_a_copy_lacks_and_a_front_door_knows_closes_the_gate(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    step(world, RELAY, "bus publish")
    world.lose_memory(0)
    assert not world.losses.surprises
    assert not world.may_pass(600)
    # The one that knows nothing may not sell before the other one has asked.
    assert buy(world, 2, door=OTHER_DOOR) == [Outcome.GATE_UNAVAILABLE]
    world.settle_down()
    assert buy(world, 2, 2) == [Outcome.ACCEPTED, Outcome.SOLD_OUT]
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "CONFIRMED"], [])


def a_copy_from_right_after_a_rebuild_is_known_to_be_another_servers(world: World) -> None:
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


def what_only_the_dead_knew_is_a_surprise_that_the_ledger_guards_against(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    step(world, RELAY, "bus publish")
    world.crash(DOOR)
    world.lose_memory(0)
    assert world.losses.surprises
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def a_gate_that_lacks_what_the_ledger_has_is_closed_as_soon_as_a_keeper_looks(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    step(world, RELAY, "bus publish")
    world.crash(DOOR)
    world.lose_memory(0)
    step(world, FULFILMENT, "PostgreSQL settle_plain")
    _let_look(world)
    assert not is_open(world)


def a_gate_that_lacks_the_latest_sale_is_closed_as_soon_as_a_keeper_looks(world: World) -> None:
    world.take_copy()
    world.open_sale(DOOR, SALE, "second", at_once=True)
    world.crash(DOOR)
    world.lose_memory(0)
    assert not world.losses.is_sale_forgotten
    _let_look(world)
    assert not is_open(world)


def _let_look(world: World) -> None:
    """Let a keeper look for the first time, which takes fewer steps than two audits."""
    keeper = world.processes[OTHER_FULFILMENT]
    for _ in range(10):
        for waiting in [each for each in keeper.waiting if each.what != "bus deliver"]:
            world.run(keeper, waiting, 1)


def an_order_that_comes_back_with_a_copy_after_it_was_settled_is_cleared_again(world: World) -> None:
    _bring_back(world, 1)


def a_declined_order_that_comes_back_with_a_copy_is_cleared_again(world: World) -> None:
    _bring_back(world, DECLINED)


def _bring_back(world: World, user: int) -> None:
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


def an_order_that_redis_loses_before_it_was_relayed_is_no_fault(world: World) -> None:
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.lose_memory(None)
    assert len(world.losses.lost) == 1
    world.settle_down()
    assert (statuses(world), find_faults(world)) == ([], [])


def a_message_that_arrives_after_the_rebuild_is_settled_and_its_unit_is_gone(world: World) -> None:
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


def a_key_buys_once_though_a_relay_publishes_what_was_lost_after_the_rebuild(world: World) -> None:
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


def a_key_buys_once_though_redis_forgot_what_it_got_before_its_answer_was_heard(world: World) -> None:
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


def a_key_has_the_order_that_bought_once_the_gate_is_rebuilt(world: World) -> None:
    assert buy(world, 1, key="a") == [Outcome.ACCEPTED]
    found = world.aim("bus publish", RELAY)
    assert found
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "Redis reopen")
    # The first order arrives before this one, which the gate has accepted under the key and remembers.
    assert buy(world, 1, key="a") == [Outcome.ACCEPTED]
    bought, rejected = [each.order_id for each in world.purchases]
    world.run(*found, 1)
    world.settle_down()
    settled = {row["order_id"]: row["status"] for row in world.database.read("read_orders")}
    assert settled == {bought: "CONFIRMED", rejected: "REJECTED"}
    world.take_copy()
    assert buy(world, 2) == [Outcome.ACCEPTED]
    # The copy lacks what the front door was answered.
    world.lose_memory(0)
    let_alone(world, DOOR, rounds=8)
    assert not is_open(world)
    world.settle_down()
    assert buy(world, 1, key="a") == [Outcome.ACCEPTED]
    assert world.purchases[-1].order_id == bought
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "REJECTED"], [])


def front_doors_that_know_more_than_a_copy_sell_again_in_the_end(world: World) -> None:
    world.take_copy()
    for door in (DOOR, OTHER_DOOR):
        assert buy(world, 1, door=door) == [Outcome.ACCEPTED]
    # Nobody but the front doors has heard of it.
    world.lose_memory(0)
    world.settle_down()
    assert (find_faults(world), world.find_silent_doors()) == ([], [])


def a_copy_of_an_earlier_generation_closes_the_gate(world: World) -> None:
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


def a_front_door_that_knows_a_later_generation_than_a_copy_closes_the_gate_by_itself(world: World) -> None:
    world.take_copy()
    world.lose_memory(None)
    world.settle_down()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.lose_memory(0)
    let_alone(world, DOOR, rounds=8)
    assert not is_open(world)


def a_front_door_that_knows_more_than_a_copy_closes_the_gate_by_itself(world: World) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    world.lose_memory(0)
    let_alone(world, DOOR, rounds=8)
    assert not is_open(world)


def what_a_front_door_knows_that_stands_still_for_longer_than_a_new_server_waits_is_found_later(
    world: World,
) -> None:
    world.take_copy()
    assert buy(world, 1) == [Outcome.ACCEPTED]
    step(world, RELAY, "bus publish")
    world.fall_asleep(DOOR)
    world.lose_memory(0)
    world.let_ask()
    assert not world.losses.surprises
    assert world.may_pass(6_000)
    world.pass_time(6_000)
    assert world.losses.surprises
    assert buy(world, 2, 2, door=OTHER_DOOR) == [Outcome.ACCEPTED] * 2
    world.fall_asleep(DOOR)
    let_alone(world, DOOR, rounds=8)
    assert not is_open(world)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "CONFIRMED", "REJECTED"], [])
