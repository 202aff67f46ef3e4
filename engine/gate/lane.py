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
from collections.abc import Iterable, Sequence
from typing import Final

from redis.exceptions import BusyLoadingError, NoScriptError, RedisError, ResponseError

from engine.errors import GateUnavailable, OutcomeUnknown
from engine.gate.client import Script, connect_redis
from engine.gate.fence import Witness
from engine.gate.keys import ShardKeys
from engine.metrics import GATE_BATCH, GATE_SCRIPT, PURCHASES
from engine.model.order_id import PLACES, make_stem
from engine.model.purchase import Outcome, Purchase
from engine.settings import Settings

log = logging.getLogger(__name__)

RESERVE: Final = Script("reserve.lua")


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


class Lane:
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
        """Put a purchase into the next batch; its answer is called later, exactly once."""
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
        """Whether the product is known to be sold out, for a purchase without a key; counts the refusal."""
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
        """Refuse every further purchase."""
        self._closing = True
        self._arrived.set()

    async def close(self) -> None:
        """Answer the purchases that wait, then disconnect."""
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
