"""How an order is led: which process goes on, and up to which of its steps."""

from typing import Final

from engine.model.purchase import Outcome
from engine.model.sale import SaleTerms
from simulation.protocol.example.world import World
from simulation.protocol.steps import Fate, Step

SALE: Final = SaleTerms(product_id=1, stock=2)
DOOR, OTHER_DOOR, RELAY, FULFILMENT, OTHER_FULFILMENT = 0, 1, 2, 4, 5
"""The processes by their numbers."""
_LOCK: Final = "PostgreSQL try_lock"


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
                if waiting in process.waiting and (process is keeper or waiting.what != _LOCK):
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
