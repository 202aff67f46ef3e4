"""The fence: how anyone tells that the gate remembers what it has answered.

Each shard holds a hash, its fence, which the gate's scripts read with every batch:

    open        the generation; absent while the gate is closed, and after Redis has lost everything
    <writer>    number of the last write of each process that writes to the shard: Unix milliseconds of the
                gate's clock, or one more than the number before
    rebuilding  the generation of the process that rebuilds the shard
    newest      acceptance time of the newest order known when it was rebuilt, Unix milliseconds
    doubt       when it was rebuilt, Unix milliseconds; absent once no order from before can be under way of
                which the shard knows nothing
    server      run_id of the Redis that holds it
    rebuilding_on  run_id of the Redis at which that rebuild began
    since       when that Redis was first asked, Unix milliseconds of its own clock
    copies      for each of the last servers that were new, the latest first: run_id, acceptance time of the
                newest order that it had, and from when on it sells, Unix milliseconds
    seen        the latest generation that a writer has seen, while the shard is closed or older

How each loss is noticed:

- A Redis that was wiped has no fence, so the scripts refuse.
- A Redis restored from an older copy, or a replica that lagged when it took over, has a fence, but lacks a
  write that some process has had an answer to. Every process remembers the number of its own last answered
  write and sends it along; a script that finds a smaller one closes the shard for everybody. A counter that
  all writers share could not show this: others may have moved it on since.
- A process that wrote nothing since that copy can't notice it, and must not sell before another one has. So
  every front door asks the shard again and again, and a server that is new, as its run_id shows, sells
  nothing until all of them have asked it (vouch.lua).
- A copy from before the last rebuild has an older generation than processes, or PostgreSQL, have seen.
- A copy older than what any running process has seen, or whose writers died with it, is compared with the
  ledger (reconciliation.py), also whenever the server is new. What the server has sold since hides nothing:
  the fence keeps what the copy had when it was new.

A Redis that was restarted with its data intact passes all of these. A loss that nothing notices meets the
ledger's guard: such a purchase ends REJECTED.

A writer that has written nothing for a day is taken out of the fence: its process is gone, or goes on under
another name since half a day. Fulfilment writes every few hours if there is nothing to settle, so that it
goes on to know.
"""

import asyncio
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from redis.asyncio.client import Pipeline
from redis.exceptions import ReadOnlyError, RedisError

from engine.gate.client import Execute, Script, Shard, ask_each
from engine.gate.connection.wire import Argument
from engine.gate.keys import ShardKeys

_CLOSE: Final = Script("close.lua")
_FORGET_WRITERS: Final = Script("forget_writers.lua")
_VOUCH: Final = Script("vouch.lua")
NOTICED_S: Final = 1.0
"""Time in which every front door that lives has asked a server that is new whether it remembers."""
_ANSWER_S: Final = 1.0
NEW: Final = "Redis is new here, and is asked first what it remembers"
"""Why it sells nothing meanwhile."""
_HOUR_MS: Final = 3_600_000
_FORGOTTEN_MS: Final = 24 * _HOUR_MS
_RENAMED_MS: Final = 12 * _HOUR_MS
_SILENT_MS: Final = 6 * _HOUR_MS


class Copy(NamedTuple):
    """What a server had of some shards when it was new."""

    shards: set[Shard]
    newest_ms: int
    """When the newest order that it had was accepted."""
    sells_ms: int
    """From when on it accepts orders of its own."""


class Fence:
    """What this process has seen of one shard: the generation, and the number of its own last write there."""

    def __init__(self) -> None:
        self._seen = (os.urandom(8).hex(), 0, 0)
        self.server = b""
        """What vouch.lua said last of the server."""

    @property
    def seen(self) -> tuple[str, int, int]:
        """What the scripts compare with: writer, generation, number of its last write."""
        if self._seen[2] and self._silence_ms() > _RENAMED_MS:
            self._seen = (os.urandom(8).hex(), self._seen[1], 0)
        return self._seen

    @property
    def generation(self) -> int:
        """The latest generation that this process has seen."""
        return self._seen[1]

    @property
    def is_silent(self) -> bool:
        """Whether it is time to write, so that the shard goes on to know this process."""
        return bool(self._seen[2]) and self._silence_ms() > _SILENT_MS

    def note(self, writer: str, generation: int, writes: int) -> None:
        """Remember what a script answered to a writer; answers may come in any order."""
        if writer == self._seen[0]:
            self._seen = max(self._seen, (writer, generation, writes))

    def _silence_ms(self) -> float:
        return time.time() * 1000 - self._seen[2]


