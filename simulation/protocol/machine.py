"""The state machine: Hypothesis decides what happens next, and shrinks what went wrong.

Each rule lets one thing happen. What a process does next is the engine's own affair: a rule only says which process goes
on, for how many steps, and how the first of them ends.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from engine.model.sale import SaleTerms
from simulation.protocol.database import Database
from simulation.protocol.memory import Memory
from simulation.protocol.processes import DECLINED
from simulation.protocol.referee import find_faults
from simulation.protocol.steps import Fate
from simulation.protocol.world import KINDS, World

_numbers = st.integers(0, len(KINDS) - 1)
_doors = st.integers(0, 1)
_which = st.integers(0, 3)
_products = st.integers(1, 2)
_buyers = st.tuples(st.sampled_from([1, 2, DECLINED]), st.sampled_from([None, None, "a", "b"]))
_terms = st.builds(
    SaleTerms,
    product_id=_products,
    stock=st.integers(1, 4),
    limit=st.sampled_from([None, 1, 2]),
    quantity=st.sampled_from([1, 1, 2]),
)


class Tally:
    """What all examples did together."""

    def __init__(self) -> None:
        self.examples = 0
        self.drain_steps = 0
        self.steps: Counter[str] = Counter()
        self.actions: Counter[str] = Counter()
        self.trace: list[str] = []
        """What happened in the last example that failed."""
        self.faults: list[str] = []


class Interleaving(RuleBasedStateMachine):
    """One example."""

    memory: ClassVar[Memory]
    database: ClassVar[Database]
    tally: ClassVar[Tally]

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.memory, self.database)
        self.actions: Counter[str] = Counter()
        self.is_whole = True

    def _act(self, name: str, act: Callable[..., Any], *arguments: Any) -> None:
        self.actions[name] += 1
        self.is_whole = False
        act(*arguments)
        self.is_whole = True

    @initialize(terms=_terms)
    def begin(self, terms: SaleTerms) -> None:
        """Begin with a sale."""
        self._act("open", self.world.open_sale, 0, terms, "first")
        self.world.settle_down()

    @rule(number=_numbers, which=_which, most=st.integers(1, 8))
    def go_on(self, number: int, which: int, most: int) -> None:
        """A process goes on."""
        self._act("go on", self.world.run, self.world.processes[number], which, most)

    @rule(number=_numbers, which=_which, most=st.integers(1, 8))
    def go_on_again(self, number: int, which: int, most: int) -> None:
        """A process goes on: most of what happens."""
        self._act("go on", self.world.run, self.world.processes[number], which, most)

    @rule(number=_numbers, which=_which, fate=st.sampled_from([Fate.LOST, Fate.CUT, Fate.LATE]))
    def go_wrong(self, number: int, which: int, fate: Fate) -> None:
        """A process goes on, and its connection breaks."""
        self._act(f"go on: {fate}", self.world.run, self.world.processes[number], which, 1, fate)

    @rule(number=_doors, product_id=_products, buyers=st.lists(_buyers, min_size=1, max_size=3))
    def buy(self, number: int, product_id: int, buyers: list[tuple[int, str | None]]) -> None:
        """Users ask for a product at the same time."""
        self._act("buy", self.world.buy, number, product_id, buyers)

    @rule(number=_doors, terms=_terms, key=st.sampled_from(["first", "second", "third"]))
    def open_sale(self, number: int, terms: SaleTerms, key: str) -> None:
        """An operator opens a sale, perhaps again."""
        self._act("open", self.world.open_sale, number, terms, key)

    @rule(number=_numbers)
    def crash(self, number: int) -> None:
        """A process dies, and another one starts."""
        self._act("crash", self.world.crash, number)

    @rule()
    def copy(self) -> None:
        """Redis' memory is copied."""
        self._act("copy", self.world.take_copy)

    @precondition(lambda self: self.world.copies)
    @rule(which=st.integers(0, 2))
    def go_back(self, which: int) -> None:
        """A server takes over that has an older copy."""
        self._act("go back", self.world.lose_memory, which)

    @rule()
    def wipe(self) -> None:
        """A server takes over that has nothing."""
        self._act("wipe", self.world.lose_memory, None)

    @rule()
    def restart(self) -> None:
        """A server takes over that has everything."""
        self._act("restart", self.world.restart_redis)

    @precondition(lambda self: self.world.bus.channels)
    @rule(which=_which)
    def lose_channel(self, which: int) -> None:
        """The broker takes a consumer for gone."""
        self._act("lose channel", self.world.lose_channel, which)

    @precondition(lambda self: self.world.bus.late)
    @rule()
    def arrive(self) -> None:
        """A message arrives late."""
        self._act("arrive", self.world.arrive)

    @precondition(lambda self: self.world.holds_lock)
    @rule()
    def lose_lock(self) -> None:
        """PostgreSQL loses the session of the keeper that rebuilds."""
        self._act("lose lock", self.world.lose_lock)

    @rule(ms=st.sampled_from([1, 600, 6_000]))
    def pass_time(self, ms: int) -> None:
        """Time passes, unless somebody had not the time to do what takes less."""
        if self.world.may_pass(ms):
            self._act(f"{ms} ms", self.world.pass_time, ms)

    def teardown(self) -> None:
        """Let everything drain, and judge the example, unless a rule has failed."""
        world, tally = self.world, self.tally
        try:
            if self.is_whole:
                world.drained = False
                world.settle_down()
                faults = find_faults(world)
                tally.examples += 1
                tally.drain_steps += world.drain_steps
                tally.steps += world.steps
                tally.actions += self.actions
                if faults:
                    tally.trace, tally.faults = world.trace, faults
                    raise AssertionError("\n".join(faults))
        finally:
            world.end()
