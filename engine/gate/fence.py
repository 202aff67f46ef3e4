"""The fence: how anyone tells that the gate remembers what it has answered.

Each shard holds a hash, its fence, which the gate's scripts read with every batch:

    open        the generation; absent while the gate is closed, and after Redis has lost everything
    <writer>    number of the last write of each process that writes to the shard
    rebuilding  the generation of the process that rebuilds the shard
    newest      acceptance time of the newest order known when it was rebuilt, Unix milliseconds
    doubt       when it was rebuilt, Unix milliseconds; absent once no order from before can be under way of
                which the shard knows nothing

How each loss is noticed:

- A Redis that was wiped has no fence, so the scripts refuse.
- A Redis restored from an older copy, or a replica that lagged when it took over, has a fence, but lacks a
  write that some process has had an answer to. Every process remembers the number of its own last answered
  write and sends it along; a script that finds a smaller one closes the shard for everybody. A counter that
  all writers share could not show this: others may have moved it on since.
- A copy from before the last rebuild has an older generation than processes, or PostgreSQL, have seen.
- A copy older than what any running process has seen is compared with the ledger (reconciliation.py).

A Redis that was restarted with its data intact passes all of these. A loss that nothing notices meets the
ledger's guard: such a purchase ends REJECTED.
"""

import os
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import ReadOnlyError, RedisError

from engine.gate.keys import ShardKeys


class Fence:
    """What this process has seen of one shard: the generation, and the number of its own last write there."""

    def __init__(self) -> None:
        self.writer = os.urandom(8).hex()
        self.seen = (self.writer, 0, 0)
        """What the scripts compare with: writer, generation, number of its last write."""

    def note(self, generation: int, writes: int) -> None:
        """Remember what a script answered; answers may come in any order."""
        self.seen = max(self.seen, (self.writer, generation, writes))


async def ask_primary(pipe: Pipeline, shard: ShardKeys) -> list[Any]:
    """Return the answers to the commands in a pipeline. Raises RedisError.

    A write that changes nothing follows them: a demoted primary, whose memory is out of date, refuses it.
    """
    pipe.hdel(shard.fence, "")
    *answers, written = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, RedisError):
            raise answer
    if isinstance(written, ReadOnlyError):
        raise written
    return answers


async def read_generations(redis: Redis, shards: Sequence[ShardKeys]) -> list[int]:
    """Return the generation of each shard, 0 if it is closed. Raises RedisError."""
    async with redis.pipeline(transaction=False) as pipe:
        for shard in shards:
            pipe.hget(shard.fence, "open")
        return [int(generation or 0) for generation in await ask_primary(pipe, shards[0])]
