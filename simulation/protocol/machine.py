"""The state machine: Hypothesis decides what happens next, and shrinks what went wrong.

Each rule lets one thing happen. What a process does next is the engine's own affair: a rule only says which
process goes on, for how many steps, and how the first of them ends.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from engine.model.sale import SaleTerms
from simulation.protocol.example.processes import DECLINED, Stores
from simulation.protocol.example.running import FEWEST, KINDS, Kinds
from simulation.protocol.example.world import World
from simulation.protocol.records import Tally, judge_records, make_record
from simulation.protocol.referee import find_faults
from simulation.protocol.steps import Fate

_numbers = st.integers(0, len(KINDS) - 1)
_doors = st.integers(0, 1)
_choice = st.integers(0, 31)
_moves = st.lists(st.tuples(_choice, st.integers(1, 8)), max_size=6)
"""Which tasks go on, and for how many steps at most."""
_products = st.sampled_from([1, 1, 2])
_buyers = st.tuples(st.sampled_from([1, 2, DECLINED]), st.sampled_from([None, None, "a", "b"]))
AIMS: Final = (
    "Redis reserve", "Redis open_sale", "PostgreSQL note_offered", "Redis XACK", "bus publish",
    "bus acknowledge", "PostgreSQL settle",
    "Redis clear", "Redis close", "PostgreSQL try_lock", "PostgreSQL next_generation", "Redis begin",
    "bus count", "PostgreSQL find_current_sales", "Redis restore", "Redis reopen", "Redis vouch",
)  # fmt: skip
"""How steps begin before which much may go wrong."""
OPENINGS: Final = {
    "Redis open_sale", "PostgreSQL open_sale", "PostgreSQL begin", "PostgreSQL commit",
    "PostgreSQL note_offered",
}  # fmt: skip
"""Steps of a front door that opens a sale."""
REBUILDS: Final = {
    "PostgreSQL try_lock", "PostgreSQL next_generation", "Redis begin", "bus count",
    "PostgreSQL find_current_sales", "Redis restore", "Redis restore_buyers", "Redis remember",
    "Redis reopen",
}  # fmt: skip
"""Steps of a keeper that rebuilds the gate."""
_WRONG: Final = (Fate.LOST, Fate.CUT, Fate.LATE)
_ends = st.sampled_from(
    [*map(str, _WRONG), "stall", "stall, go back", "stall, wipe", "stall, lose lock", "stall, copy", "crash",
     "copy", "go on, copy", "copy, go on, crash, go back", "crash, crash door, go back", "go back", "wipe"]
)  # fmt: skip
_terms = st.builds(
    # All sales of a product have the same quantity, as the judge takes it.
    lambda product_id, stock, limit: SaleTerms(
        product_id=product_id, stock=stock, limit=limit, quantity=product_id
    ),
    _products,
    st.sampled_from([1, 1, 2, 4]),
    st.sampled_from([None, None, 1, 2]),
)


REST_ROUNDS: Final = 16  # a rebuild takes fewer
LOSSES: Final = 3
"""Most servers that hold less than the one before."""
CRASHES: Final = 3
"""Most processes that die by themselves in an example."""
Moves = list[tuple[int, int]]


class Interleaving(RuleBasedStateMachine):
    """One example."""

    stores: ClassVar[Stores]
    tally: ClassVar[Tally]
    aims: ClassVar[Sequence[str]] = AIMS
    is_judged_alone: ClassVar[bool] = False
    world: World

    def __init__(self) -> None:
        super().__init__()
        self.actions: Counter[str] = Counter()
        self.is_whole = True

    def _act(self, name: str, act: Callable[..., Any], *arguments: Any) -> None:
        if self.tally.stop.is_set():
            raise KeyboardInterrupt
        self.actions[name] += 1
        self.is_whole = False
        act(*arguments)
        self.is_whole = True

    @initialize(
        terms=_terms,
        kinds=st.sampled_from([KINDS, KINDS, FEWEST]),
        first=_numbers,
        end=_ends,
        rests=st.booleans(),
    )
    def begin(self, terms: SaleTerms, kinds: Kinds, first: int, end: str, rests: bool) -> None:
        """Begin with a sale."""
        self.world = World(self.stores, kinds)
        self._act("open", self.world.open_sale, 0, terms, "first", True)
        if self.aims is not AIMS:
            self._act("copy", self.world.take_copy)
            self._aim(self.aims[0], first, end, rests)

    def _go_on(self, moves: Moves) -> None:
        for choice, most in moves:
            self._act("go on", self.world.go_on, choice, most)

    @rule(moves=_moves, number=_doors, product_id=_products, buyers=st.lists(_buyers, min_size=1, max_size=3))
    def buy(self, moves: Moves, number: int, product_id: int, buyers: list[tuple[int, str | None]]) -> None:
        """Users ask for a product at the same time."""
        self._go_on(moves)
        self._act("buy", self.world.buy, number, product_id, buyers)

    @rule(moves=_moves, number=_doors, user_id=st.integers(1, 4))
    def buy_one(self, moves: Moves, number: int, user_id: int) -> None:
        """A user asks for the product that was on sale first."""
        self._go_on(moves)
        self._act("buy", self.world.buy, number, 1, [(user_id, None)])

    @rule(moves=_moves, number=_doors, terms=_terms, key=st.sampled_from(["first", "second", "third"]))
    def open_sale(self, moves: Moves, number: int, terms: SaleTerms, key: str) -> None:
        """An operator opens a sale, perhaps again."""
        self._go_on(moves)
        self._act("open", self.world.open_sale, number, terms, key)

    @rule(moves=_moves, choice=_choice, fate=st.sampled_from(_WRONG))
    def go_wrong(self, moves: Moves, choice: int, fate: Fate) -> None:
        """A process goes on, and its connection breaks."""
        self._go_on(moves)
        self._act(f"go on: {fate}", self.world.go_on, choice, 1, fate)

    @rule(moves=_moves, number=_doors, choice=_choice)
    def buy_again(self, moves: Moves, number: int, choice: int) -> None:
        """A user asks again under the same key."""
        self._go_on(moves)
        self._act("buy again", self.world.buy_again, number, choice)

    @rule(which=st.integers(0, len(AIMS) - 1), first=_numbers, end=_ends, rests=st.booleans())
    def aim(self, which: int, first: int, end: str, rests: bool) -> None:
        """Something goes wrong right before a step at which it matters, and perhaps all others go on."""
        self._aim(self.aims[which % len(self.aims)], first, end, rests)

    def _aim(self, aim: str, first: int, end: str, rests: bool) -> None:
        what, _, chosen = aim.partition(": ")
        end = chosen or end
        self._act(f"aim: {end}", self._end_aim, what, first, end)
        if rests:
            self._act("rest", self.world.come_to_rest, REST_ROUNDS)

    def _end_aim(self, what: str, first: int, end: str) -> None:
        world = self.world
        if what in OPENINGS:
            key = ("second", "third", "fourth")[first % 3]
            world.open_sale(first % 2, SaleTerms(product_id=1, stock=2), key)
        elif what in REBUILDS:
            self._lose(None)
        elif self.aims is not AIMS:
            # Somebody buys whose purchase comes to this step.
            world.buy(first % 2, 1, [(1 + first % 3, "a" if first % 2 else None)])
        if (found := world.aim(what, first)) is None:
            return
        self.actions["aim: reached"] += 1
        process, step = found
        for part in end.split(", "):
            match part:
                case "stall":
                    world.stall(process, step)
                case "go on":
                    world.run(process, step, 8)
                case "copy":
                    world.take_copy()
                case "crash":
                    world.crash(world.processes.index(process))
                case "crash door":
                    world.crash(first % 2)
                case "lose lock":
                    world.lose_lock()
                case "go back":
                    # The newest copy is that of a step that matters, if there is one.
                    self._lose(-1)
                case "wipe":
                    self._lose(None)
                case fate:
                    world.run(process, step, 1, Fate(fate))

    def _lose(self, which: int | None) -> None:
        if self.world.losses.count < LOSSES:
            self.world.lose_memory(which)

    @precondition(lambda self: self.actions["crash"] < CRASHES)
    @rule(moves=_moves, number=_numbers)
    def crash(self, moves: Moves, number: int) -> None:
        """A process dies, and another one starts."""
        self._go_on(moves)
        self._act("crash", self.world.crash, number)

    @precondition(lambda self: len(self.world.losses.copies) < 2)
    @rule(moves=_moves)
    def copy(self, moves: Moves) -> None:
        """Redis' memory is copied."""
        self._go_on(moves)
        self._act("copy", self.world.take_copy)

    @precondition(lambda self: self.world.losses.count < LOSSES)
    @rule(moves=_moves, which=st.sampled_from([0, -1, None]), rests=st.booleans())
    def lose_memory(self, moves: Moves, which: int | None, rests: bool) -> None:
        """A server takes over that has an older copy, or nothing."""
        self._go_on(moves)
        self._act("wipe" if which is None else "go back", self.world.lose_memory, which)
        if rests:
            self._act("rest", self.world.come_to_rest, REST_ROUNDS)

    @rule(moves=_moves, which=st.integers(0, 9))
    def disturb(self, moves: Moves, which: int) -> None:
        """Redis restarts, or the broker or PostgreSQL loses a connection, or what was sent arrives late."""
        self._go_on(moves)
        world = self.world
        if world.holds_lock and which < 8:
            self._act("lose lock", world.lose_lock)
        elif world.bus.late and which < 8:
            self._act("arrive", world.arrive)
        elif world.bus.channels and which < 8:
            self._act("lose channel", world.lose_channel, which)
        else:
            self._act("restart", world.restart_redis)

    @rule(moves=_moves, number=_doors, whole=st.booleans())
    def stand_still(self, moves: Moves, number: int, whole: bool) -> None:
        """A front door stands still as a whole, or goes on; or the task does that stands still longest."""
        self._go_on(moves)
        if whole:
            self._act("fall asleep", self.world.fall_asleep, number)
        else:
            self._act("end stall", self.world.end_stall)

    @rule(moves=_moves, ms=st.sampled_from([1, 600, 6_000, None]))
    def pass_time(self, moves: Moves, ms: int | None) -> None:
        """Time passes once everybody has done what takes less; or so much that all comes to rest."""
        self._go_on(moves)
        if ms is None:
            self._act("rest", self.world.come_to_rest, REST_ROUNDS)
            return
        if not self.world.may_pass(ms):
            self._act("ask", self.world.let_ask)
        if self.world.may_pass(ms):
            self._act(f"{ms} ms", self.world.pass_time, ms)

    def _judge(self) -> list[str]:
        """Return what is wrong in an example that has drained."""
        if faults := find_faults(self.world):
            return faults
        record = make_record(self.world)
        if faults := self.world.find_silent_doors():
            return faults
        if self.is_judged_alone:
            return [fault for _, faults in judge_records([record]) for fault in faults]
        self.tally.records.append(record)
        return []

    def teardown(self) -> None:
        """Let everything drain, and judge the example, unless a rule has failed."""
        if not hasattr(self, "world"):
            return
        world, tally, is_right = self.world, self.tally, False
        tally.examples += 1
        try:
            if self.is_whole:
                world.settle_down()
                faults = self._judge()
                tally.drain_steps += world.drain_steps
                tally.steps += world.steps
                tally.actions += self.actions
                if faults:
                    tally.faults = faults
                    raise AssertionError("\n".join(faults))
                is_right = True
        finally:
            if not is_right:
                tally.note_wrong(world.trace)
            world.end()
