"""How a stage lives: it outlasts outages, pauses when it is asked to, and ends in order."""

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Final

from prometheus_client import Gauge
from redis.exceptions import RedisError

from engine.errors import FlashgridError

log = logging.getLogger(__name__)

_FIRST_DELAY_S: Final = 0.05
_LONGEST_DELAY_S: Final = 2.0
_CANCEL_S: Final = 2.0
_SAMPLE_S: Final = 1.0


class Outage:
    """A time in which something does not work: it logs one line when it begins and one when it ends."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0

    async def wait(self, error: BaseException) -> None:
        """Wait after a failure: twice as long as the last time up to 2 s, less up to a half at random."""
        if not self._failures:
            log.warning("%s is interrupted and tries again until it works: %s", self._what, error)
        delay_s = min(_FIRST_DELAY_S * 2 ** min(self._failures, 10), _LONGEST_DELAY_S)
        self._failures += 1
        await asyncio.sleep(delay_s * random.uniform(0.5, 1))

    def end(self) -> None:
        """Note that it works."""
        if self._failures:
            log.info("%s works again", self._what)
            self._failures = 0


class Pause:
    """Lets one task make another one rest."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._over.set()
        self._resting = asyncio.Event()

    async def begin(self) -> None:
        """Ask the other task to rest; return once it does."""
        self._over.clear()
        await self._resting.wait()

    def end(self) -> None:
        """Let the other task go on."""
        self._over.set()

    @property
    def wanted(self) -> bool:
        """Whether the task should rest as soon as it can."""
        return not self._over.is_set()

    async def rest(self, stop: asyncio.Event) -> None:
        """Rest until the pause ends or `stop` is set."""
        self._resting.set()
        waiting = [asyncio.create_task(event.wait()) for event in (self._over, stop)]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*waiting)
            self._resting.clear()


async def drain(work: Coroutine[Any, Any, None], stop: asyncio.Event, drain_s: float) -> None:
    """Run `work`, which ends by itself after `stop` is set; cancel it if that takes longer than `drain_s`.

    Raises what `work` raises.
    """
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
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
    """Keep a metric up to date forever, as far as its store answers."""
    while True:
        with contextlib.suppress(FlashgridError, RedisError):
            gauge.set(await read())
        await asyncio.sleep(_SAMPLE_S)


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their end, whatever it is.

    A client library may lose a cancellation: before Python 3.12, asyncio.wait_for does if what it waits for
    is done at that moment, and aiormq closes every channel by one. So a cancellation without effect is
    repeated.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_CANCEL_S)
    await asyncio.gather(*tasks, return_exceptions=True)
