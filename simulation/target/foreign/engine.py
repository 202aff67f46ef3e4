"""The engine that a run is told to test: Flashgrid, or one that a description names, and its witness."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import pandas as pd

from simulation.errors import EngineError, Misdone, Misread, Unreadable
from simulation.model.contract import FLASHGRID, Contract
from simulation.model.state import TRIAL, FinalState
from simulation.scenario.fault import STAGES
from simulation.scenario.schema import Scenario
from simulation.target.foreign.checks import check_terms
from simulation.target.foreign.description import Description, Program, WitnessKind
from simulation.target.foreign.loading import load_description
from simulation.target.foreign.tokens import read_tokens
from simulation.target.services import Services
from simulation.target.witness.doubts import Doubts, doubt_reads
from simulation.target.witness.flashgrid import FlashgridWitness
from simulation.target.witness.http import HttpWitness
from simulation.target.witness.sql import SqlReader
from simulation.target.witness.trial import Trial, await_all, await_shown, buy_trial, open_trial
from simulation.target.witness.witness import NoWitness, Witness


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a run is to test."""

    name: str = "flashgrid"
    described: Description | None = None
    """None: Flashgrid."""
    witness: WitnessKind = "flashgrid"
    tokens: Mapping[int, str] = field(default_factory=dict)
    """The token of each user, if purchases carry one."""
    urls: tuple[str | None, str | None, str | None] = (None, None, None)
    """Redis, RabbitMQ and PostgreSQL as the command line names them, for the witness `sql`."""

    @property
    def contract(self) -> Contract:
        """Its HTTP contract."""
        return self.described.contract if self.described else FLASHGRID

    @property
    def url(self) -> str | None:
        """Where it runs, if its description says so."""
        return self.described.url if self.described else None

    @property
    def ca(self) -> str | None:
        """The file of certificates for https."""
        return self.described.ca if self.described else None

    @property
    def reset(self) -> str | None:
        """The command that makes it as new."""
        return self.described.reset if self.described else None

    @property
    def programs(self) -> list[Program]:
        """The processes that a run starts; none for Flashgrid, which has a server of its own."""
        return [*self.described.processes] if self.described else []

    @property
    def stages(self) -> Sequence[str]:
        """The names of its processes."""
        return [program.name for program in self.programs] or STAGES

    def make_witness(self, url: str, services: Services | None, shards: int) -> Witness:
        """Return the witness of the engine at `url`. Raises EngineError if it lacks something."""
        if self.witness == "flashgrid":
            return FlashgridWitness(services, shards) if services else NoWitness()
        if self.witness == "http":
            return HttpWitness(self.contract, url, self.ca, self.tokens)
        told = self.described.sql if self.described else None
        if told is None:
            raise EngineError("the witness sql needs the tables of an engine: give --engine FILE with [sql]")
        redis_url, amqp_url, postgres_url = self.urls
        postgres_url = postgres_url or told.postgres_url or getattr(services, "postgres_url", None)
        if not postgres_url:
            raise EngineError("the witness sql needs sql.postgres_url, or --postgres-url")
        amqp_url = amqp_url or told.amqp_url or getattr(services, "amqp_url", None)
        if told.queue and not amqp_url:
            raise EngineError(f"sql.queue: {told.queue}: needs sql.amqp_url, or --amqp-url")
        redis_url = redis_url or told.redis_url or getattr(services, "redis_url", None)
        return SqlReader(told, self.contract, url, self.ca, postgres_url, redis_url, amqp_url, self.tokens)

    async def try_out(
        self, url: str, admin_token: str | None, witness: Witness, say: Callable[[str], None]
    ) -> Trial | None:
        """Return a purchase that was accepted before the load, with what of the description it shows to fit.

        None without one, of which `say` is told, and of Flashgrid's own stores, which nobody described.
        Raises Misread where the description reads otherwise what was done. `say` is told of a purchase that
        is shown otherwise than it was answered.
        """
        if self.witness == "flashgrid":
            return None
        try:
            trial = await open_trial(self.contract, url, self.ca, self.tokens, admin_token)
            doubts = Doubts(self.contract, url.rstrip("/"), self.ca, self.tokens, trial)
            await await_all(partial(witness.shows_stock, trial), doubts.shows_stock)
            trial = await buy_trial(trial, self.contract, url, self.ca, self.tokens)
        except Misread:
            raise
        except EngineError as error:
            say(f"no purchase before the load, so that nothing shows whether the description fits: {error}")
            return None
        fitting = ("requests", "buy")
        try:
            trial = replace(trial, status=await await_shown(partial(witness.shows, trial)))
            doubts = replace(doubts, trial=trial)
            _, order, stock = await await_all(
                partial(witness.shows_stock, trial), doubts.shows_order, doubts.shows_stock
            )
        except Misdone as error:
            say(f"the purchase before the load: {error}")
            return replace(trial, fitting=frozenset(fitting), wrong=str(error))
        shown = {"orders": trial.status, "reads of order": order, "reads of stock": stock}
        return replace(
            trial, fitting=frozenset((*fitting, *(name for name, found in shown.items() if found)))
        )

    async def doubt(
        self, state: FinalState, url: str, reads: pd.DataFrame, trial: Trial | None, witness: Witness
    ) -> FinalState:
        """Return the final state with what speaks for the description, and what against that of reads or the
        engine: the purchase before the load, if it is still shown otherwise than it was answered."""
        if self.described is None:
            return state
        doubts, found = Doubts(self.contract, url.rstrip("/"), self.ca, self.tokens, trial), {}
        with suppress(EngineError):
            found = await doubt_reads(doubts, reads)
        if trial and trial.wrong:
            looks = (partial(witness.shows, trial), partial(witness.shows_stock, trial), doubts.shows_stock)
            try:
                for look in looks:
                    await look()
            except Misdone as error:
                found[TRIAL] = str(error)
            except (EngineError, Unreadable):
                found[TRIAL] = trial.wrong
        return replace(state, misfits=state.misfits | found, fitting=trial.fitting if trial else frozenset())

    def fit(self, scenario: Scenario, say: Callable[[str], None]) -> Scenario:
        """Return the scenario without what the contract can't say; `say` is told.

        Raises EngineError for terms of a sale that it can't say.
        """
        if self.described is None:
            return scenario
        check_terms(self.described, scenario)
        population, reads = scenario.population, scenario.population.reads
        users = population.users + (population.bots.users if population.bots else 0)
        if self.tokens and (
            alone := next((user for user in range(1, users + 1) if user not in self.tokens), 0)
        ):
            raise EngineError(
                f"tokens: none for user {alone} of {users:,}"
                + (f"; --set population.users={alone - 1} takes those that have one" if alone > 1 else "")
            )
        if population.keyed_share and not self.contract.has_keys:
            say("this engine knows no Idempotency-Key: every request goes without")
            population = msgspec.structs.replace(population, keyed_share=0.0)
        if reads and not self.contract.stock and reads.stock_share:
            say("this engine shows no stock: nobody reads it")
            reads = msgspec.structs.replace(reads, stock_share=0.0)
        if reads and not (self.contract.order and self.contract.buy.order_id) and reads.order_share:
            say("this engine shows no orders: nobody reads them")
            reads = msgspec.structs.replace(reads, order_share=0.0)
        population = msgspec.structs.replace(population, reads=reads)
        return msgspec.structs.replace(scenario, population=population)


FLASHGRID_ENGINE: Final = Engine()


def find_engine(
    name: str | None,
    witness: WitnessKind | None,
    urls: tuple[str | None, str | None, str | None] = (None, None, None),
) -> Engine:
    """Return the engine of that description, Flashgrid without one, and with the witness asked for, if any.

    Raises EngineError, in one line that names what is missing.
    """
    if name is None:
        if witness == "sql":
            raise EngineError("the witness sql needs the tables of an engine: give --engine FILE with [sql]")
        return Engine(witness=witness or "flashgrid", urls=urls)
    described = load_description(name)
    witness = witness or described.witness
    if witness == "sql" and described.sql is None:
        raise EngineError(f"{name}: has no table [sql], which the witness sql needs")
    if witness == "flashgrid" and described.processes:
        raise EngineError(f"{name}: is not Flashgrid, so its stores can't be read as those are")
    tokens = read_tokens(Path(described.tokens)) if described.tokens else {}
    return Engine(name=Path(name).stem, described=described, witness=witness, tokens=tokens, urls=urls)