async def ask_primary(pipe: Pipeline, shard: ShardKeys) -> list[Any]:
    """Return the answers to the commands in a pipeline. Raises RedisError.

    A write that changes nothing follows them: a demoted primary, whose memory is out of date, refuses it.
    """
    pipe.hdel(shard.fence, "")
    return check_primary(await pipe.execute(raise_on_error=False))


def check_primary(answers: Iterable[Any]) -> list[Any]:
    """Return all answers but the last one, that to a write which changes nothing. Raises RedisError."""
    *answers, written = answers
    for answer in answers:
        if isinstance(answer, RedisError):
            raise answer
    if isinstance(written, ReadOnlyError):
        raise written
    return answers


async def read_memory(shard: Shard, writer: str) -> list[int]:
    """Return the generation, 0 if the shard is closed, and the writer's last write. Raises RedisError."""
    async with shard.redis.pipeline(transaction=False) as pipe:
        pipe.hmget(shard.fence, ["open", writer])
        [numbers] = await ask_primary(pipe, shard)
    return [int(number or 0) for number in numbers]


async def vouch(execute: Execute, shard: ShardKeys, fence: Fence) -> float:
    """Return for how many seconds the shard must sell nothing yet, because its server is new.

    Closes a shard that has lost what this process was answered. Raises RedisError: CLOSED if it is closed.
    """
    arguments: list[Argument] = [*fence.seen, round(NOTICED_S * 1000), fence.server]
    left_ms, fence.server = await _VOUCH.run(execute, [shard.fence, shard.outbox], arguments)
    return int(left_ms) / 1000


async def close_shard(shard: Shard, generation: int, seen: int) -> None:
    """Close a shard unless it has been rebuilt since this generation; the next one is later than `seen`.

    Raises RedisError.
    """
    await _CLOSE.run(shard.redis.execute_command, [shard.fence], [generation, seen])


async def claim_gate(first: Shard, ledger: str, anew: bool = False) -> str:
    """Make this ledger the gate's, without `anew` unless it has one; return the one that it has.

    Raises RedisError.
    """
    async with first.redis.pipeline(transaction=False) as pipe:
        pipe.set(first.ledger, ledger, nx=not anew)
        pipe.get(first.ledger)
        _, owner = await pipe.execute()
    return str(owner.decode())


async def read_owner(first: Shard) -> str:
    """Return the identity of the ledger whose gate this is, "" if none has claimed it. Raises RedisError."""
    owner: Any = await first.redis.get(first.ledger)
    return (owner or b"").decode()


async def find_owner(first: Shard) -> str:
    """Return what read_owner does, "" also if the shard does not answer soon: it holds up no other shard."""
    with suppress(RedisError, OSError, TimeoutError):
        async with asyncio.timeout(_ANSWER_S):
            return await read_owner(first)
    return ""


async def forget_writers(shards: Iterable[Shard]) -> int:
    """Take writers that are gone out of the fences; return how many. Raises RedisError."""
    gone = 0
    for shard in shards:
        gone += await _FORGET_WRITERS.run(shard.redis.execute_command, [shard.fence], [_FORGOTTEN_MS])
    return gone


async def read_generations(shards: Sequence[Shard]) -> list[int]:
    """Return the generation of each shard, 0 if it is closed. Raises RedisError."""

    async def read(shard: Shard) -> int:
        async with shard.redis.pipeline(transaction=False) as pipe:
            pipe.hget(shard.fence, "open")
            [generation] = await ask_primary(pipe, shard)
        return int(generation or 0)

    return await ask_each(shards, read)


async def read_latest(shards: Sequence[Shard]) -> int:
    """Return the latest generation that closed shards know of. Raises RedisError."""

    async def read(shard: Shard) -> int:
        row: Any = await shard.redis.hmget(shard.fence, ["rebuilding", "seen"])
        return max(int(generation or 0) for generation in row)

    return max(await ask_each(shards, read))


async def read_copies(shards: Iterable[Shard]) -> list[Copy]:
    """Return what the last new servers had of these shards. Raises RedisError."""
    by_server: dict[bytes, Copy] = {}
    for shard in shards:
        told: Any = await shard.redis.hget(shard.fence, "copies")
        words: list[bytes] = (told or b"").replace(b",", b" ").split()
        # If a server came back, the latest time counts.
        times = {words[at]: (int(words[at + 1]), int(words[at + 2])) for at in range(len(words) - 3, -1, -3)}
        for server, (newest_ms, sells_ms) in times.items():
            other = by_server.get(server, Copy(set(), newest_ms, sells_ms))
            by_server[server] = Copy(
                {shard, *other.shards}, max(newest_ms, other.newest_ms), min(sells_ms, other.sells_ms)
            )
    return list(by_server.values())
