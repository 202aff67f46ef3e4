"""The processes of an example: each is made of the engine's own parts, as its stages put them together."""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch

import asyncpg
import redis.asyncio.connection

import engine.gate.lane
import engine.stages.fulfilment
import engine.stages.reconciliation
import engine.stages.relay
from engine.gate.clearing import Clearing
from engine.gate.client import Shard, connect_redis
from engine.gate.gate import Gate
from engine.gate.keys import ShardKeys
from engine.gate.outbox import Outbox
from engine.http.opening import open_sale
from engine.ledger.ledger import Ledger
from engine.model.lot import Lot
from engine.model.sale import Sale, SaleTerms
from engine.settings import Settings
from engine.stages.fulfilment import Fulfilment
from engine.stages.keeper import run_keeper
from engine.stages.lifecycle import Pause
from engine.stages.relay import Relay
from simulation.protocol.steps import Actor, Clock
from simulation.protocol.stores.bus import Bus, StepConsumer, StepPublisher
from simulation.protocol.stores.database import Database, StepPool
from simulation.protocol.stores.memory import Memory, StepConnection, StepWire

SETTINGS: Final = Settings(
    redis_url="unix:///the/example",
    postgres_url="postgresql://the/example",
    amqp_url="amqp://the/example",
    gate_batch=4,
    relay_batch=2,
    fulfilment_batch=2,
    fulfilment_wait_ms=0,
    fulfilment_in_flight=2,
    outbox_wait_ms=0,
    sold_out_ms=1,
)
"""Small batches, so that entries are joined, messages cut and batches settled side by side."""
DECLINED: Final = 3
"""The user whose payments are declined."""
SHARD: Final = ShardKeys(0)


class Payment:
    """A payment gateway that always works, and declines one user's payments."""

    async def charge(self, lots: Sequence[Lot]) -> Mapping[str, str]:
        """Return the declines."""
        return {
            order_id: "declined"
            for lot in lots
            for order_id, user in zip(lot.order_ids, lot.user_ids, strict=True)
            if user == DECLINED
        }


class FrontDoor(Actor):
    """A front-door process: a gate's lanes and its watch, and an operator's way to the ledger."""

    gate: Gate
    ledger: Ledger

    def begin(self) -> None:
        async def begin() -> None:
            self.gate = Gate(SETTINGS)
            self.ledger = await Ledger.connect(SETTINGS.postgres_url)

        self.start(begin())

    @property
    def asker(self) -> "asyncio.Task[None]":
        return self.gate._watching[0]

    async def open_sale(self, terms: SaleTerms, key: str) -> Sale:
        return await open_sale(self.gate, self.ledger, terms, key, 5.0)


class RelayProcess(Actor):
    """A relay process."""

    outbox: Outbox
    asker: Final = None

    def begin(self) -> None:
        async def run() -> None:
            self.outbox = Outbox(
                Shard(connect_redis(SETTINGS.redis_url)),
                self.name,
                SETTINGS.relay_claim_ms,
                SETTINGS.outbox_wait_ms,
            )
            publisher: Any = StepPublisher("")
            await Relay(self.outbox, publisher, SETTINGS.relay_batch).run(asyncio.Event())

        self.start(run())


class FulfilmentProcess(Actor):
    """A fulfilment process, with its keeper."""

    clearing: Clearing
    pause: Pause
    keeper: "asyncio.Task[None]"
    source: StepConsumer

    def begin(self) -> None:
        async def run() -> None:
            ledger = await Ledger.connect(SETTINGS.postgres_url)
            self.clearing = Clearing([Shard(connect_redis(SETTINGS.redis_url))])
            self.pause = pause = Pause()
            self.source = StepConsumer("", 256)
            source: Any = self.source
            fulfilment = Fulfilment(source, Payment(), ledger, self.clearing, pause, SETTINGS)
            self.keeper = self.start(run_keeper(SETTINGS, self.clearing, pause))
            await fulfilment.run(asyncio.Event())

        self.start(run())

    @property
    def asker(self) -> "asyncio.Task[None]":
        return self.keeper

    def crash(self) -> None:
        if self.source.channel is not None:
            # The broker has not noticed yet.
            self.source.channel.is_abandoned = True
            self.source.channel = None
        super().crash()


Process = FrontDoor | RelayProcess | FulfilmentProcess


class Stores:
    """The stores of all examples, one after the other, and their clock."""

    def __init__(self, redis_url: str, postgres_url: str) -> None:
        self.clock = Clock(time.time_ns() // 1_000_000)
        self.memory = Memory(redis_url, self.clock)
        self.database = Database(postgres_url)
        self.database.prepare()
        self.bus = Bus()

    def begin(self) -> int:
        """Empty all of them; the gate is open in the generation that this returns."""
        self.bus = StepPublisher.bus = StepConsumer.bus = Bus()
        self.clock.now_ms = time.time_ns() // 1_000_000
        generation = self.clock.now_ms // 1000
        self.database.begin(generation)
        self.memory.begin(generation)
        return generation

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Lead the engine to these stores and this clock; disconnect at the end."""

        async def create_pool(*_: Any, **__: Any) -> StepPool:
            return StepPool(self.database)

        StepConnection.memory = StepWire.memory = self.memory
        with ExitStack() as patches:
            patches.callback(self.database.close)
            patches.callback(self.memory.close)
            enter: Callable[[Any], object] = patches.enter_context
            enter(patch.object(redis.asyncio.connection, "UnixDomainSocketConnection", StepConnection))
            enter(patch.object(engine.gate.lane, "Wire", StepWire))
            enter(patch.object(asyncpg, "create_pool", create_pool))
            enter(patch.object(engine.stages.reconciliation, "Publisher", StepPublisher))
            for name, module in list(sys.modules.items()):
                if name.startswith("engine.") and getattr(module, "time", None) is time:
                    enter(patch.object(module, "time", self.clock))
            yield
