"""The hunt: example after example, until one of them is wrong or the time is over.

Examples come in blocks; a block has a seed, which is all that it takes to play it again. `python -m` this
module plays a job from standard input and writes what it found to standard output: so examples are played
with another engine, too.
"""

import asyncio
import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg
import msgspec
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

import simulation
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack, start_stack
from simulation.campaign.mutation import Mutation, copy_engine, load_mutation, mutate
from simulation.campaign.suite import Suite
from simulation.errors import RunError
from simulation.protocol.machine import AIMS, Interleaving, Tally
from simulation.protocol.processes import Stores
from simulation.report.page import write_tables

FOLDER: Final = Path(__file__).with_name("mutations")
_BUGS: Final = Path(__file__).with_name("bugs.toml")
BLOCK: Final = 25
"""Examples with one seed."""
RULES: Final = 40
"""Most rules of an example."""


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


def hunt(minutes: float, first_seed: int, say: Callable[[str], None]) -> Found:
    """Play blocks, with one seed after the other, until something is wrong or so many minutes are over."""
    until = time.monotonic() + 60 * minutes
    total = Found(seed=first_seed)
    with private_stores() as stores:
        for number in range(first_seed, sys.maxsize):
            total.add(play(stores, number, BLOCK))
            steps = total.steps.total()
            say(f"{total.examples:,} examples, {steps:,} steps, {steps / total.seconds:,.0f} a second")
            if total.faults or time.monotonic() >= until:
                break
    return total


def play(
    stores: Stores, number: int, examples: int, shrink: bool = True, aims: Sequence[str] = AIMS
) -> Found:
    """Play the block with this seed up to the first example that is wrong, and make that one short."""
    tally = Interleaving.tally = Tally()
    Interleaving.stores, Interleaving.aims = stores, aims
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    chosen = settings(
        max_examples=examples, stateful_step_count=RULES if aims is AIMS else RULES // 2,
        phases=phases, database=None, deadline=None,
        suppress_health_check=list(HealthCheck), report_multiple_bugs=False, print_blob=False,
    )  # fmt: skip
    began, program = time.monotonic(), io.StringIO()
    with contextlib.redirect_stdout(program):
        try:
            run_state_machine_as_test(seed(number)(make_machine()), settings=chosen)
        except AssertionError as error:
            tally.faults = tally.faults or [f"an assertion failed: {error}"]
    return Found(
        seed=number,
        examples=tally.examples,
        steps=tally.steps,
        drain_steps=tally.drain_steps,
        actions=tally.actions,
        seconds=time.monotonic() - began,
        faults=tally.faults,
        program=program.getvalue().splitlines(),
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
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
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
    # The engine tells what goes wrong, which is what is done to it all the time.
    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(_migrate(postgres_url))
        stores = Stores(redis_url, postgres_url)
        with stores.standing_in():
            yield stores
    finally:
        logging.disable(logging.NOTSET)


async def _migrate(postgres_url: str) -> None:
    async with await Ledger.connect(postgres_url) as ledger:
        await ledger.migrate()


class Bug(msgspec.Struct, forbid_unknown_fields=True):
    """A deliberate bug."""

    aims: list[str]
    """Steps at which something is to go wrong."""
    model: str | None = None
    """The same bug in the model."""


class Attempt(msgspec.Struct, kw_only=True):
    """What was found of a deliberate bug."""

    name: str
    text: str
    model: str | None
    """The same bug in the model."""
    found: Found
    expected: bool
    """Whether what is wrong is one of what the bug should break."""


class Hunts(Suite, kw_only=True):
    """What a command did: a hunt, or one for each deliberate bug."""

    hunts: list[Found] = msgspec.field(default_factory=list)
    bugs: list[Attempt] = msgspec.field(default_factory=list)


def write_hunts(result: Hunts, folder: Path) -> None:
    """Write them as JSON, Markdown and HTML."""
    right = [not found.faults for found in result.hunts] + [bool(each.found.faults) for each in result.bugs]
    write_tables("interleave", result, folder, good=sum(right), total=len(right))


def load_bugs() -> dict[str, Bug]:
    """Load the deliberate bugs in the protocol, of this room and of simulation/campaign/."""
    return msgspec.toml.decode(_BUGS.read_bytes(), type=dict[str, Bug])


def load_edits(name: str) -> Mutation:
    """Load what a bug changes in the engine."""
    return load_mutation(name, FOLDER) if (FOLDER / f"{name}.toml").exists() else load_mutation(name)


def attempt(name: str, stack: Stack, examples: int, first_seed: int = 1, shrink: bool = True) -> Attempt:
    """Put a bug into a copy of the engine, and play so many examples at most until it shows."""
    mutation, bug = load_edits(name), load_bugs()[name]
    database = f"bug_{name.replace('-', '_')}"
    asyncio.run(_create(stack.urls["postgres"], database))
    url = f"{stack.urls['postgres'].rpartition('/')[0]}/{database}"
    with tempfile.TemporaryDirectory(prefix="flashsim-bug-") as folder:
        copy_engine(Path(folder))
        mutate(mutation, Path(folder))
        job = Job(stack.urls["redis"], url, first_seed, examples, shrink, bug.aims)
        found = play_elsewhere(Path(folder), job)
    expected = any(fault.startswith(tuple(mutation.breaks)) for fault in found.faults)
    return Attempt(name=name, text=mutation.text, model=bug.model, found=found, expected=expected)


async def _create(postgres_url: str, database: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    try:
        await connection.execute(f"DROP DATABASE IF EXISTS {database}")
        await connection.execute(f"CREATE DATABASE {database}")
    finally:
        await connection.close()


class Job(NamedTuple):
    """What another process is to play."""

    redis_url: str
    postgres_url: str
    first_seed: int
    examples: int
    shrink: bool
    aims: list[str]


def play_elsewhere(code: Path, job: Job) -> Found:
    """Play examples with the engine that is in a folder. Raises RunError."""
    # Python finds a package first in the folder where it starts, and what is not there in this checkout.
    played = subprocess.run(
        [sys.executable, "-m", __name__],
        cwd=code,
        env={**os.environ, "PYTHONPATH": str(Path(simulation.__file__).parents[1])},
        input=msgspec.json.encode(job),
        capture_output=True,
        check=False,
    )
    try:
        return msgspec.json.decode(played.stdout, type=Found, dec_hook=lambda _, counts: Counter(counts))
    except msgspec.DecodeError:
        said = f"exit code {played.returncode}, {played.stderr.decode()[-2000:]}"
        raise RunError(f"examples could not be played: {said}") from None


def main() -> None:
    """Play a job from standard input until one of its examples is wrong."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    total = Found(seed=job.first_seed)
    with using(job.redis_url, job.postgres_url) as stores:
        while total.examples < job.examples and not total.faults:
            total.add(play(stores, total.seed + bool(total.examples), BLOCK, job.shrink, job.aims))
    sys.stdout.buffer.write(msgspec.json.encode(total))


if __name__ == "__main__":
    main()
