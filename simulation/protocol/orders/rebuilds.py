"""Orders in which the gate is rebuilt while something else goes on."""

from typing import cast

from engine.model.purchase import Outcome
from engine.model.sale import SaleTerms
from simulation.protocol.example.processes import FulfilmentProcess
from simulation.protocol.example.world import World
from simulation.protocol.orders.guide import (
    DOOR,
    FULFILMENT,
    OTHER_FULFILMENT,
    RELAY,
    approach,
    buy,
    is_open,
    let_alone,
    read_sale,
    rebuild_up_to,
    statuses,
    step,
)
from simulation.protocol.referee import find_faults


def a_keeper_that_lost_its_lock_writes_nothing_over_the_next_rebuild(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "PostgreSQL next_generation")
    assert world.holds_lock
    world.lose_lock()
    world.settle_down()
    assert buy(world, 1, 2, 2)[:2] == [Outcome.ACCEPTED] * 2
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED", "CONFIRMED"], [])


def a_gate_without_memory_stays_closed_while_the_queue_holds_purchases(world: World) -> None:
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


def a_gate_without_memory_stays_closed_while_a_consumer_holds_purchases(world: World) -> None:
    buy(world, 1, 2)
    step(world, RELAY, "bus publish")
    step(world, OTHER_FULFILMENT, "bus deliver")
    world.lose_memory(None)
    let_alone(world, FULFILMENT, ms=100)
    assert not is_open(world)
    world.settle_down()
    assert buy(world, 1) == [Outcome.SOLD_OUT]
    assert find_faults(world) == []


def a_gate_that_is_closed_stays_so_while_its_outbox_holds_purchases(world: World) -> None:
    buy(world, 1)
    world.take_copy()
    buy(world, 2)
    world.lose_memory(0)
    assert buy(world, 1) == [Outcome.GATE_UNAVAILABLE]
    let_alone(world, FULFILMENT, ms=100)
    assert not is_open(world)
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def one_keeper_rebuilds_at_a_time(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "Redis begin")
    let_alone(world, OTHER_FULFILMENT, ms=100)
    assert sum("Redis begin" in line for line in world.trace) == 1
    world.settle_down()
    assert find_faults(world) == []


def a_rebuild_that_redis_forgot_does_not_open_the_gate(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "Redis restore")
    approach(world, FULFILMENT, "Redis reopen")
    world.lose_memory(None)
    step(world, FULFILMENT, "Redis reopen")
    assert not is_open(world)
    world.settle_down()
    assert (read_sale(world)[1], find_faults(world)) == (b"2", [])


def a_rebuild_that_was_overtaken_writes_nothing_over_what_was_sold_since(world: World) -> None:
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


def a_rebuild_that_was_overtaken_forgets_no_sale_that_was_opened_since(world: World) -> None:
    world.lose_memory(None)
    rebuild_up_to(world, FULFILMENT, "PostgreSQL find_current_sales")
    look = approach(world, FULFILMENT, "Redis SCAN")
    world.lose_lock()
    let_alone(world, OTHER_FULFILMENT, ms=100)
    assert is_open(world)
    world.open_sale(DOOR, SaleTerms(product_id=2, stock=4, quantity=2), "second", at_once=True)
    assert buy(world, 1, product_id=2) == [Outcome.ACCEPTED]
    world.run(world.processes[FULFILMENT], look, 2)
    assert world.memory.call("HGET", "fg:{0}:sale:2", "remaining") == b"2"
    world.settle_down()
    assert (statuses(world), find_faults(world)) == (["CONFIRMED"], [])


def a_rebuilt_gate_knows_what_each_buyer_has_bought(world: World) -> None:
    world.open_sale(DOOR, SaleTerms(product_id=2, stock=4, limit=1), "second", at_once=True)
    assert buy(world, 1, product_id=2) == [Outcome.ACCEPTED]
    world.settle_down()
    world.lose_memory(None)
    world.settle_down()
    assert buy(world, 1, 2, product_id=2) == [Outcome.LIMIT_REACHED, Outcome.ACCEPTED]
    world.settle_down()
    assert find_faults(world) == []


def a_rebuilt_gate_denies_orders_that_it_does_not_know_once_none_can_come(world: World) -> None:
    world.lose_memory(None)
    world.settle_down()
    assert world.memory.call("HEXISTS", "fg:{0}:mark", "doubt")
    world.pass_time(61_000)
    step(world, FULFILMENT, "Redis HDEL")
    assert not world.memory.call("HEXISTS", "fg:{0}:mark", "doubt")
    assert find_faults(world) == []


def a_rebuild_leaves_no_evidence_of_units_that_it_counts(world: World) -> None:
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
