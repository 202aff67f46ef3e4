"""A lane: one connection to one shard, and the purchases that wait for it (group commit).

While one script call is in flight, the purchases that arrive wait and form the next batch. So a crowd costs
as many round trips, scripts and fsyncs as there are batches, and each answer is on disk (with `appendfsync
always`) before it is given.

A sold-out answer is a lease: it is repeated for `sold_out_ms` from the time the script was asked, without
asking again. A unit that comes back in between waits for the end of the lease. The opening of a new sale is
answered after it, so that no shopper learns of a sale and is then refused because of the one before.

A script that only refuses runs on a demoted primary, too, whose memory is out of date. So a lane also asks as
often whether it may write: a refusal is never older than the lease.
"""

import asyncio
import logging
import time
from functools import partial
from itertools import chain
from typing import Any, Final

from redis.exceptions import ReadOnlyError, RedisError

from engine.errors import GateUnavailable, OutcomeUnknown
from engine.gate.batch import Groups, give_replies, pack, reply_all
from engine.gate.client import Command, Execute, Script, Shard, TooFewCopies
from engine.gate.connection.following import REFUSALS
from engine.gate.connection.wire import Argument, Wire
from engine.gate.fence import NEW, Fence, vouch
from engine.metrics import GATE_BATCH, GATE_SCRIPT, PURCHASES
from engine.model.order_id import make_stem
from engine.model.purchase import Outcome, Purchase
from engine.settings import Settings

log = logging.getLogger(__name__)

_RESERVE: Final = Script("reserve.lua")
_UNCOPIED: Final = str.maketrans("AR", "??")
_SENT_AWAY: Final = PURCHASES.labels(Outcome.SOLD_OUT)
_MOST_PRODUCTS: Final = 256
"""In one script call, which reads and writes each of them while Redis keeps everybody else waiting."""


