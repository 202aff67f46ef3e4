"""Work in the background of a load, at moments counted from the run's start."""

import asyncio
import time
from typing import Self

from engine.tasks import cancel


class Background:
    """Runs `_run` from `async with` to its end, and cancels what is left of it there.

    The run's start is not known at first: the driver chooses it once it is ready.
    """

    def __init__(self) -> None:
        self._t0_ns = 0
        self._begun = asyncio.Event()

    def begin(self, t0_ns: int) -> None:
        """Take the run's start, on time.monotonic_ns()."""
        self._t0_ns = t0_ns
        self._begun.set()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(self._task)

    def _seconds(self) -> float:
        """Return the seconds since the run's start."""
        return (time.monotonic_ns() - self._t0_ns) / 1e9

    async def _run(self) -> None:
        raise NotImplementedError
