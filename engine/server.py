"""The server: starts the stages as processes, starts a dead one again, and stops all of them in order."""

import asyncio
import fcntl
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from itertools import chain, count
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import SettingsError
from engine.http.listener import Listeners, bind, turn_away
from engine.metrics import METRICS_FOLDER, METRICS_SLOT
from engine.settings import PREFIX, Settings
from engine.stages.lifecycle import running
from engine.stages.process import LEAVING, READY, RETIRE, Role
from engine.startup import prepare_stores, provide_services

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.1
_METRICS_PREFIX: Final = "flashgrid-metrics-"
_GROUP_S: Final = 0.5
"""By so much the server may hear of a signal later than its stages."""


async def serve(settings: Settings, roles: Collection[Role], on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP. Call `on_ready` with what is served, once all of it works.

    Raises FlashgridError if it can't start: the line names what is wrong.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Under nohup, a terminal that is closed stops nothing.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as cleanup:
        listeners = bind(settings) if Role.FRONT_DOOR in roles else Listeners([], [])
        cleanup.callback(listeners.close)
        if listeners.buyers and settings.admin_token is None:
            _log_access(settings)
        given, settings = settings, await provide_services(settings, roles, cleanup)
        await prepare_stores(settings, roles, bus_is_private=given.amqp_url is None)
        environment = _make_environment(settings, cleanup)
        stages = _start_stages(settings, roles, listeners, environment)
        # Each stage gets a little more than the time that it gives itself.
        cleanup.push_async_callback(_stop_in_order, stages, listeners, settings.drain_s + 5)

        async def announce() -> None:
            await asyncio.gather(*(stage.ready.wait() for stage in stages))
            on_ready(_describe(listeners, stages))

        async with running(announce()):
            await stop.wait()
        log.info("stopping")
        for stage in stages:
            stage.retire()
        await asyncio.sleep(settings.lame_duck_ms / 1000)
        await turn_away([*listeners.buyers, *listeners.operations])
    log.info("stopped")


class StageProcess:
    """One process of a stage. It starts again whenever it dies, and another replaces it when it leaves."""

    def __init__(
        self, role: Role, name: str, listeners: Sequence[Sequence[socket.socket]], environment: dict[str, str]
    ) -> None:
        """Start it; a front door, with sockets for buyers, its own one first, and for operations."""
        self.role = role
        self.name = name
        self.ready = asyncio.Event()
        self._descriptors = [[listener.fileno() for listener in kind] for kind in listeners]
        self._environment = environment
        self._running: dict[asyncio.subprocess.Process, asyncio.Task[int]] = {}
        """The processes in the order of their starts, each with the task that awaits its end.

        All but the last of them are leaving.
        """
        self._slots: dict[asyncio.subprocess.Process, int] = {}
        self._retiring = asyncio.Event()
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._keep_running(), name=name)

    def retire(self) -> None:
        """Tell it that the server stops soon: it is replaced no more if it wants to leave."""
        self._retiring.set()
        for process in self._running:
            _tell_to_retire(process)

    async def stop(self, within_s: float) -> None:
        """Ask it to finish its work and end; kill it if it takes longer."""
        self._stopping.set()
        for process in self._running:
            _tell_to_stop(process)
        try:
            await asyncio.wait_for(asyncio.shield(self._task), within_s)
        except TimeoutError:
            log.error("%s does not finish within %.0f s and is killed", self.name, within_s)
            for process in self._running:
                if process.returncode is None:
                    process.kill()
            await self._task

    async def _keep_running(self) -> None:
        pause_s = _FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while not self._stopping.is_set():
            started = loop.time()
            end = await self._run_once()
            if not self._stopping.is_set():
                # A process that dies young is started again after a longer and longer pause.
                pause_s = min(pause_s * 2, 5.0) if loop.time() - started < 5 else _FIRST_PAUSE_S
                log.warning("%s %s and is started again", self.name, end)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), pause_s)
        await asyncio.gather(*self._running.values())

    async def _run_once(self) -> str:
        """Start the process; return how it ended, or that it wants to leave."""
        # A stage can't start without the folder of its metrics, which a cleaner may have removed.
        os.makedirs(self._environment[METRICS_FOLDER], exist_ok=True)  # noqa: PTH103
        slot = next(number for number in count() if number not in self._slots.values())
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine.stages.process", self.role,
            *(" ".join(map(str, kind)) for kind in self._descriptors),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            # In one process group: who signals all of it at once leaves nothing behind.
            env=self._environment | {METRICS_SLOT: f"{self.name}.{slot}"},
            pass_fds=[*chain.from_iterable(self._descriptors)],
        )  # fmt: skip
        self._slots[process] = slot
        ended = self._running[process] = asyncio.create_task(self._await_end(process))
        if self._retiring.is_set():
            _tell_to_retire(process)
        if self._stopping.is_set():
            _tell_to_stop(process)
        while process.stdout and (line := await process.stdout.readline()):
            if line == LEAVING:
                # A signal to the whole process group reaches the server, too.
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._retiring.wait(), _GROUP_S)
                if not self._retiring.is_set():
                    return "is leaving"
            if line == READY:
                self.ready.set()
                for other in self._running:
                    if other is not process:
                        _tell_to_stop(other)
        code = await ended
        return f"ended ({f'signal {signal.Signals(-code).name}' if code < 0 else f'exit code {code}'})"

    async def _await_end(self, process: asyncio.subprocess.Process) -> int:
        code = await process.wait()
        del self._running[process], self._slots[process]
        return code


