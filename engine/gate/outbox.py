"""The outbox: a shard's stream of accepted purchases, read by a consumer group.

An entry that a reader was given stays pending under the reader's name until it is acknowledged. A reader that
failed reads its own pending entries again; those of a reader that died are claimed by another reader once
they have been idle for long enough (XAUTOCLAIM). So an entry may be read twice and is never lost.
"""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from redis.exceptions import RedisError, ResponseError

from engine.gate.client import Script, Shard
from engine.gate.keys import ShardKeys, shard_of
from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, count_orders, encode_lots
from engine.model.message import Message
from engine.settings import Settings

_PUT_BACK: Final = Script("put_back.lua")
_COUNT: Final = 64
"""Most entries of one stream in one command, for which Redis keeps everybody else waiting."""
_START: Final = b"0-0"
_SHARE_S: Final = 0.05
"""Longest wait for a shard's entries where others may have some."""

Tag = tuple[bytes, bytes]
"""Stream and entry id."""


class Outbox:
    """The outbox stream of one shard, as one reader of the group sees it.

    Every method raises RedisError if Redis can't be reached, and may then be called again. What was read has
    its copies: else the ledger could settle a purchase that the shard's next primary never heard of.
    """

    def __init__(self, shard: Shard, consumer: str, claim_ms: int, wait_ms: int = 0) -> None:
        self._shard = shard
        self._redis = shard.redis
        self._stream = shard.outbox.encode()
        self._consumer = consumer
        self._claim_ms = claim_ms
        self._wait_s = wait_ms / 1000
        self._read_from = 0.0
        self._reading = asyncio.Lock()
        self._held: set[Tag] = set()
        self._own: bytes | None = _START
        """From which entry on those that are pending under this name are read again; None once all are."""
        self._idle = _START
        self._claim_at = 0.0

    async def read(self, wait_s: float) -> list[Message]:
        """Return entries that this reader does not hold yet; wait up to `wait_s` for the first of them.

        Two reads are at least `wait_ms` apart unless the first one left entries behind: to read, hand on and
        acknowledge one entry costs about as much as twenty.
        """
        async with self._reading:
            await asyncio.sleep(self._read_from - time.monotonic())
            try:
                messages = await self._read(wait_s)
            except ResponseError as error:
                if not str(error).startswith(("NOGROUP", "UNBLOCKED")):
                    raise
                # The stream is new, or was deleted.
                with contextlib.suppress(ResponseError):
                    # The group may exist. Any other refusal shows in the next read.
                    await self._redis.xgroup_create(self._stream, ShardKeys.GROUP, id="0", mkstream=True)
                messages = await self._read(wait_s)
            except RedisError:
                # The answer is lost; the entries in it are pending under this reader's name.
                self._own = _START
                raise
            self._read_from = time.monotonic() + self._wait_s if len(messages) < _COUNT else 0.0
            return messages

    async def acknowledge(self, messages: Iterable[Message]) -> None:
        """Delete entries that are done."""
        tags = [message.tag for message in messages]
        ids = [entry_id for stream, entry_id in tags if stream == self._stream]
        for start in range(0, len(ids), _COUNT):
            some = ids[start : start + _COUNT]
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.xdel(self._stream, *some)
                pipe.xack(self._stream, ShardKeys.GROUP, *some)
                await pipe.execute()
        self._held.difference_update(tags)

    def forget_held(self) -> None:
        """Forget the entries that this reader holds: it reads them again."""
        self._held.clear()
        self._own = _START

    async def put_aside(self, dead_letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters in a stream, for an engine without a bus."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for dead_letter in dead_letters:
                pipe.xadd(self._shard.dead, {"body": dead_letter.body, "reason": dead_letter.reason})
            await self._shard.confirm(pipe, wrote=True)

    async def put_back(self, lots: Sequence[Lot]) -> None:
        """Append lots of entries that are then acknowledged, behind all others."""
        await _PUT_BACK.run(self._shard.write, [self._shard.outbox], [count_orders(lots), encode_lots(lots)])

    async def count_entries(self) -> int:
        """Return the number of entries that are not acknowledged."""
        return int(await self._redis.xlen(self._stream))

    async def find_newest(self) -> int:
        """Return when the newest entry ever was accepted, Unix milliseconds of the gate's clock."""
        return await read_newest(self._shard)

    async def has_left(self, newest_ms: int) -> bool:
        """Return whether an entry that was accepted until then is not acknowledged."""
        return bool(await self._redis.xrange(self._stream, "-", str(newest_ms), count=1))

    async def close(self) -> None:
        """Leave the group, unless entries are pending under this name: they would be lost."""
        with contextlib.suppress(RedisError):
            if not await self._redis.xpending_range(
                self._stream, ShardKeys.GROUP, "-", "+", 1, consumername=self._consumer
            ):
                await self._redis.xgroup_delconsumer(self._stream, ShardKeys.GROUP, self._consumer)

    async def _read(self, wait_s: float) -> list[Message]:
        while self._own is not None:
            if messages := await self._read_own(self._own):
                return messages
        if time.monotonic() >= self._claim_at and (messages := await self._claim()):
            return messages
        block_ms = max(1, round(wait_s * 1000))
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xreadgroup(
                ShardKeys.GROUP, self._consumer, {self._stream: ">"}, count=_COUNT, block=block_ms
            )
            [answer] = await self._shard.confirm(pipe)
        return [message for _, entries in answer for message in self._take(entries, repeated=False)]

    async def _read_own(self, after: bytes) -> list[Message]:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xreadgroup(ShardKeys.GROUP, self._consumer, {self._stream: after}, count=_COUNT)
            [[(_, entries)]] = await self._shard.confirm(pipe)
        self._own = entries[-1][0] if entries else None
        if gone := [entry_id for entry_id, fields in entries if not fields]:
            await self._redis.xack(self._stream, ShardKeys.GROUP, *gone)
        return [*self._take(entries, repeated=True)]

    async def _claim(self) -> list[Message]:
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.xautoclaim(
                self._stream, ShardKeys.GROUP, self._consumer, self._claim_ms, self._idle, count=_COUNT
            )
            [answer] = await self._shard.confirm(pipe)
        self._idle = answer[0]
        if self._idle == _START:
            self._claim_at = time.monotonic() + self._claim_ms / 1000
        return [*self._take(answer[1], repeated=True)]

    def _take(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]], repeated: bool) -> Iterator[Message]:
        """Hold entries that this reader does not hold yet, and yield their messages."""
        for entry_id, fields in entries:
            tag = (self._stream, entry_id)
            if fields and tag not in self._held:
                self._held.add(tag)
                # An entry that the gate did not write is handed on as well, to end as a dead letter.
                lines = fields.get(b"purchases") or b" ".join(
                    word for field in fields.items() for word in field
                )
                orders = fields.get(b"orders", b"")
                yield Message(
                    tag=tag, lines=lines, repeated=repeated, orders=int(orders) if orders.isdigit() else 1
                )


