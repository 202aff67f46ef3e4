"""A child process that sends requests, seen from its parent (Child) and from inside (Parent).

The two talk in lines: the parent writes a job as JSON to the child's standard input, and perhaps more lines;
the child writes its own to standard output. When its input ends, the parent is gone and the child ends.
"""

import asyncio
import contextlib
import os
import select
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import IO, Any, Final, NamedTuple, cast

import msgspec

from simulation.errors import DriverError

STOP_S: Final = 5.0
"""Longest time in which a child must end once its parent is gone; after it, it is killed."""


class Child(NamedTuple):
    """A child process, seen from its parent."""

    process: asyncio.subprocess.Process
    title: str
    errors: IO[bytes]
    """What it writes to its standard error."""

    async def tell(self, line: bytes) -> None:
        """Send a line. A child that has died is noticed when its parent listens."""
        stdin = cast(asyncio.StreamWriter, self.process.stdin)
        with contextlib.suppress(ConnectionError):
            stdin.write(line + b"\n")
            await stdin.drain()

    async def hear(self) -> bytes:
        """Return its next line; empty when it says no more."""
        return await cast(asyncio.StreamReader, self.process.stdout).readline()

    async def expect(self) -> bytes:
        """Return its next line. Raises DriverError if it ends instead."""
        if line := await self.hear():
            return line
        raise await self._failure()

    async def await_end(self) -> None:
        """Wait until it ends. Raises DriverError, with its last words, unless it ends in order."""
        if await self.process.wait() != 0:
            raise await self._failure()

    async def _failure(self) -> DriverError:
        code = await self.process.wait()
        self.errors.seek(0)
        said = self.errors.read().decode(errors="replace").strip().splitlines()
        return DriverError(f"{self.title} ended with code {code}: {said[-1] if said else 'it said nothing'}")


@asynccontextmanager
async def start_child(module: str, title: str, job: msgspec.Struct) -> AsyncIterator[Child]:
    """Start a process that runs `module` and give it its job; let it end after the block, or kill it."""
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", module,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        try:
            child = Child(process, title, errors)
            await child.tell(msgspec.json.encode(job))
            yield child
        finally:
            cast(asyncio.StreamWriter, process.stdin).close()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.communicate()
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.communicate()


async def run_together(*work: Coroutine[Any, Any, Any]) -> list[Any]:
    """Return the results of all of `work`; the first error cancels the rest and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
        return [task.result() for task in tasks]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


class Parent:
    """The parent process, seen from its child. Works in every event loop, since it needs none."""

    _heard = b""

    def hear(self, wait_s: float | None = None) -> bytes:
        """Return the next line; nothing if none comes within `wait_s`, which is no limit unless it is given.

        Ends the process when the parent is gone.
        """
        stdin = sys.stdin.fileno()
        while b"\n" not in self._heard and select.select([stdin], [], [], wait_s)[0]:
            data = os.read(stdin, 65_536)
            if not data:
                sys.exit()
            self._heard += data
        if b"\n" not in self._heard:
            return b""
        line, _, self._heard = self._heard.partition(b"\n")
        return line

    def say(self, line: bytes) -> None:
        """Send a line; it is left out if the parent is too slow to read, which must not stop the load."""
        # A line shorter than PIPE_BUF is written whole or not at all.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(sys.stdout.fileno(), line + b"\n")


def run_child(work: Callable[[Parent], None]) -> None:
    """Do the work of a child process; a DriverError is its last word."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    os.set_blocking(sys.stdout.fileno(), False)
    try:
        work(Parent())
    except DriverError as error:
        sys.exit(str(error))