def _tell_to_stop(process: asyncio.subprocess.Process) -> None:
    """Close its standard input, at whose end a stage stops in order."""
    if process.stdin is not None:
        process.stdin.close()


def _tell_to_retire(process: asyncio.subprocess.Process) -> None:
    if process.stdin is not None and not process.stdin.is_closing():
        process.stdin.write(RETIRE)


def _make_environment(settings: Settings, cleanup: AsyncExitStack) -> dict[str, str]:
    """Return the stages' environment: every setting, and a folder for their metrics."""
    folder = _make_metrics_folder(settings, cleanup)
    given = {name: value for name, value in msgspec.structs.asdict(settings).items() if value is not None}
    return {
        # The settings hold all that variables and files of the server's own environment said.
        **{name: value for name, value in os.environ.items() if not name.startswith(PREFIX)},
        METRICS_FOLDER: folder,
        **{PREFIX + name.upper(): str(value) for name, value in given.items()},
    }


def _make_metrics_folder(settings: Settings, cleanup: AsyncExitStack) -> str:
    """Return a new folder where no cleaner of temporary files comes, if there is such a place to write to.

    Folders of servers that were killed are removed. Raises SettingsError if nothing can be written anywhere.
    """
    for place in (os.environ.get("XDG_RUNTIME_DIR"), settings.data_dir, "/tmp", "/dev/shm"):  # noqa: S108
        with suppress(OSError):
            if place:
                Path(place).mkdir(parents=True, exist_ok=True)
                for left in Path(place).glob(f"{_METRICS_PREFIX}*"):
                    with suppress(OSError), _lock(left):
                        shutil.rmtree(left)
                folder = tempfile.mkdtemp(prefix=_METRICS_PREFIX, dir=Path(place).resolve())
                cleanup.enter_context(_lock(Path(folder)))
                cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
                return folder
    raise SettingsError(f"no folder can be written to: set {PREFIX}DATA_DIR, or XDG_RUNTIME_DIR")


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold a folder for as long as the context lasts. Raises OSError if another process that lives does."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _log_access(settings: Settings) -> None:
    if settings.dev:
        log.warning("any program on this machine may open a sale: --dev is for development only")
    else:
        log.warning("nobody may open a sale: set %sADMIN_TOKEN, or serve with --dev", PREFIX)


def _start_stages(
    settings: Settings,
    roles: Collection[Role],
    listeners: Listeners,
    environment: dict[str, str],
) -> list[StageProcess]:
    buyers = listeners.buyers
    stages: dict[Role, dict[str, Sequence[Sequence[socket.socket]]]] = {
        Role.FRONT_DOOR: {
            f"front-door {number}": [
                [own, *(each for each in buyers if each is not own)],
                listeners.operations,
            ]
            for number, own in enumerate(buyers, start=1)
        },
        Role.RELAY: {"relay": []} if settings.amqp_url else {},
        Role.FULFILMENT: {"fulfilment": []},
    }
    return [
        StageProcess(role, name, sockets, environment)
        for role in Role
        if role in roles
        for name, sockets in stages[role].items()
    ]


async def _stop_in_order(stages: list[StageProcess], listeners: Listeners, within_s: float) -> None:
    """Stop stage after stage: no new purchases first, then each has what the one before it handed over."""
    for role in Role:
        ends = asyncio.gather(*(stage.stop(within_s) for stage in stages if stage.role is role))
        await asyncio.sleep(0)  # none of them starts a process any more
        # Else clients could connect, and nobody would ever answer them.
        listeners.close()
        await ends


def _describe(listeners: Listeners, stages: list[StageProcess]) -> str:
    running = ", ".join(stage.name for stage in stages)
    if not listeners.buyers:
        return running
    operations = [f"operations on {_url_of(listener)}" for listener in listeners.operations]
    return f"listening on {_url_of(listeners.buyers[0])} ({', '.join([running, *operations])})"


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
