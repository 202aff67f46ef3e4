"""The gate: decides who gets a unit, a batch at a time (group commit).

While one script call of a shard is in flight, the purchases that arrive wait and form the next batch. So a
crowd costs as many round trips, scripts and fsyncs as there are batches, and each answer is on disk (with
`appendfsync always`) before it is given.

A product that was sold out stays so for a moment: what the script said of it is repeated for `sold_out_ms`
from the time it was asked, as a lease on that answer. A unit that comes back in between waits for its end,
and who opens a new sale of the product is answered after it, so that nobody hears of a sale and is then sent
away in the name of the one before.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from redis.exceptions import BusyLoadingError, NoScriptError, RedisError, ResponseError

from engine.errors import GateUnavailable, OutcomeUnknown
from engine.keys import ShardKeys, shard_of
from engine.mark import Witness, read_generations
from engine.metrics import GATE_BATCH, GATE_SCRIPT, PURCHASES
from engine.order_id import PLACES, make_stem, split_order_id
from engine.redis_client import Script, connect_redis
from engine.sale import Sale
from engine.settings import Settings

log = logging.getLogger(__name__)

RESERVE: Final = Script("reserve.lua")
OPEN_SALE: Final = Script("open_sale.lua")


class Outcome(StrEnum):
    """What the gate says to a purchase."""

    ACCEPTED = "ACCEPTED"
    SOLD_OUT = "SOLD_OUT"
    LIMIT_REACHED = "LIMIT_REACHED"
    UNKNOWN_PRODUCT = "UNKNOWN_PRODUCT"
    NOT_STARTED = "NOT_STARTED"
    SALE_ENDED = "SALE_ENDED"
    # These three say that the gate could not answer.
    GATE_UNAVAILABLE = "GATE_UNAVAILABLE"
    """It never reached the gate, or the gate is closed: nothing is reserved."""
    OUTCOME_UNKNOWN = "OUTCOME_UNKNOWN"
    """It was sent and the answer is lost: it may be reserved."""
    OVERLOADED = "OVERLOADED"
    """Too many purchases are waiting: nothing is reserved."""


_OUTCOME_OF: Final = {
    "A": Outcome.ACCEPTED,
    "R": Outcome.ACCEPTED,
    "S": Outcome.SOLD_OUT,
    "L": Outcome.LIMIT_REACHED,
    "U": Outcome.UNKNOWN_PRODUCT,
    "N": Outcome.NOT_STARTED,
    "E": Outcome.SALE_ENDED,
}
_COUNTERS: Final = {outcome: PURCHASES.labels(outcome) for outcome in Outcome}
_ORDER_ID_LENGTH: Final = 36

Answer = Callable[[Outcome, str | None], None]
"""Called once with the outcome and, if it is ACCEPTED, the order id. It must not raise."""


Purchase = tuple[bytes, bytes, str | None, Answer]
"""One validated request to buy: user id and product id in digits, Idempotency-Key, who waits for the answer.

