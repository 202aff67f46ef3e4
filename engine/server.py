"""The server: starts the stages as processes, starts a dead one again, and stops all of them in order."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Collection
from contextlib import AsyncExitStack, suppress
from typing import Final

import msgspec
from prometheus_client.multiprocess import mark_process_dead

from engine.http.listener import bind
from engine.settings import PREFIX, Settings
from engine.stages.lifecycle import running
from engine.stages.process import LEAVING, READY, Role
from engine.startup import prepare_stores, provide_services

log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.1


async def serve(settings: Settings, roles: Collection[Role], on_ready: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. Call `on_ready` with what is served, once all of it works.

    Raises FlashgridError if it can't start: the line names what is wrong.
    """
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with AsyncExitStack() as cleanup:
        listener = cleanup.enter_context(bind(settings)) if Role.FRONT_DOOR in roles else None
        settings = await provide_services(settings, roles, cleanup)
        await prepare_stores(settings)
        environment = _make_environment(settings, cleanup)
        stages = _start_stages(settings, roles, listener, environment)
        # Each stage gets a little more than the time that it gives itself.
        cleanup.push_async_callback(_stop_in_order, stages, settings.drain_s + 5)

        async def announce() -> None:
            await asyncio.gather(*(stage.ready.wait() for stage in stages))
            on_ready(_describe(listener, stages))

        async with running(announce()):
            await stop.wait()
        log.info("stopping")
    log.info("stopped")


class StageProcess:
    """One process of a stage. It starts again whenever it dies, and another replaces it when it leaves."""

    def __init__(
        self, role: Role, name: str, listener: socket.socket | None, environment: dict[str, str]
    ) -> None:
        self.role = role
        self.name = name
        self.ready = asyncio.Event()
        self._descriptors = [] if listener is None else [listener.fileno()]
        self._environment = environment
        self._running: dict[asyncio.subprocess.Process, asyncio.Task[int]] = {}
        """The processes in the order of their starts, each with the task that awaits its end.

        All but the last of them are leaving.
        """
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self._keep_running(), name=name)

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
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "engine.stages.process", self.role, *map(str, self._descriptors),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            # A session of its own, so that Ctrl-C reaches the server alone, which stops the stages in order.
            env=self._environment, pass_fds=self._descriptors, start_new_session=True,
        )  # fmt: skip
        ended = self._running[process] = asyncio.create_task(self._await_end(process))
        if self._stopping.is_set():
            _tell_to_stop(process)
        while process.stdout and (line := await process.stdout.readline()):
            if line == LEAVING:
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
        del self._running[process]
        mark_process_dead(process.pid, self._environment["PROMETHEUS_MULTIPROC_DIR"])  # type: ignore[no-untyped-call]
        return code


def _tell_to_stop(process: asyncio.subprocess.Process) -> None:
    """Close its standard input, at whose end a stage stops in order."""
    if process.stdin is not None:
        process.stdin.close()


def _make_environment(settings: Settings, cleanup: AsyncExitStack) -> dict[str, str]:
    """Return the stages' environment: every setting, and a folder for their metrics."""
    folder = tempfile.mkdtemp(prefix="flashgrid-metrics-")
    cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
    given = {name: value for name, value in msgspec.structs.asdict(settings).items() if value is not None}
    return {
        **os.environ,
        "PROMETHEUS_MULTIPROC_DIR": folder,
        **{PREFIX + name.upper(): str(value) for name, value in given.items()},
    }


def _start_stages(
    settings: Settings,
    roles: Collection[Role],
    listener: socket.socket | None,
    environment: dict[str, str],
) -> list[StageProcess]:
    names = {
        Role.FRONT_DOOR: [f"front-door {number}" for number in range(1, settings.workers + 1)],
        Role.RELAY: ["relay"] if settings.amqp_url else [],
        Role.FULFILMENT: ["fulfilment"],
    }
    return [
        StageProcess(role, name, listener if role is Role.FRONT_DOOR else None, environment)
        for role in Role
        if role in roles
        for name in names[role]
    ]


async def _stop_in_order(stages: list[StageProcess], within_s: float) -> None:
    """Stop stage after stage: no new purchases first, then each has what the one before it handed over."""
    for role in Role:
        await asyncio.gather(*(stage.stop(within_s) for stage in stages if stage.role is role))


def _describe(listener: socket.socket | None, stages: list[StageProcess]) -> str:
    running = ", ".join(stage.name for stage in stages)
    if listener is None:
        return running
    host, port = listener.getsockname()[:2]
    return f"listening on http://{f'[{host}]' if ':' in host else host}:{port} ({running})"
