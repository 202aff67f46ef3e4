"""The backlog: purchases that the gate accepted, and that nobody has relayed or settled yet.

A stage that is there and does not work says so itself, in a key that soon expires. For one that is not there,
and for one that can't say anything, the age of what waits for it speaks.
"""

import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from engine.gate.client import Shard, ask_each
from engine.gate.keys import STAGES
from engine.gate.looks.reads import translate_errors

_SAMPLE: Final = 256
"""Pending batches of a shard that are watched: all of them, unless a crowd waits."""
_SAID_FOR_MS: Final = 5_000


class Backlog(NamedTuple):
    """What was accepted and waits."""

    outbox_s: float
    """Age of the oldest entry of the outboxes; 0 without any."""
    pending_s: float
    """For how long an order has been seen pending at most."""
    dead_letters: int
    """Dead letters of an engine without a bus."""
    ill: dict[str, "Illness"]
    """What stages say of themselves, by their names."""


class Illness(NamedTuple):
    """A stage does not work: for how many seconds, and what is wrong."""

    seconds: float
    text: str


class BacklogReads:
    """Looks at what waits, again and again, and remembers since when."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self._shards = shards
        self._seen: list[dict[bytes, float]] = [{} for _ in shards]
        """For each shard the pending batches that are watched, and when they were first seen.

        The time in their ids is that of another machine's clock.
        """

    async def look(self) -> Backlog:
        """Return what waits, in one round trip. Raises GateUnavailable."""
        with translate_errors():
            looks = await ask_each(self._shards, self._look_at)
        *_, dead_letters, said = looks[0]
        return Backlog(
            max(outbox_s for outbox_s, *_ in looks),
            max(pending_s for _, pending_s, *_ in looks),
            dead_letters,
            _read_illnesses(said),
        )

    async def _look_at(self, shard: Shard) -> tuple[float, float, int, Sequence[bytes | None]]:
        """Return ages of a shard's oldest entry and pending order, dead letters, and what stages say."""
        seen = self._seen[shard.shard]
        async with shard.redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.xrange(shard.outbox, count=1)
            pipe.hrandfield(shard.pending, _SAMPLE)
            pipe.hmget(shard.pending, [*seen] or [""])
            pipe.xlen(shard.dead)
            pipe.mget([shard.ill(stage) for stage in STAGES])
            (seconds, microseconds), entries, sample, watched, *rest = await pipe.execute()
        now_ms, now = seconds * 1000 + microseconds // 1000, time.monotonic()
        oldest_ms = min([now_ms, *(int(entry_id.partition(b"-")[0]) for entry_id, _ in entries)])
        pending_s = now - min([now, *self._watch(shard.shard, sample, watched, now)])
        return (now_ms - oldest_ms) / 1000, pending_s, *rest

    def _watch(self, number: int, sample: Any, watched: Sequence[bytes | None], now: float) -> list[float]:
        """Watch on those that are still pending, and others in place of the rest; return since when."""
        before = self._seen[number].items()
        seen = {stem: since for (stem, since), digits in zip(before, watched, strict=False) if digits}
        for stem in sample or ():
            if len(seen) < _SAMPLE:
                seen.setdefault(stem, now)
        self._seen[number] = seen
        return list(seen.values())


def _read_illnesses(values: Sequence[bytes | None]) -> dict[str, Illness]:
    found = {}
    for stage, value in zip(STAGES, values, strict=True):
        if value is not None:
            seconds, _, text = value.decode().partition(" ")
            found[stage] = Illness(float(seconds), text)
    return found


async def say_ill(shard: Shard, illnesses: dict[str, Illness]) -> None:
    """Tell the front doors in the first shard which stages don't work here. Raises RedisError."""
    for stage, illness in illnesses.items():
        await shard.redis.set(shard.ill(stage), f"{illness.seconds:.0f} {illness.text}", px=_SAID_FOR_MS)