A plain tuple of what came off the wire, since a crowd makes a hundred thousand of them in a second.
"""


class Stock(NamedTuple):
    """The gate's view of a product's current sale, in units."""

    sale_id: int
    initial: int
    remaining: int


class Gate:
    """All shards of the gate, as one front-door worker sees them."""

    def __init__(self, settings: Settings) -> None:
        if settings.redis_url is None:
            raise ValueError("the gate needs redis_url")
        self._redis = connect_redis(settings.redis_url, settings.gate_timeout_ms)
        self._shards = settings.gate_shards
        self._sold_out_s = settings.sold_out_ms / 1000
        self._lanes = [_Lane(ShardKeys(shard), settings, settings.redis_url) for shard in range(self._shards)]
        only = self._lanes[0] if self._shards == 1 else None
        self.submit: Callable[[Purchase], None] = only.submit if only else self._submit
        """Puts a purchase into the next batch of its shard; its `answer` is called later, exactly once."""
        self.send_away: Callable[[bytes], bool] = only.send_away if only else self._send_away
        """Whether the product is known to be sold out, for who comes without a key; counts the refusal."""

    async def close(self) -> None:
        """Answer the purchases that wait, then disconnect."""
        for lane in self._lanes:
            lane.refuse_more()
        await asyncio.gather(*(lane.close() for lane in self._lanes))
        await self._redis.aclose()

    @property
    def waiting(self) -> int:
        """Purchases that wait for the next batch."""
        return sum(len(lane.waiting) for lane in self._lanes)

    def _submit(self, purchase: Purchase) -> None:
        self._lane_of(int(purchase[1])).submit(purchase)

    def _send_away(self, product_id: bytes) -> bool:
        return self._lane_of(int(product_id)).send_away(product_id)

    async def reserve(self, user_id: int, product_id: int, key: str | None) -> tuple[Outcome, str | None]:
        """Outcome and order id of one purchase. A caller that goes away does not take its purchase back."""
        future: asyncio.Future[tuple[Outcome, str | None]] = asyncio.get_running_loop().create_future()

        def answer(outcome: Outcome, order_id: str | None) -> None:
            if not future.done():
                future.set_result((outcome, order_id))

        self.submit((b"%d" % user_id, b"%d" % product_id, key, answer))
        return await future

    async def open_sale(self, sale: Sale) -> None:
        """Put the sale on offer in place of the product's older one. Raises GateUnavailable.

        Returns once no front door of any machine repeats what it heard of the older one.
        """
        terms = sale.terms
        lane = self._lane_of(terms.product_id)
        keys = lane.keys
        arguments = (
            lane.witness.testimony[0], keys.prefix, sale.sale_id, terms.stock, terms.limit or 0,
            terms.quantity, terms.starts_ms or 0, terms.ends_ms or 0,
        )  # fmt: skip
        try:
            generation, writes, replaced = await OPEN_SALE.run(
                self._redis, [keys.mark, keys.sale(terms.product_id)], arguments
            )
        except (RedisError, OSError) as error:
            raise GateUnavailable(f"the sale could not be opened at the gate: {error}") from error
        lane.witness.note(generation, writes)
        if replaced:
            await asyncio.sleep(self._sold_out_s)

    async def read_stock(self, product_id: int) -> Stock | None:
        """Stock of the product's current sale, None if it has none. Raises GateUnavailable."""
        keys = self._lane_of(product_id).keys
        try:
            async with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.hget(keys.mark, "open")
                pipeline.hmget(keys.sale(product_id), ["sale_id", "stock", "remaining"])
                generation, fields = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise GateUnavailable(str(error)) from error
        if not generation:
            raise GateUnavailable("the gate waits to be rebuilt")
        numbers = [int(field) for field in fields if field is not None]
        return Stock(*numbers) if numbers else None

    async def is_pending(self, order_id: str) -> bool:
        """Whether the order was accepted and not yet settled. Raises GateUnavailable."""
        stem, place = split_order_id(order_id)
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for lane in self._lanes:
                    pipeline.hget(lane.keys.pending, stem)
                batches = await pipeline.execute()
        except (RedisError, OSError) as error:
            raise GateUnavailable(str(error)) from error
        pending = any(digits and digits[place : place + 1] == b"1" for digits in batches)
        if not pending:
            # A gate that lost its memory can't say that it never accepted the order.
            await self.check_open()
        return pending

    async def check_open(self) -> None:
        """Raises GateUnavailable if Redis does not answer, or a shard is closed."""
        try:
            generations = await read_generations(self._redis, [lane.keys for lane in self._lanes])
        except (RedisError, OSError) as error:
            raise GateUnavailable(str(error)) from error
        if not all(generations):
            raise GateUnavailable("the gate waits to be rebuilt")

    def _lane_of(self, product_id: int) -> "_Lane":
        return self._lanes[shard_of(product_id, self._shards)]


