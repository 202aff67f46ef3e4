"""A private engine: `flashgrid serve` as a process, and private services for it."""

import asyncio
import contextlib
import os
import re
import secrets
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
import psutil

from engine.local.machines import Network
from engine.local.process import (
    HERE,
    Machine,
    ProcessId,
    enter,
    family,
    freeze_processes,
    identify,
    kill_processes,
    send_signal,
    survivors,
    wait_until,
)
from engine.local.stack import CLUSTER, SERVICES, read_tail, start_stack
from engine.settings import PREFIX
from simulation.errors import EngineError
from simulation.scenario.fault import STAGES
from simulation.scenario.schema import Topology
from simulation.target.process_meter import stage_of
from simulation.target.services import Services, services_of

START_S: Final = 90.0
"""Longest time until a started engine is ready."""
SETTLE_S: Final = 5.0
"""Longest time for each stage to finish its work when the engine stops; a run has drained by then."""
POLL_S: Final = 0.05
_LISTENING: Final = re.compile(r"^flashgrid: listening on (http://\S+)", re.MULTILINE)


@asynccontextmanager
async def private_services(say: Callable[[str], None], machines: int = 1) -> AsyncIterator[Services]:
    """Start services of so many machines in a temporary folder; both end with the block.

    `say` is told what is missing. Raises StackError.
    """
    with tempfile.TemporaryDirectory(prefix="flashsim-", ignore_cleanup_errors=True) as folder:
        stack = await start_stack(Path(folder), CLUSTER if machines > 1 else SERVICES)
        try:
            for note in stack.notes:
                say(note)
            yield services_of(stack)
        finally:
            await stack.stop()


class EngineProcess:
    """An engine of a run's own.

    `settings` are all of its settings, by name. `number` tells it from engines beside it, on machines of a
    topology. `code` is the folder of another copy of the package, which then runs instead.
    """

    service = "engine"

    def __init__(
        self,
        settings: Mapping[str, Any],
        log: Path,
        code: Path | None,
        number: int,
        machines: Sequence[Machine],
        roles: Sequence[str] = (),
    ) -> None:
        self.url = ""
        self.admin_token: str | None = settings["admin_token"]
        self.log = log
        self.name = f"engine {number}"
        self.machine = (number - 1) % len(machines) + 1
        """The number of its machine."""
        self.sizes: Counter[str] = Counter()
        """Number of processes of each stage, once the engine is ready."""
        self._machine = machines[self.machine - 1]
        self._settings = {"host": self._machine.address, **settings}
        self._code = code
        self._roles = roles
        log.unlink(missing_ok=True)
        self._process: asyncio.subprocess.Process
        self._stages: set[ProcessId] = set()
        """All processes that the server was seen to start: they outlive a killed server for a while."""

    @property
    def pid(self) -> int:
        """The server's process."""
        return self._process.pid

    @property
    def death(self) -> str | None:
        """How the server ended; None while it runs."""
        code = self._process.returncode
        if code is None:
            return None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def find_stage(self, role: str) -> list[ProcessId]:
        """Return the running processes of a stage."""
        children = psutil.Process(self.pid).children() if self.death is None else []
        return [ProcessId(child.pid, child.create_time()) for child in children if stage_of(child) == role]

    async def start(self) -> None:
        """Start it again, at the same address, and wait until it is ready. Raises EngineError."""
        await self.launch()
        await self.await_ready()

    async def launch(self) -> None:
        """Start its server."""
        # The shell may hold settings of another engine; they are not for this one.
        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        given = {name: value for name, value in self._settings.items() if value is not None}
        environment |= {PREFIX + name.upper(): str(value) for name, value in given.items()}
        with self.log.open("ab") as output:
            self._process = await asyncio.create_subprocess_exec(
                *enter(self._machine),
                sys.executable, "-c", "from engine.cli import main; main()", "serve",
                *(f"--role={role}" for role in self._roles),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                # In its own session Ctrl-C does not reach it: the run does, and stops the engine in order.
                env=environment, start_new_session=True,
                # Python finds a package first in the folder where it starts; the stages start there, too.
                cwd=self._code,
            )  # fmt: skip

    async def kill(self) -> None:
        """Send SIGKILL to all of its processes."""
        self._remember()
        await kill_processes([*self._find_server(), *self._stages])
        await self._process.wait()

    def freeze(self) -> None:
        """Send SIGSTOP to all of its processes."""
        freeze_processes([*self._find_server(), *self._stages])
        self._remember()

    def thaw(self) -> None:
        """Let all of its processes go on."""
        send_signal([*self._find_server(), *self._stages], signal.SIGCONT)

    def _find_server(self) -> list[ProcessId]:
        return [identify(self.pid)] if self.death is None else []

    async def stop(self) -> None:
        """Stop it in order, and kill what is left after its time to finish."""
        self._remember()
        # Three kinds of stage stop one after the other; the server grants each some time more.
        allowed_s = 3 * (float(self._settings["drain_s"]) + 5) + 5
        if self.death is None:
            self._process.terminate()
        await wait_until(lambda: self.death is not None and not survivors(self._stages), allowed_s)
        if self.death is None:
            self._process.kill()
        await self._process.wait()
        await kill_processes(self._stages)

    async def await_ready(self) -> None:
        """Wait until it answers /readyz with 200. Raises EngineError with the end of its log."""
        deadline = time.monotonic() + START_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not await self._is_ready(session):
                if self.death:
                    raise EngineError(f"the engine does not start ({self.death}){read_tail(self.log)}")
                if time.monotonic() > deadline:
                    raise EngineError(f"the engine is not ready after {START_S:.0f} s{read_tail(self.log)}")
                await asyncio.sleep(POLL_S)
        self._settings["port"] = urlsplit(self.url).port
        self.sizes = Counter({role: len(self.find_stage(role)) for role in STAGES})
        self._remember()

    async def _is_ready(self, session: aiohttp.ClientSession) -> bool:
        if found := _LISTENING.search(self.log.read_text(errors="replace")):
            self.url = found[1]
            with contextlib.suppress(aiohttp.ClientError, TimeoutError):
                async with session.get(f"{self.url}/readyz") as answer:
                    return answer.status == 200
        return False

    def _remember(self) -> None:
        if self.death is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._stages.update(family(identify(self.pid))[1:])


