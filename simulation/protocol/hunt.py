"""The hunt: example after example, until one of them is wrong or the time is over.

Examples come in blocks; a block has a seed, which is all that it takes to play it again.
"""

import asyncio
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Final

import msgspec
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from engine.ledger.ledger import Ledger
from engine.local.stack import Stack, start_stack
from simulation.campaign.suite import Suite
from simulation.protocol.example.processes import Stores
from simulation.protocol.machine import AIMS, Interleaving
from simulation.protocol.records import Tally, judge_records
from simulation.protocol.steps import FailureLog
from simulation.report.page import write_tables

BLOCK: Final = 25
"""Examples with one seed."""
RULES: Final = 40
"""Most rules of an example."""
FEW_RULES: Final = 20
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Found(msgspec.Struct, kw_only=True):
    """What examples did, and what was wrong with the last one."""

    seed: int
    """Of the block that is told of, or of the last one."""
    examples: int = 0
    steps: Counter[str] = msgspec.field(default_factory=Counter)
    drain_steps: int = 0
    """Steps that let the examples drain, which nobody chose."""
    actions: Counter[str] = msgspec.field(default_factory=Counter)
    seconds: float = 0.0
    faults: list[str] = []
    """Nothing if all was well."""
    is_stopped: bool = False
    """Whether a signal ended it, in the block with this seed."""
    program: list[str] = []
    """The shortest program that shows it, in the rules of the state machine."""
    story: list[str] = []
    """What happens in it."""

    def add(self, other: "Found") -> None:
        """Add a later block."""
        self.seed = other.seed
        self.examples += other.examples
        self.steps += other.steps
        self.drain_steps += other.drain_steps
        self.actions += other.actions
        self.seconds += other.seconds
        self.faults, self.program, self.story = other.faults, other.program, other.story


def hunt(
    minutes: float, first_seed: int, say: Callable[[str], None], write: Callable[[Found], None]
) -> Found:
    """Play blocks, with one seed after the other, until something is wrong or so many minutes are over.

    SIGINT or SIGTERM ends it as well. What is known so far is written after each block.
    """
    until = time.monotonic() + 60 * minutes
    total = Found(seed=first_seed)
    with private_stores() as stores, _stopping() as stop:
        for number in range(first_seed, sys.maxsize):
            try:
                total.add(play(stores, number, BLOCK, say=say, stop=stop))
            except KeyboardInterrupt:
                total.seed = number
            total.is_stopped = stop.is_set()
            write(total)
            steps = total.steps.total()
            say(f"{total.examples:,} examples, {steps:,} steps, {steps / (total.seconds or 1):,.0f} a second")
            if total.faults or total.is_stopped or time.monotonic() >= until:
                break
    return total


@contextmanager
def _stopping() -> Iterator[Event]:
    """Yield what SIGINT or SIGTERM sets: what they raise, Hypothesis would take for a fault."""
    stop = Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def play(
    stores: Stores,
    number: int,
    examples: int,
    *,
    rules: int = RULES,
    shrink: bool = True,
    aims: Sequence[str] = AIMS,
    alone: bool = False,
    say: Callable[[str], None] = lambda line: None,
    stop: Event | None = None,
) -> Found:
    """Play the block with this seed up to the first example that is wrong, and make that one short.

    The whole judge judges all examples together, or each alone. Raises KeyboardInterrupt once it is to stop,
    unless something is wrong that is told then as it is.
    """
    tally = Interleaving.tally = Tally(lambda line: say(f"seed {number}: {line}"), stop or Event())
    Interleaving.stores, Interleaving.aims, Interleaving.is_judged_alone = stores, aims, alone
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    chosen = settings(
        max_examples=examples, stateful_step_count=rules, phases=phases, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    began, program, judged = time.monotonic(), list[str](), None
    try:
        run_state_machine_as_test(seed(number)(make_machine()), settings=chosen)
        judged = next(judge_records(tally.records), None)
    except KeyboardInterrupt:
        if not tally.trace:
            raise
        tally.faults = tally.faults or ["an example is wrong, and there was no time to make it short"]
    except Exception as error:  # a fault of the state machine or of the stores has a seed as well
        tally.faults = tally.faults or [f"{type(error).__name__}: {error}"]
        program = [line for note in getattr(error, "__notes__", []) for line in note.splitlines()]
    if judged:
        # Again, so that it is made short.
        if shrink:
            again = play(stores, number, examples, rules=rules, aims=aims, alone=True, say=say, stop=stop)
            if again.faults:
                return again
        record, tally.faults = judged
        tally.trace = record.trace
    return Found(
        seed=number,
        examples=tally.examples,
        steps=tally.steps,
        drain_steps=tally.drain_steps,
        actions=tally.actions,
        seconds=time.monotonic() - began,
        faults=tally.faults,
        program=program,
        story=tally.trace,
    )


def make_machine() -> type[Interleaving]:
    """Return the state machine as a class of its own: a seed is kept with the class."""
    return type("Interleaving", (Interleaving,), {})


@contextmanager
def private_stores() -> Iterator[Stores]:
    """Start stores in a temporary folder, and lead the engine to them; all ends with the block."""
    with private_stack() as stack, using(stack.urls["redis"], stack.urls["postgres"]) as stores:
        yield stores


@contextmanager
def private_stack() -> Iterator[Stack]:
    """Start Redis and PostgreSQL in a temporary folder; they end with the block, also at SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))
    with tempfile.TemporaryDirectory(prefix="flashsim-", ignore_cleanup_errors=True) as folder:
        stack = asyncio.run(start_stack(Path(folder), ("redis", "postgres")))
        try:
            yield stack
        finally:
            asyncio.run(stack.stop())
            signal.signal(signal.SIGTERM, before)


@contextmanager
def using(redis_url: str, postgres_url: str) -> Iterator[Stores]:
    """Lead the engine to these stores; they hold nothing else."""
    # The engine warns of what goes wrong, which is what is done to it all the time.
    logging.disable(logging.WARNING)
    log, failures = logging.getLogger("engine"), FailureLog()
    log.addHandler(failures)
    log.propagate = False
    try:
        asyncio.run(_migrate(postgres_url))
        stores = Stores(redis_url, postgres_url)
        with stores.standing_in():
            yield stores
    finally:
        log.propagate = True
        log.removeHandler(failures)
        logging.disable(logging.NOTSET)


async def _migrate(postgres_url: str) -> None:
    async with await Ledger.connect(postgres_url) as ledger:
        await ledger.migrate()


class Hunts(Suite, kw_only=True):
    """What a command did."""

    hunts: list[Found] = msgspec.field(default_factory=list)

    @property
    def actions(self) -> Counter[str]:
        """What was chosen, in all of them."""
        return sum((found.actions for found in self.hunts), Counter())


def write_hunts(result: Hunts, folder: Path) -> None:
    """Write them as JSON, Markdown and HTML."""
    right = [not found.faults for found in result.hunts]
    write_tables("interleave", result, folder, good=sum(right), total=len(right))
