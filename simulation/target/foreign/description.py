"""The description of an engine: a TOML file with its HTTP contract, its witness, how it is started and reset.

The library has examples; `textbook.toml` is a whole engine, `plain.toml` a small one with a table of its own.
"""

from typing import Annotated, Final, Literal

from msgspec import Meta

from simulation.model.contract import Buy, Contract, Init, OrderRead, Part, StockRead
from simulation.scenario.fault import STAGES
from simulation.target.witness.tables import Tables

WitnessKind = Literal["flashgrid", "sql", "http"]
FILLED: Final = ("port", "python", "redis_url", "postgres_url", "amqp_url")
"""What a command of a process may name."""


class Program(Part, frozen=True, kw_only=True):
    """A process of the engine that the run starts, and starts again when it dies: it must stay in the
    foreground, and all that it started ends with it.

    In its command {port}, {redis_url}, {postgres_url} and {amqp_url} stand for what the run gives it, and
    {python} for the interpreter.
    """

    name: Annotated[str, Meta(pattern=f"^({'|'.join(STAGES)})$(?!\\n)")]
    """As faults name it."""
    command: Annotated[str, Meta(min_length=1)]


class Description(Part, frozen=True, kw_only=True):
    """An engine that is not ours."""

    init: Init
    buy: Buy
    stock: StockRead | None = None
    order: OrderRead | None = None
    text: str = ""
    """What it is, in a few words."""
    url: str | None = None
    ca: str | None = None
    """For https: a file with the certificate of an authority, beside this one; else the system's count."""
    tokens: str | None = None
    """A file with a token for each user, beside this one."""
    witness: WitnessKind = "http"
    sql: Tables | None = None
    reset: str | None = None
    """A command that is done before the sales are opened."""
    processes: tuple[Program, ...] = ()

    @property
    def contract(self) -> Contract:
        """Its HTTP contract."""
        return Contract(init=self.init, buy=self.buy, stock=self.stock, order=self.order)