class _Lane:
    """One shard's waiting purchases, and the only task that takes them to Redis."""

    def __init__(self, keys: ShardKeys, settings: Settings, redis_url: str) -> None:
        self.keys = keys
        self.witness = Witness()
        self._pool = connect_redis(redis_url, settings.gate_timeout_ms).connection_pool
        self._connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
        # Sending and reading are bounded as one, by the timer in _reserve.
        self._connection.socket_timeout = None
        self._timeout_s = settings.gate_timeout_ms / 1000
        self._batch_size = settings.gate_batch
        self._capacity = settings.gate_waiting
        self._remember_s = settings.idempotency_s
        self._sold_out_s = settings.sold_out_ms / 1000
        self._sold_out_until: dict[bytes, float] = {}
        """Product id → until when, on time.monotonic, it is known to be sold out."""
        self._sent_away = 0
        """Purchases answered from that knowledge and not counted yet."""
        self._loop = asyncio.get_running_loop()
        self.waiting: list[Purchase] = []
        self._arrived = asyncio.Event()
        self._closing = False
        self._reachable = True
        self._task = asyncio.create_task(self._run(), name=f"gate lane {keys.shard}")

    def submit(self, purchase: Purchase) -> None:
        if self._closing:
            _answer_all([purchase], Outcome.GATE_UNAVAILABLE)
        elif purchase[2] is None and self.send_away(purchase[1]):
            purchase[3](Outcome.SOLD_OUT, None)
        elif len(self.waiting) >= self._capacity:
            _answer_all([purchase], Outcome.OVERLOADED)
        else:
            self.waiting.append(purchase)
            self._arrived.set()

    def send_away(self, product_id: bytes) -> bool:
        # Whoever comes with a key may have bought already, which only the script knows.
        until = self._sold_out_until.get(product_id)
        if until is None or time.monotonic() >= until or self._closing:
            return False
        if not self._sent_away:
            # Counted together with all that this turn of the loop brings.
            self._loop.call_soon(self._count_sent_away)
        self._sent_away += 1
        return True

    def refuse_more(self) -> None:
        self._closing = True
        self._arrived.set()

    async def close(self) -> None:
        await self._task
        await self._connection.disconnect()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            if not self.waiting:
                if self._closing:
                    return
                self._arrived.clear()
                continue
            batch = self.waiting[: self._batch_size]
            del self.waiting[: self._batch_size]
            await self._commit(batch)

    async def _commit(self, batch: list[Purchase]) -> None:
        """Take one batch to Redis and answer it. Answers everybody, whatever happens."""
        groups: dict[bytes, list[Purchase]] = {}
        for purchase in batch:
            group = groups.get(purchase[1])
            if group is None:
                groups[purchase[1]] = [purchase]
            else:
                group.append(purchase)
        stem = make_stem()
        asked_at = time.monotonic()
        try:
            letters = await self._reserve(stem, groups)
        except GateUnavailable as error:
            self._lose(batch, Outcome.GATE_UNAVAILABLE, error)
        except OutcomeUnknown as error:
            self._lose(batch, Outcome.OUTCOME_UNKNOWN, error)
        except Exception as error:
            # Nothing may end this task: the crowd behind this batch would wait for ever.
            log.exception("the gate's answer could not be used")
            self._lose(batch, Outcome.OUTCOME_UNKNOWN, error)
        else:
            if not self._reachable:
                log.info("gate shard %d answers again", self.keys.shard)
                self._reachable = True
            self._remember_sold_out(groups, letters, asked_at)
            # In the next turn of the loop, when the batch that has gathered is on its way: to write so many
            # answers takes about as long as the script.
            self._loop.call_soon(_give_answers, stem, groups.values(), letters)

    def _remember_sold_out(self, groups: dict[bytes, list[Purchase]], letters: str, asked_at: float) -> None:
        if "S" in letters:
            place = 0
            for product_id, purchases in groups.items():
                place += len(purchases)
                if letters[place - 1] == "S":
                    self._sold_out_until[product_id] = asked_at + self._sold_out_s

    def _count_sent_away(self) -> None:
        _COUNTERS[Outcome.SOLD_OUT].inc(self._sent_away)
        self._sent_away = 0

    async def _reserve(self, stem: str, groups: dict[bytes, list[Purchase]]) -> str:
        """Run the script. Raises GateUnavailable if it surely did not run, OutcomeUnknown if it may have."""
        arguments: list[str | bytes | int] = [
            RESERVE.sha, 3, self.keys.mark, self.keys.outbox, self.keys.pending,
            *self.witness.testimony, stem, self.keys.prefix, self._remember_s, _pack(groups),
        ]  # fmt: skip
        try:
            # Its own step, since a connect that fails has sent nothing.
            async with asyncio.timeout(self._timeout_s):
                await self._pool.ensure_connection(self._connection)
        except (RedisError, OSError) as error:
            raise GateUnavailable(str(error)) from error
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                try:
                    reply = await self._call("EVALSHA", *arguments)
                except NoScriptError:
                    # Redis, new or restarted, refused before it ran anything; EVAL runs and keeps the script.
                    reply = await self._call("EVAL", RESERVE.source, *arguments[1:])
        except (ResponseError, BusyLoadingError) as error:
            # Redis answered that it refused: closed, loading, read-only, out of memory, disk error.
            raise GateUnavailable(str(error)) from error
        except (RedisError, OSError) as error:
            raise OutcomeUnknown(str(error) or "no answer in time") from error
        GATE_SCRIPT.observe(time.perf_counter() - started)
        GATE_BATCH.observe(sum(map(len, groups.values())))
        generation, writes, letters = reply
        self.witness.note(generation, writes)
        return letters.decode("ascii")

    async def _call(self, *command: str | bytes | int) -> tuple[int, int, bytes]:
        await self._connection.send_packed_command(
            self._connection.pack_command(*command), check_health=False
        )
        answer: tuple[int, int, bytes] = await self._connection.read_response()
        return answer

    def _lose(self, batch: list[Purchase], outcome: Outcome, error: Exception) -> None:
        if self._reachable:
            log.warning("gate shard %d does not answer: %s", self.keys.shard, error or type(error).__name__)
            self._reachable = False
        _answer_all(batch, outcome)
        # Those behind have waited for the same silence: they hear at once that nothing is reserved for them,
        # which bounds everybody's wait by the time of one call.
        behind, self.waiting = self.waiting, []
        _answer_all(behind, Outcome.GATE_UNAVAILABLE)