class Engines:
    """Engines beside each other; to faults and probes they are one."""

    def __init__(self, engines: Sequence[EngineProcess]) -> None:
        self.each = engines
        self.urls = tuple(engine.url for engine in engines)
        self.admin_token = engines[0].admin_token
        self.sizes = sum((engine.sizes for engine in engines), Counter[str]())

    @property
    def pids(self) -> tuple[int, ...]:
        """The servers' processes."""
        return tuple(engine.pid for engine in self.each)

    @property
    def death(self) -> str | None:
        """How the first of those that ended did so; None while all run."""
        return next((engine.death for engine in self.each if engine.death), None)

    def find_stage(self, role: str) -> list[ProcessId]:
        """Return the running processes of a stage."""
        return [process for engine in self.each for process in engine.find_stage(role)]


@asynccontextmanager
async def start_engines(
    services: Services,
    topology: Topology,
    settings: Mapping[str, Any],
    log: Path,
    code: Path | None = None,
) -> AsyncIterator[Engines]:
    """Start the engines of a topology, all at once, as `start_engine` does; they are stopped with the block.

    The output of the second one goes beside `log`, to engine-2.log and so on. Raises EngineError.
    """
    settings = {
        "admin_token": None if settings.get("dev") else secrets.token_hex(16),
        "gate_shards": topology.shards,
        "gate_copies": topology.copies,
        **settings,
    }
    logs = [log, *(log.with_stem(f"{log.stem}-{number}") for number in range(2, topology.front_doors + 1))]
    async with AsyncExitStack() as running:
        try:
            async with asyncio.TaskGroup() as group:
                starting = [
                    group.create_task(
                        running.enter_async_context(start_engine(services, settings, each, code, number))
                    )
                    for number, each in enumerate(logs, start=1)
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        yield Engines([task.result() for task in starting])


@asynccontextmanager
async def start_engine(
    services: Services,
    settings: Mapping[str, Any],
    log: Path,
    code: Path | None = None,
    number: int = 1,
    roles: Sequence[str] = (),
) -> AsyncIterator[EngineProcess]:
    """Start an engine on a free port and wait until it is ready; it is stopped with the block.

    `settings` are the engine's, by name. Its output goes to `log`. `code` is the folder of another copy of
    the package, which then runs instead. `number` decides on which of several machines it runs. `roles` are
    the stages that it serves; none: all. Raises EngineError.
    """
    wanted = {
        "port": 0,
        "admin_token": None if settings.get("dev") else secrets.token_hex(16),
        "drain_s": SETTLE_S,
        **settings,
        "redis_url": services.redis_url,
        "postgres_url": services.postgres_url,
        "amqp_url": services.amqp_url,
    }
    machines = Network(services.stack.data_dir).machines if services.stack else [HERE]
    engine = EngineProcess(wanted, log, code, number, machines, roles)
    await engine.launch()
    try:
        await engine.await_ready()
        yield engine
    finally:
        await engine.stop()
