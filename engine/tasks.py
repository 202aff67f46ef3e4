"""How a task of asyncio is ended."""

import asyncio
from typing import Any


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
        _, pending = await asyncio.wait(pending, timeout=2)
    await asyncio.gather(*tasks, return_exceptions=True)
