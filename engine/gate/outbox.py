"""The outbox: the gate's stream of accepted purchases, read by a consumer group.

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

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from engine.gate.keys import ShardKeys
from engine.model.dead_letter import DeadLetter
from engine.model.message import Message

_COUNT: Final = 64
"""Most entries of one stream in one command, for which Redis keeps everybody else waiting."""
_START: Final = b"0-0"

Tag = tuple[bytes, bytes]
"""Stream and entry id."""


class Outbox:
    """The outbox streams of all shards, as one reader of the group sees them.

    Every method raises RedisError if Redis can't be reached, and may then be called again.
    """

    def __init__(
        self, redis: Redis, shards: Sequence[ShardKeys], consumer: str, claim_ms: int, wait_ms: int = 0
    ) -> None:
        self._redis = redis
        self._streams = [shard.outbox.encode() for shard in shards]
        self._dead = shards[0].dead
        self._consumer = consumer
        self._claim_ms = claim_ms
        self._wait_s = wait_ms / 1000
        self._read_from = 0.0
        self._reading = asyncio.Lock()
        self._held: set[Tag] = set()
        self._own = dict.fromkeys(self._streams, _START)
        self._idle = dict.fromkeys(self._streams, _START)
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
                # A stream is new, or was deleted.
                async with self._redis.pipeline(transaction=False) as pipe:
                    for stream in self._streams:
                        pipe.xgroup_create(stream, ShardKeys.GROUP, id="0", mkstream=True)
                    # The group may exist on some streams. Any other refusal shows in the next read.
                    await pipe.execute(raise_on_error=False)
                messages = await self._read(wait_s)
            except RedisError:
                # The answer is lost; the entries in it are pending under this reader's name.
                self._own = dict.fromkeys(self._streams, _START)
                raise
            self._read_from = time.monotonic() + self._wait_s if len(messages) < _COUNT else 0.0
            return messages

    async def acknowledge(self, messages: Iterable[Message]) -> None:
        """Delete entries that are done."""
        tags = [message.tag for message in messages]
        for stream in self._streams:
            ids = [entry_id for its_stream, entry_id in tags if its_stream == stream]
            for start in range(0, len(ids), _COUNT):
                some = ids[start : start + _COUNT]
                async with self._redis.pipeline(transaction=True) as pipe:
                    pipe.xdel(stream, *some)
                    pipe.xack(stream, ShardKeys.GROUP, *some)
                    await pipe.execute()
        self._held.difference_update(tags)

    def forget_held(self) -> None:
        """Forget the entries that this reader holds: it reads them again."""
        self._held.clear()
        self._own = dict.fromkeys(self._streams, _START)

    async def put_aside(self, dead_letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters in a stream, for an engine without a bus."""
        async with self._redis.pipeline(transaction=True) as pipe:
            for dead_letter in dead_letters:
                pipe.xadd(self._dead, {"body": dead_letter.body, "reason": dead_letter.reason})
            await pipe.execute()

    async def count_entries(self) -> int:
        """Return the number of entries of all shards that are not acknowledged."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for stream in self._streams:
                pipe.xlen(stream)
            return sum(await pipe.execute())

    async def close(self) -> None:
        """Leave the group of each stream, unless entries are pending under this name: they would be lost."""
        with contextlib.suppress(RedisError):
            for stream in self._streams:
                if not await self._redis.xpending_range(
                    stream, ShardKeys.GROUP, "-", "+", 1, consumername=self._consumer
                ):
                    await self._redis.xgroup_delconsumer(stream, ShardKeys.GROUP, self._consumer)

    async def _read(self, wait_s: float) -> list[Message]:
        while self._own:
            if messages := await self._read_own():
                return messages
        if time.monotonic() >= self._claim_at and (messages := await self._claim()):
            return messages
        answer: Any = await self._redis.xreadgroup(
            ShardKeys.GROUP,
            self._consumer,
            dict.fromkeys(self._streams, ">"),
            count=_COUNT,
            block=max(1, round(wait_s * 1000)),
        )
        return [
            message for stream, entries in answer for message in self._take(stream, entries, repeated=False)
        ]

    async def _read_own(self) -> list[Message]:
        cursors: dict[Any, Any] = dict(self._own.items())
        answer: Any = await self._redis.xreadgroup(ShardKeys.GROUP, self._consumer, cursors, count=_COUNT)
        messages = list[Message]()
        for stream, entries in answer:
            if not entries:
                del self._own[stream]
                continue
            self._own[stream] = entries[-1][0]
            if gone := [entry_id for entry_id, fields in entries if not fields]:
                await self._redis.xack(stream, ShardKeys.GROUP, *gone)
            messages += self._take(stream, entries, repeated=True)
        return messages

    async def _claim(self) -> list[Message]:
        messages = list[Message]()
        for stream, start in self._idle.items():
            answer: Any = await self._redis.xautoclaim(
                stream, ShardKeys.GROUP, self._consumer, self._claim_ms, start, count=_COUNT
            )
            self._idle[stream] = answer[0]
            messages += self._take(stream, answer[1], repeated=True)
        if all(start == _START for start in self._idle.values()):
            self._claim_at = time.monotonic() + self._claim_ms / 1000
        return messages

    def _take(
        self, stream: bytes, entries: Iterable[tuple[bytes, dict[bytes, bytes]]], repeated: bool
    ) -> Iterator[Message]:
        """Hold entries that this reader does not hold yet, and yield their messages."""
        for entry_id, fields in entries:
            tag = (stream, entry_id)
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


def name_consumer(role: str) -> str:
    """Return the name of this process among the readers; a reader of the same name inherits its entries."""
    return f"{role}-{socket.gethostname()}-{os.getpid()}"
