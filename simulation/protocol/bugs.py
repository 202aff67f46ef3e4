"""The deliberate bugs: each is put into a copy of the engine, and must show.

Two kinds of orders of its steps are tried: those that have a name, and random examples. `python -m` this
module plays a job from standard input with the engine that it finds, and writes to standard output what
showed.
"""

import asyncio
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import asyncpg
import msgspec

import simulation
from engine.local.stack import Stack
from simulation.campaign.mutation import PACKAGE, Mutation, copy_engine, load_mutation, mutate
from simulation.campaign.suite import Suite
from simulation.errors import RunError
from simulation.protocol.example.processes import Stores
from simulation.protocol.example.world import World
from simulation.protocol.hunt import BLOCK, FEW_RULES, Found, play, using
from simulation.protocol.orders import losses, purchases, rebuilds
from simulation.protocol.orders.guide import DOOR, SALE
from simulation.report.page import write_tables

FOLDER: Final = Path(__file__).with_name("mutations")
_BUGS: Final = Path(__file__).with_name("bugs.toml")
ORDERS: Final[dict[str, Callable[[World], None]]] = {
    name.replace("_", " "): order
    for module in (purchases, losses, rebuilds)
    for name, order in vars(module).items()
    if getattr(order, "__module__", "") == module.__name__ and not name.startswith("_")
}
"""The orders that have a name. Each fails with an AssertionError if the engine is wrong."""


class Bug(msgspec.Struct, forbid_unknown_fields=True):
    """A deliberate bug."""

    aims: list[str]
    """Steps at which something is to go wrong."""
    model: str | None = None
    """The same bug in the model."""


class Shown(msgspec.Struct):
    """By what a deliberate bug shows."""

    orders: list[str]
    """The names of the orders that fail."""
    found: Found
    """What random examples found."""


class Attempt(msgspec.Struct, kw_only=True):
    """What was found of a deliberate bug."""

    name: str
    text: str
    model: str | None
    """The same bug in the model."""
    shown: Shown
    control: list[str]
    """What is wrong in the same examples without the bug, which must be nothing."""

    @property
    def shows(self) -> bool:
        """Whether an example is wrong because of the bug."""
        return bool(self.shown.found.faults) and not self.control

    def tell(self) -> str:
        """Return in a line by what it shows."""
        after = "after" if self.shows else "not in"
        examples, orders = self.shown.found.examples, len(self.shown.orders)
        return f"{self.name}: shows {after} {examples} examples, and in {orders} orders with a name"


class Attempts(Suite, kw_only=True):
    """What was found of all of them."""

    bugs: list[Attempt] = msgspec.field(default_factory=list)

    @property
    def shown(self) -> int:
        """The number of bugs that show at all."""
        return sum(bool(each.shown.orders or each.shows) for each in self.bugs)

    @property
    def in_examples(self) -> int:
        """The number of bugs that show in examples."""
        return sum(each.shows for each in self.bugs)


def write_attempts(result: Attempts, folder: Path) -> None:
    """Write them as JSON, Markdown and HTML."""
    write_tables("bugs", result, folder, good=result.shown, total=len(result.bugs))


def load_bugs() -> dict[str, Bug]:
    """Load the deliberate bugs in the protocol, of this room and of simulation/campaign/."""
    return msgspec.toml.decode(_BUGS.read_bytes(), type=dict[str, Bug])


def load_edits(name: str) -> Mutation:
    """Load what a bug changes in the engine."""
    return load_mutation(name, FOLDER) if (FOLDER / f"{name}.toml").exists() else load_mutation(name)


def play_order(stores: Stores, name: str) -> None:
    """Play an order in a world with an open sale of two units. Raises AssertionError."""
    world = World(stores)
    try:
        world.open_sale(DOOR, SALE, "first", at_once=True)
        ORDERS[name](world)
    finally:
        world.end()


def attempt(name: str, stack: Stack, examples: int, first_seed: int = 1, shrink: bool = True) -> Attempt:
    """Put a bug into a copy of the engine, and play so many examples at most until it shows.

    Then play these examples without the bug.
    """
    mutation, bug = load_edits(name), load_bugs()[name]
    database = f"bug_{name.replace('-', '_')}"
    asyncio.run(_create(stack.urls["postgres"], database))
    url = f"{stack.urls['postgres'].rpartition('/')[0]}/{database}"
    job = Job(stack.urls["redis"], url, list(ORDERS), first_seed, examples, shrink, bug.aims)
    with tempfile.TemporaryDirectory(prefix="flashsim-bug-") as folder:
        copy_engine(Path(folder))
        mutate(mutation, Path(folder))
        shown = play_elsewhere(Path(folder), job)
    control: list[str] = []
    if shown.found.faults:
        asyncio.run(_create(stack.urls["postgres"], database))
        blocks = shown.found.seed - first_seed + 1
        job = job._replace(orders=[], examples=BLOCK * blocks, shrink=False)
        control = play_elsewhere(PACKAGE.parent, job).found.faults
    return Attempt(name=name, text=mutation.text, model=bug.model, shown=shown, control=control)


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
    orders: list[str]
    first_seed: int
    examples: int
    shrink: bool
    aims: list[str]


def play_elsewhere(code: Path, job: Job) -> Shown:
    """Play orders and examples with the engine that is in a folder. Raises RunError."""
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
        return msgspec.json.decode(played.stdout, type=Shown, dec_hook=lambda _, counts: Counter(counts))
    except msgspec.DecodeError:
        said = f"exit code {played.returncode}, {played.stderr.decode()[-2000:]}"
        raise RunError(f"nothing could be played: {said}") from None


def main() -> None:
    """Play a job from standard input: its orders, and examples until one of them is wrong."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    found = Found(seed=job.first_seed)
    with using(job.redis_url, job.postgres_url) as stores:
        failing = [name for name in job.orders if not _holds(stores, name)]
        while found.examples < job.examples and not found.faults:
            number = found.seed + bool(found.examples)
            found.add(play(stores, number, BLOCK, rules=FEW_RULES, shrink=job.shrink, aims=job.aims))
    sys.stdout.buffer.write(msgspec.json.encode(Shown(failing, found)))


def _holds(stores: Stores, name: str) -> bool:
    try:
        play_order(stores, name)
    except Exception:  # what a wrong engine makes of an order, nobody knows
        return False
    return True


if __name__ == "__main__":
    main()
