"""Reading a store that may be down, stopped or cut off: it is read, or it is not; nothing else happens."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from engine.stages.lifecycle import cancel
from simulation.errors import Unreadable

T = TypeVar("T")


async def read_within(reading: Coroutine[Any, Any, T], timeout_s: float) -> T:
    """What `reading` returns. Raises Unreadable if it does not within `timeout_s`, for whatever reason.

    Client libraries raise errors of many kinds when a service dies under them, and aio_pika cancels whoever
    waits on a connection that it closes: so it runs as a task of its own, whose end is only looked at.
    """
    task = asyncio.ensure_future(reading)
    try:
        await asyncio.wait([task], timeout=max(timeout_s, 0.0))
        done = task.done()
    finally:
        await cancel(task)
    if not done:
        raise Unreadable("no answer in time")
    if task.cancelled():
        raise Unreadable("the connection was closed")
    if error := task.exception():
        raise Unreadable(f"{type(error).__name__}: {error}".rstrip(": ")) from error
    return task.result()
