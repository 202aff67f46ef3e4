"""The description of an engine: a TOML file with its HTTP contract, its witness, how it is started and reset.

The library has examples; `textbook.toml` is a whole engine, `plain.toml` a small one with a table of its own.
"""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from simulation.errors import EngineError, suggest
from simulation.model.contract import Buy, Contract, Init, OrderRead, Part, Request, StockRead
from simulation.model.places import HEADER
from simulation.scenario.fault import STAGES
from simulation.scenario.loading import find_errors, locate_errors, read_toml
from simulation.scenario.schema import Scenario, Topology
from simulation.target.witness.tables import Tables

LIBRARY: Final = Path(__file__).with_name("library")
WitnessKind = Literal["flashgrid", "sql", "http"]
_NO_PLACE: Final = re.compile(r"(?!header:[!-9;-~]+$)(?i:header)\s*:")
"""What is meant for a header field, and names none."""
VALUES: Final = {
    "init": {"product_id", "stock", "limit", "quantity", "starts_ms", "ends_ms", "admin_token", "key"},
    "buy": {"user_id", "product_id", "key", "token"},
    "stock": {"product_id"},
    "order": {"order_id", "user_id", "token"},
}
"""The values that each request may take."""
TERMS: Final = {"limit": "limit", "starts_in_s": "starts_ms", "ends_in_s": "ends_ms", "quantity": "quantity"}
"""The terms of a sale that an engine need not know, and the value that says each of them."""


class Program(Part, frozen=True, kw_only=True):
    """A process of the engine that the run starts, and starts again when it dies.

    In its command {port}, {redis_url}, {postgres_url} and {amqp_url} stand for what the run gives it, and
    {python} for the interpreter.
    """

    name: Annotated[str, Meta(pattern=f"^({'|'.join(STAGES)})$")]
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


def list_descriptions() -> list[str]:
    """Return the names of the descriptions of the library."""
    return sorted(path.stem for path in LIBRARY.glob("*.toml"))


def load_description(name_or_path: str) -> Description:
    """Return the description of that name, or in that TOML file.

    Raises EngineError, with a line for each key at fault, which names the file and the line.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml" and len(path.parts) == 1:
        if path.name not in list_descriptions():
            known = list_descriptions()
            meant = suggest(path.name, known)
            raise EngineError(
                f"no engine {path.name!r}{meant}; there are: {', '.join(known)}, or a FILE.toml"
            )
        path = LIBRARY / f"{path.name}.toml"
    try:
        raw, text = read_toml(path)
    except ValueError as error:
        raise EngineError(str(error)) from None
    try:
        described = msgspec.convert(raw, Description)
        _check(described)
    except msgspec.ValidationError:
        raise EngineError(locate_errors(find_errors(raw, Description), str(path), text)) from None
    except ValueError as error:
        raise EngineError(locate_errors([str(error)], str(path), text)) from None
    beside = {
        name: str(path.parent / file) for name in ("ca", "tokens") if (file := getattr(described, name))
    }
    return msgspec.structs.replace(described, **beside)


def _check(described: Description) -> None:
    """Raise ValueError, in one line that names the key at fault."""
    for name, known in VALUES.items():
        request: Request | None = getattr(described, name)
        if request and (strange := sorted(request.names - known)):
            raise ValueError(f"{name}: there is no {{{strange[0]}}}; there are: {', '.join(sorted(known))}")
    takers = [each for each in (described.buy, described.order) if each and "token" in each.names]
    if bool(takers) != bool(described.tokens):
        raise ValueError("tokens: a file of tokens and the {token} of a request need each other")
    if not any(rule.outcome == "ACCEPTED" for rule in described.buy.answers):
        raise ValueError("buy.answers: no status is ACCEPTED")
    if described.buy.numbered and (described.buy.order_id or "").startswith(HEADER):
        raise ValueError("buy.numbered: a header field is a text, also where it holds a number")
    if strange := [place for place in described.contract.places if _NO_PLACE.match(place)]:
        raise ValueError(f"{strange[0]!r} is no place of an answer: a header field is header:NAME")
    if strange := [place for place in described.buy.words if place.startswith(HEADER)]:
        raise ValueError(f"buy.words: {strange[0]}: a word must stand in the body")
    for name in VALUES:
        if (request := getattr(described, name)) and request.method == "HEAD":
            raise ValueError(f"{name}.method: the answer to HEAD has no body to wait for: take GET")
    remaining = described.sql and described.sql.remaining
    if remaining and remaining.get and not described.stock:
        raise ValueError("sql.remaining.get: needs the request [stock]")
    if remaining and remaining.redis and "{product_id}" not in remaining.redis:
        raise ValueError("sql.remaining.redis: must name a key with {product_id}")
    names = [program.name for program in described.processes]
    if names and "front-door" not in names:
        raise ValueError("processes: one must have the name front-door")
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"processes: {twice.pop()} is there twice")


def check_terms(described: Description, scenario: Scenario) -> None:
    """Raise EngineError for a scenario that asks for what this engine's contract can't say."""
    for number, sale in enumerate(scenario.sales):
        for term, value in TERMS.items():
            if getattr(sale, term) not in (None, 1) and value not in described.init.names:
                raise EngineError(f"sales.{number}.{term}: this engine's init takes no {{{value}}}")
    if scenario.restocks and described.init.sale_id is None:
        raise EngineError("restocks: this engine names no sales (init.sale_id), so they can't be told apart")
    if scenario.topology != Topology():
        raise EngineError("topology: is for Flashgrid, and this engine is another one")