def _pack(groups: dict[bytes, list[Purchase]]) -> bytes:
    """The purchases as the script reads them."""
    lines = []
    for product_id, purchases in groups.items():
        users = b",".join([user for user, _, _, _ in purchases])
        lines.append(b"%b %d %b%b" % (product_id, len(purchases), users, _pack_keys(purchases)))
    return b"\n".join(lines)


def _pack_keys(purchases: Sequence[Purchase]) -> bytes:
    keys = [key for _, _, key, _ in purchases]
    if keys.count(None) == len(keys):
        return b""
    return "".join([" ." if key is None else f" ={key}" for key in keys]).encode("ascii")


def _answer_all(purchases: Sequence[Purchase], outcome: Outcome) -> None:
    for _, _, _, answer in purchases:
        answer(outcome, None)
    _COUNTERS[outcome].inc(len(purchases))


def _give_answers(stem: str, groups: Iterable[list[Purchase]], letters: str) -> None:
    """Tell each purchase its outcome; `letters` is the script's reply for the groups in this order."""
    purchases = [purchase for group in groups for purchase in group]
    count = len(purchases)
    first = letters[0]
    if first not in "AR" and letters.count(first) == count:
        # What a crowd hears most of the time.
        _answer_all(purchases, _OUTCOME_OF[first])
        return
    places = iter(PLACES)
    replays = letters[count:]
    replayed = 0
    for (_, _, _, answer), letter in zip(purchases, letters, strict=False):
        if letter == "A":
            answer(Outcome.ACCEPTED, stem + next(places))
        elif letter == "R":
            answer(Outcome.ACCEPTED, replays[replayed : replayed + _ORDER_ID_LENGTH])
            replayed += _ORDER_ID_LENGTH
        else:
            answer(_OUTCOME_OF[letter], None)
    for letter in set(letters[:count]):
        _COUNTERS[_OUTCOME_OF[letter]].inc(letters.count(letter, 0, count))
