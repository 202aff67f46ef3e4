"""Signals: what runs at the terminal stops what it started before it ends."""

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import click

from simulation.errors import RunError

T = TypeVar("T")


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`. SIGINT or SIGTERM cancels it, once, so that it stops what it started.

    Raises RunError if it was cancelled.
    """

    async def guarded() -> T:
        task = asyncio.ensure_future(work)

        def stop() -> None:
            # A second signal must not cut the stopping short.
            click.echo(f"flashsim: stopping{' already' * bool(task.cancelling())}", err=True)
            if not task.cancelling():
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise RunError("interrupted: there is no verdict") from None