class Outboxes:
    """The outboxes of all shards, as one source."""

    def __init__(self, outboxes: Sequence[Outbox]) -> None:
        self._outboxes = outboxes

    async def read(self, wait_s: float) -> list[Message]:
        """Return entries of any shard that this reader does not hold yet; wait up to `wait_s` for them.

        Raises RedisError if there are none, and a shard can't be reached.
        """
        if len(self._outboxes) == 1:
            return await self._outboxes[0].read(wait_s)
        # No shard waits for long for another one that has nothing.
        wait_s = min(wait_s, _SHARE_S)
        reads = await asyncio.gather(
            *(outbox.read(wait_s) for outbox in self._outboxes), return_exceptions=True
        )
        messages, errors = list[Message](), list[BaseException]()
        for read in reads:
            if isinstance(read, BaseException):
                errors.append(read)
            else:
                messages += read
        if errors and not messages:
            raise errors[0]
        return messages

    async def acknowledge(self, messages: Sequence[Message]) -> None:
        """Delete entries that are done."""
        for outbox in self._outboxes:
            await outbox.acknowledge(messages)

    async def put_aside(self, dead_letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters in a stream of the first shard."""
        await self._outboxes[0].put_aside(dead_letters)

    async def put_back(self, lots: Sequence[Lot]) -> None:
        """Append lots of entries that are then acknowledged, behind all others of their shards."""
        for outbox in self._outboxes:
            if its_lots := [lot for lot in lots if shard_of(lot.product_id, self._outboxes) is outbox]:
                await outbox.put_back(its_lots)

    async def count_entries(self) -> int:
        """Return the number of entries that are not acknowledged."""
        return sum([await outbox.count_entries() for outbox in self._outboxes])

    async def close(self) -> None:
        """Leave the group of each stream, unless entries are pending under this name."""
        for outbox in self._outboxes:
            await outbox.close()


async def read_newest(shard: Shard) -> int:
    """Return when the newest entry that an outbox ever had was accepted, Unix milliseconds; 0 without any.

    Raises RedisError.
    """
    try:
        stream: Any = await shard.redis.xinfo_stream(shard.outbox)
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
        return 0
    return int(stream["last-generated-id"].partition(b"-")[0])


def make_outboxes(shards: Iterable[Shard], role: str, settings: Settings) -> list[Outbox]:
    """Return the outboxes of all shards; a reader of the same process inherits the entries of this one."""
    consumer = f"{role}-{socket.gethostname()}-{os.getpid()}"
    return [Outbox(shard, consumer, settings.relay_claim_ms, settings.outbox_wait_ms) for shard in shards]
