"""The gate's mark: how anyone tells that the gate remembers what it has answered.

Each shard holds a hash, its mark, which the gate's scripts read with every batch:

    open        the generation; absent while the gate is closed, and where Redis has lost everything
    <writer>    number of the last write of each process that writes to the shard
    rebuilding  the generation of whoever rebuilds the shard
    newest      acceptance time of the newest order known when it was rebuilt, Unix milliseconds

What is noticed by what:

- A Redis that was wiped has no mark, so the scripts refuse.
- A Redis restored from an older copy, or a replica that lagged when it took over, has a mark, but lacks a
  write that some process has had an answer to. Every process remembers the number of its own last answered
  write and sends it along; a script that finds a smaller one closes the shard for everybody. A counter that
  all writers share could not show this: others may have moved it on since.
- A copy from before the last rebuild has an older generation than processes, or PostgreSQL, have seen.
- A copy that is older than what anybody alive has seen is compared with the ledger, by reconciliation.py.

A Redis that was restarted with its data intact passes all of these. What nothing notices the ledger's guard
stops: such a purchase ends REJECTED.
"""

import os
from collections.abc import Iterable
from typing import Final

from redis.asyncio import Redis

from engine.gate.keys import ShardKeys

CLOSED: Final = "CLOSED"
"""First word of a script's error where the gate is closed, or just closed itself."""


class Witness:
    """What this process has seen of one shard: the generation, and the number of its own last write there."""

    def __init__(self) -> None:
        self._writer = os.urandom(8).hex()
        self._generation = 0
        self._writes = 0

    @property
    def testimony(self) -> tuple[str, int, int]:
        """What a script wants to know: writer, generation, number of its last write."""
        return self._writer, self._generation, self._writes

    def note(self, generation: int, writes: int) -> None:
        """Remember what a script answered; answers may come in any order."""
        self._generation, self._writes = max((self._generation, self._writes), (generation, writes))


async def read_generations(redis: Redis, shards: Iterable[ShardKeys]) -> list[int]:
    """The generation of each shard, 0 where it is closed. Raises RedisError."""
    async with redis.pipeline(transaction=False) as pipe:
        for shard in shards:
            pipe.hget(shard.mark, "open")
        return [int(generation or 0) for generation in await pipe.execute()]
