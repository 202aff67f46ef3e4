"""How a stage lives: it outlasts outages, pauses when it is asked to, and ends in order."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from prometheus_client import Gauge
from redis.exceptions import RedisError

from engine.errors import FlashgridError
from engine.gate.client import Shard
from engine.gate.looks.backlog import Illness, say_ill
from engine.tasks import cancel

log = logging.getLogger(__name__)


class Outage:
    """A time in which something does not work: it logs one line when it begins and one when it ends."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0
        self._failing = 0
        """Steps that are repeated until they work."""
        self._since = 0.0
        self.error: BaseException | None = None
        """The latest failure; None while it works."""

    @property
    def lasts_s(self) -> float:
        """How long it has not worked; 0 while it does."""
        return time.monotonic() - self._since if self._failures else 0.0

    async def wait(self, error: BaseException, failures: int | None = None) -> None:
        """Wait after a failure: twice as long as the last time up to 2 s, less up to a half at random.

        `failures` are those before, unless what works ends an outage.
        """
        self.error = error
        if not isinstance(error, (FlashgridError, RedisError, OSError)):
            log.error("%s failed", self._what, exc_info=error)
        elif not self._failures:
            said = str(error) or type(error).__name__
            log.warning("%s does not work and is tried again: %s", self._what, said)
        delay_s = min(0.05 * 2 ** min(self._failures if failures is None else failures, 10), 2)
        if not self._failures:
            self._since = time.monotonic()
        self._failures += 1
        await asyncio.sleep(delay_s * random.uniform(0.5, 1))

    async def insist(
        self, step: Callable[[], Awaitable[Any]], errors: tuple[type[Exception], ...] = (Exception,)
    ) -> None:
        """Repeat a step until it raises none of these errors; the outage lasts while any step is repeated."""
        failures = 0
        try:
            while True:
                try:
                    await step()
                    break
                except errors as error:
                    self._failing += not failures
                    failures += 1
                    await self.wait(error, failures - 1)
        finally:
            self._failing -= failures > 0
        if not self._failing:
            self.end()

    def end(self) -> None:
        """Note that it works."""
        if self._failures:
            log.info("%s works again", self._what)
            self._failures = 0
            self.error = None


class Pause:
    """Lets one task make another one rest."""

    def __init__(self) -> None:
        self.wanted = False
        """Whether the other task should rest as soon as it can."""
        self._resting = asyncio.Event()

    async def begin(self) -> None:
        """Ask the other task to rest; return once it does."""
        self.wanted = True
        await self._resting.wait()

    def end(self) -> None:
        """Let the other task go on."""
        self.wanted = False

    async def rest(self, stop: asyncio.Event) -> None:
        """Rest until the pause ends or `stop` is set."""
        self._resting.set()
        while self.wanted and not stop.is_set():  # noqa: ASYNC110 (either of two ends it)
            await asyncio.sleep(0.02)
        self._resting.clear()


async def drain(work: Coroutine[Any, Any, None], stop: asyncio.Event, drain_s: float) -> None:
    """Run `work`, which ends by itself after `stop` is set; cancel it if that takes longer than `drain_s`.

    Raises what `work` raises.
    """
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({task}, timeout=drain_s)
        if task.done():
            task.result()
        else:
            log.warning("work is left after %g s of draining; it is kept for the next start", drain_s)
    finally:
        await cancel(task, stopped)


@asynccontextmanager
async def running(*background: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run coroutines that never end by themselves for as long as the context lasts."""
    tasks = [asyncio.create_task(work) for work in background]
    try:
        yield
    finally:
        await cancel(*tasks)


async def sample(gauge: Gauge, read: Callable[[], Awaitable[int]]) -> None:
    """Set a metric once a second, as far as its store answers."""
    while True:
        with suppress(FlashgridError, RedisError):
            gauge.set(await read())
        await asyncio.sleep(1)


async def report(shard: Shard, find_illnesses: Callable[[], dict[str, Illness]]) -> None:
    """Tell the front doors once a second what does not work here, as far as Redis takes it."""
    while True:
        with suppress(RedisError):
            await say_ill(shard, find_illnesses())
        await asyncio.sleep(1)