class Lane:
    """One shard's waiting purchases, and the only task that takes them to Redis."""

    def __init__(self, shard: Shard, settings: Settings) -> None:
        self.keys = shard
        self.fence = Fence()
        self._redis = shard.redis
        self._wire = Wire(self._redis)
        self.is_vouched = False
        """Whether the server of this connection is known to remember."""
        self._timeout_s = settings.gate_timeout_ms / 1000
        self._capacity = settings.gate_waiting
        self._settings = settings
        self._sold_out_s = settings.sold_out_ms / 1000
        self._sold_out_until: dict[bytes, float] = {}
        """Product id → end of its lease, on time.monotonic."""
        self._primary_until = 0.0
        """Until when its server is taken for the primary, on time.monotonic."""
        self._demoted = False
        self._copies: list[Any] = []
        """What the latest script's server said of copies, if it was asked."""
        self._reserve_and_copy: Execute = (
            partial(self._call, then=shard.await_copies) if shard.await_copies else self._call
        )
        self._sent_away = 0
        """Purchases refused by a lease and not counted yet."""
        self._loop = asyncio.get_running_loop()
        self.waiting: list[Purchase] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._reachable = True
        self._task = asyncio.create_task(self._run(), name=f"gate lane {shard.shard}")

    def submit(self, purchase: Purchase) -> None:
        """Put a purchase into the next batch; its reply is called later, exactly once."""
        _, product_id, key, reply = purchase
        if self._closing:
            reply_all([purchase], Outcome.GATE_UNAVAILABLE)
        elif key is None and self.send_away(product_id):
            reply(Outcome.SOLD_OUT, None)
        elif len(self.waiting) >= self._capacity:
            reply_all([purchase], Outcome.OVERLOADED)
        else:
            self.waiting.append(purchase)
            self._arrived.set()

    def send_away(self, product_id: bytes) -> bool:
        """Return whether a product is known to be sold out, and if so count a refusal; not for keys."""
        # A purchase with a key may be a repeated one that was accepted, which only the script knows.
        until = self._sold_out_until.get(product_id)
        if until is None or time.monotonic() >= until or self._closing:
            return False
        if not self._sent_away:
            # Counted together with all refusals of this turn of the loop.
            self._loop.call_soon(self._count_sent_away)
        self._sent_away += 1
        return True

    def refuse_more(self) -> None:
        """Refuse every further purchase."""
        self._closing = True
        self._arrived.set()

    async def close(self) -> None:
        """Reply to the purchases that wait, then disconnect."""
        try:
            await self._task
        finally:
            self._wire.close()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if not self.waiting:
                if self._closing:
                    return
                self._arrived.clear()
                continue
            await self._commit(self._take_batch())

    def _take_batch(self) -> Groups:
        """Take the purchases of the next batch out of those that wait."""
        batch = self.waiting[: self._settings.gate_batch]
        del self.waiting[: self._settings.gate_batch]
        groups: Groups = {}
        for purchase in batch:
            _, product_id, _, _ = purchase
            group = groups.get(product_id)
            if group is None:
                groups[product_id] = [purchase]
            else:
                group.append(purchase)
        if len(groups) > _MOST_PRODUCTS:
            later = [groups.pop(product_id) for product_id in list(groups)[_MOST_PRODUCTS:]]
            self.waiting[:0] = chain.from_iterable(later)
        return groups

    async def _commit(self, groups: Groups) -> None:
        """Take one batch to Redis and reply to every purchase of it, whatever happens."""
        batch = list(chain.from_iterable(groups.values()))
        stem = make_stem()
        asked_at = time.monotonic()
        try:
            codes = await self._reserve(stem, groups)
        except GateUnavailable as error:
            self._lose(batch, Outcome.GATE_UNAVAILABLE, error)
        except OutcomeUnknown as error:
            self._lose(batch, Outcome.OUTCOME_UNKNOWN, error)
        except Exception as error:
            # Nothing may end this task: the purchases behind this batch would wait forever.
            log.exception("the gate's answer could not be used")
            self._lose(batch, Outcome.OUTCOME_UNKNOWN, error)
        else:
            if not self._reachable and self.is_vouched:
                log.info("gate shard %d answers again", self.keys.shard)
                self._reachable = True
            GATE_BATCH.observe(len(batch))
            self._remember_sold_out(groups, codes, asked_at)
            # In the next turn of the loop, after the next batch is sent: to write so many replies takes about
            # as long as the script.
            self._loop.call_soon(give_replies, stem, batch, codes)

    def _remember_sold_out(self, groups: Groups, codes: str, asked_at: float) -> None:
        if "S" in codes:
            place = 0
            for product_id, purchases in groups.items():
                place += len(purchases)
                if codes[place - 1] == "S":
                    self._sold_out_until[product_id] = asked_at + self._sold_out_s

    def _count_sent_away(self) -> None:
        _SENT_AWAY.inc(self._sent_away)
        self._sent_away = 0

    async def _reserve(self, stem: str, groups: Groups) -> str:
        """Run the script. Raises GateUnavailable if it surely did not run, OutcomeUnknown if it may have."""
        keys = [self.keys.fence, self.keys.outbox, self.keys.pending]
        seen = self.fence.seen
        arguments: list[Argument] = [
            *seen, stem, self.keys.prefix, self._settings.idempotency_s, pack(groups),
        ]  # fmt: skip
        try:
            # Its own step, since a connect that fails has sent nothing.
            if not (self.is_vouched and self._wire.is_open):
                async with asyncio.timeout(self._timeout_s):
                    await self._connect()
        except (RedisError, OSError) as error:
            raise GateUnavailable(str(error)) from error
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                generation, writes, codes = await _RESERVE.run(self._reserve_and_copy, keys, arguments)
        except REFUSALS as error:
            # Closed, loading, no longer the primary, out of memory, disk error.
            raise GateUnavailable(str(error)) from error
        except (RedisError, OSError) as error:
            raise OutcomeUnknown(str(error) or "no answer in time") from error
        GATE_SCRIPT.observe(time.perf_counter() - started)
        if self._demoted and b"A" not in codes:
            raise GateUnavailable("Redis is no longer the primary, and what it refuses is out of date")
        if self.keys.await_copies:
            try:
                self.keys.check_copies(self._copies)
            except TooFewCopies as error:
                self._say_unreachable(error)
                # Nothing more is taken there until the copies are complete. What was refused is refused.
                self.is_vouched = False
                return str(codes[: sum(map(len, groups.values()))], "ascii").translate(_UNCOPIED)
        self.fence.note(seen[0], generation, writes)
        return str(codes, "ascii")

    async def _connect(self) -> None:
        """Connect if need be. Raises GateUnavailable while the server may lack what others were answered.

        Raises RedisError, TooFewCopies among them.
        """
        if not self._wire.is_open:
            self._wire.close()
            self._wire, self.is_vouched = Wire(self._redis), False
            await self._wire.connect()
        if await vouch(self._call, self.keys, self.fence):
            raise GateUnavailable(NEW)
        if self.keys.await_all:
            self.keys.check_copies(await self._wire.ask(*self.keys.await_all))
        self.is_vouched = True

    async def _call(self, *command: Argument, then: tuple[Command, ...] = ()) -> Any:
        """Return the answer to a command. Once in a lease, ask along with it whether this is the primary.

        The answers to what is asked `then` are kept.
        """
        ask = self._ask_for_copies if then else self._wire.ask
        asked_at = time.monotonic()
        if asked_at < self._primary_until:
            answer, *self._copies = await ask(command, *then)
        else:
            written, answer, *self._copies = await ask(("HDEL", self.keys.fence, ""), command, *then)
            # If it takes no writes for another reason, the command's own answer says what that means for it.
            self._demoted = isinstance(written, ReadOnlyError)
            if not self._demoted:
                self._primary_until = asked_at + self._sold_out_s
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _ask_for_copies(self, *commands: Command) -> list[Any]:
        """Return the answers to all commands; the error that lost the connection in place of that to WAIT."""
        try:
            return await self._wire.ask(*commands)
        except (RedisError, OSError) as error:
            if len(self._wire.heard) == len(commands) - 1:
                return [*self._wire.heard, error]
            raise

    def _lose(self, batch: list[Purchase], outcome: Outcome, error: Exception) -> None:
        self._say_unreachable(error)
        reply_all(batch, outcome)
        # The purchases behind have waited as long: they are told at once that nothing is reserved,
        # which bounds every wait by the time of one call.
        behind, self.waiting = self.waiting, []
        reply_all(behind, Outcome.GATE_UNAVAILABLE)

    def _say_unreachable(self, error: Exception) -> None:
        if self._reachable:
            said = str(error) or type(error).__name__
            log.warning("gate shard %d does not answer: %s", self.keys.shard, said)
            self._reachable = False
