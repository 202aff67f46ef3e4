"""The processes of an engine that is not ours: the run starts them, and starts one again when it dies."""

import asyncio
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import psutil

from engine.local.ports import free_port
from engine.local.process import ProcessId, family, identify, kill_group, send_signal, survivors, wait_until
from engine.local.stack import read_tail
from engine.tasks import cancel
from simulation.errors import EngineError
from simulation.target.foreign.description import Program
from simulation.target.services import Services

START_S: Final = 60.0
"""Longest time until the front door listens."""
STOP_S: Final = 10.0
"""Longest time for a process to end in order; then it is killed."""
AGAIN_S: Final = 0.2
"""Time from the death of a process to its next start, as a supervisor has it."""
RESET_S: Final = 300.0
"""Longest time of the reset."""
FIRST: Final = " 1"


class Programs:
    """The running processes of an engine; to faults and probes they look like the stages of ours."""

    admin_token: str | None = None
    pids: tuple[int, ...] = ()
    """It has no server above its processes."""

    def __init__(self, programs: Sequence[Program], services: Services, log: Path) -> None:
        port = free_port()
        self.urls = (f"http://127.0.0.1:{port}",)
        self.log = log
        self.sizes = Counter(program.name for program in programs)
        self._port = port
        self._pids = services.pids
        self._output = log.open("wb")
        values = {  # those of description.FILLED
            "port": str(port),
            "python": sys.executable,
            "redis_url": services.redis_url,
            "postgres_url": services.postgres_url,
            "amqp_url": services.amqp_url or "",
        }
        self._commands = {program.name: fill_command(program.command, values) for program in programs}
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def death(self) -> str | None:
        """None: what dies is started again."""
        return None

    def find_stage(self, role: str) -> list[ProcessId]:
        """Return the running process of that name, and what it started: it may be a shell."""
        process = self._running.get(role)
        if process is None or process.returncode is not None:
            return []
        try:
            return family(identify(process.pid))
        except psutil.NoSuchProcess:
            return []

    async def start(self) -> None:
        """Start all processes and wait until the front door listens. Raises EngineError."""
        self._tasks = [
            asyncio.create_task(self._keep_running(name, command)) for name, command in self._commands.items()
        ]
        until_s = time.monotonic() + START_S
        while not _is_open(self._port):
            if failed := [task for task in self._tasks if task.done()]:
                failed[0].result()
            if time.monotonic() > until_s:
                raise EngineError(f"the engine does not listen on port {self._port}{read_tail(self.log)}")
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Stop all processes in order, with all that they started."""
        await cancel(*self._tasks)
        processes = [*self._running.values()]
        members = [member for role in self._running for member in self.find_stage(role)]
        for number in (signal.SIGCONT, signal.SIGTERM):
            send_signal(members, number)
        # asyncio reaps the processes that it has started.
        others = [member for member in members if member.pid not in {process.pid for process in processes}]
        await wait_until(
            lambda: all(each.returncode is not None for each in processes) and not survivors(others), STOP_S
        )
        send_signal(members, signal.SIGKILL)
        for process in processes:
            kill_group(process.pid)
            await process.wait()
        await wait_until(lambda: not survivors(others), STOP_S)
        self._output.close()

    async def _keep_running(self, name: str, command: list[str]) -> None:
        while True:
            spawning = asyncio.create_task(self._spawn(name, command))
            try:
                process = await asyncio.shield(spawning)
            except asyncio.CancelledError:
                # It runs by now, perhaps, and has to be known to be stopped.
                await asyncio.wait([spawning])
                raise
            await process.wait()
            # What it leaves would keep the port.
            kill_group(process.pid)
            await asyncio.sleep(AGAIN_S)

    async def _spawn(self, name: str, command: list[str]) -> asyncio.subprocess.Process:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,
            )
        except OSError as error:
            raise EngineError(f"processes: {name}: {command[0]}: {error.strerror or error}") from None
        self._running[name] = process
        self._pids[name + FIRST if name == "front-door" else name] = process.pid
        return process


@asynccontextmanager
async def start_programs(
    programs: Sequence[Program], services: Services, log: Path
) -> AsyncIterator[Programs]:
    """Start an engine's processes on these services; they are stopped with the block. Raises EngineError."""
    running = Programs(programs, services, log)
    try:
        await running.start()
        yield running
    finally:
        await running.stop()


def fill_command(command: str, values: Mapping[str, str]) -> list[str]:
    """Return the words of a command, with a value for each name in braces. Raises EngineError."""
    try:
        return [word.format_map(values) for word in shlex.split(command)]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise EngineError(f"{command}: {error} can't be filled in; there are {known}") from None


async def reset_engine(command: str) -> None:
    """Do the command that makes the engine as new. Raises EngineError if it fails."""
    if failure := await try_command(command, RESET_S):
        raise EngineError(f"reset: {command}: {failure}")


async def try_command(command: str, within_s: float) -> str | None:
    """Do a command of the user's own; return what went wrong, None if nothing did.

    What it leaves running in the background goes on. A command that has not ended in time, or when the run is
    cancelled, is killed with all that it started.
    """
    with tempfile.TemporaryFile() as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *(shlex.split(command) or [""]),
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return str(error)
        try:
            async with asyncio.timeout(within_s):
                await process.wait()
        except TimeoutError:
            return f"has not ended after {within_s:g} s"
        finally:
            if process.returncode is None:
                kill_group(process.pid)
        if process.returncode:
            output.seek(0)
            said = output.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            return f"ended with code {process.returncode}: {said[-1]}"
    return None


def _is_open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
