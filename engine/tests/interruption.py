"""Interrupts what connects and disconnects at every step, and finds the connections that it leaves open."""

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

from engine.tasks import cancel


async def interrupt_at_every_step(action: Callable[[], Awaitable[object]]) -> set[asyncio.Transport]:
    """Cancel the action at its first step, anew at its second one, and so on until it ends before.

    A step is a callback that the loop is given, be it for a task of the library's own. Returns the
    connections that were opened and are still open.
    """
    before = find_open()
    step = 0
    while await _interrupt(action, step):
        step += 1
    return find_open() - before


def find_open() -> set[asyncio.Transport]:
    """Every connection of this process that nobody has closed, also if nothing refers to it."""
    found = [each for each in gc.get_objects() if isinstance(each, asyncio.Transport)]
    return {transport for transport in found if not transport.is_closing()}


async def _interrupt(action: Callable[[], Awaitable[object]], step: int) -> bool:
    """Start the action and cancel it at this step; return whether it came so far."""
    loop = asyncio.get_running_loop()
    call_soon = loop.call_soon
    task = asyncio.ensure_future(action())
    steps = 0

    def count(*arguments: Any, **options: Any) -> asyncio.Handle:
        nonlocal steps
        if steps == step:
            call_soon(task.cancel)
        steps += 1
        return call_soon(*arguments, **options)

    loop.call_soon = count  # type: ignore[assignment, method-assign]
    try:
        await asyncio.wait({task})
    finally:
        del loop.call_soon
        await cancel(task)
    return steps > step
