"""Keeps time for the open loop, exact to some microseconds, while the processor idles in between.

An event loop's own timers are too coarse: uvloop counts in whole milliseconds. On Linux a timer of the kernel
(timerfd_create(2)) wakes the loop instead, as a file that becomes readable. Python offers it from 3.13 on, so
it is called by its C name. Elsewhere the loop's timers have to do.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

Ring = Callable[[], None]
Arm = Callable[[int], None]
"""Has a timer ring at a moment, in ns on time.monotonic_ns()."""

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
IS_EXACT: Final = hasattr(_LIBC, "timerfd_create")
"""Whether this system has such timers."""
_NONBLOCK_CLOEXEC: Final = os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0)
_ABSOLUTE: Final = 1
COARSE_S: Final = 0.001
"""Shortest wait by the loop's timers."""


async def pace(beat: Callable[[], int | None], exact: bool = IS_EXACT) -> None:
    """Call `beat` now and then at each moment that it returns, in ns on time.monotonic_ns(); until it returns
    None. What it raises is raised here. Without `exact` it is called a millisecond or two too late, or a part
    of one too soon.
    """
    over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ring() -> None:
        if over.done():
            return
        try:
            at_ns = beat()
        except Exception as error:
            over.set_exception(error)
            return
        if at_ns is None:
            over.set_result(None)
        else:
            arm(at_ns)

    with (_set_exactly if exact else _set_roughly)(ring) as arm:
        ring()
        await over


@contextmanager
def _set_exactly(ring: Ring) -> Iterator[Arm]:
    """Open a timer of the kernel, which rings until the end of the block."""
    loop = asyncio.get_running_loop()
    timer = _LIBC.timerfd_create(time.CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
    if timer < 0:
        raise OSError(ctypes.get_errno(), "can't make a timer")
    # struct itimerspec: the interval, which is none, and the moment, each in seconds and nanoseconds.
    moment: Any = (ctypes.c_long * 4)()

    def arm(at_ns: int) -> None:
        moment[2], moment[3] = divmod(at_ns, 1_000_000_000)
        # A timer that is set anew is no longer readable.
        _LIBC.timerfd_settime(timer, _ABSOLUTE, moment, None)

    loop.add_reader(timer, ring)
    try:
        yield arm
    finally:
        loop.remove_reader(timer)
        os.close(timer)


@contextmanager
def _set_roughly(ring: Ring) -> Iterator[Arm]:
    """Let the event loop's timers ring."""
    loop = asyncio.get_running_loop()

    def arm(at_ns: int) -> None:
        # uvloop rounds less than a millisecond down to none, and would spin.
        loop.call_later(max((at_ns - time.monotonic_ns()) / 1e9, COARSE_S), ring)

    yield arm
