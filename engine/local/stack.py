"""A stack of private backing services that belongs to one data folder.

<data_dir>/stack.json names the processes, <data_dir>/<service>/ holds the data of a service and
<data_dir>/<service>.log its output.
"""

import asyncio
import contextlib
import fcntl
import time
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import msgspec

from engine.errors import StackError
from engine.local.process import (
    ProcessId,
    family,
    free_port,
    kill_processes,
    port_is_free,
    stop_process,
    survivors,
)
from engine.local.programs import Postgres, Program, RabbitMQ, Redis

_RABBITMQ: Final = RabbitMQ()
_ALL: Final[tuple[Program, ...]] = (Redis(), Postgres(), _RABBITMQ)
_PROGRAMS: Final = {program.name: program for program in _ALL}
SERVICES: Final = tuple(_PROGRAMS)
_START_S: Final = 90.0
_STOP_S: Final = 30.0
_PORT_S: Final = 3.0
_PROBE_S: Final = 0.05


class StackUrls(msgspec.Struct):
    """Where the services are; "" or None for one that was not asked for or can't be had."""

    redis: str = ""
    postgres: str = ""
    amqp: str | None = None


class ServiceStatus(msgspec.Struct):
    """One service of a data folder; pid and url are None where it does not run."""

    name: str
    pid: int | None
    url: str | None
    version: str


class _Entry(msgspec.Struct):
    """What stack.json remembers of a service, also while it is stopped."""

    ports: list[int]
    processes: list[ProcessId] = []
    """The serving process first."""
    version: str = ""


_State = dict[str, _Entry]


class Stack:
    """The running services of a data folder, as `start_stack` left them."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        self.urls = StackUrls()
        self.started: set[str] = set()
        """Services that this object started; the others ran already."""
        self.notes: list[str] = []
        """Lines that a person should read."""

    async def start(self, service: str) -> None:
        """Starts one service again, on the same port and with the same data; does nothing where it runs."""
        async with _locked(self.data_dir):
            await self._start([service])

    async def stop(self, service: str | None = None) -> None:
        """Stops one service, or all that this object started; what ran already goes on."""
        services = {service} if service else set(self.started)
        async with _locked(self.data_dir):
            await _stop(self.data_dir, services)
        self.started -= services

    async def kill(self, service: str) -> None:
        """SIGKILL to every process of a service, as a crash would: no goodbye, nothing flushed."""
        async with _locked(self.data_dir):
            await _kill(_read(self.data_dir).get(service, _Entry([])))

    def pid(self, service: str) -> int:
        """Number of the process that serves; raises StackError where the service does not run."""
        entry = _read(self.data_dir).get(service)
        if entry is None or not _runs(entry):
            raise StackError(f"{service} does not run")
        return entry.processes[0].pid

    async def control_rabbitmq(self, *arguments: str) -> None:
        """Runs rabbitmqctl for the broker, which must run. Raises StackError with what it says."""
        entry = _read(self.data_dir).get(_RABBITMQ.name, _Entry([]))
        if not _runs(entry):
            raise StackError(f"{_RABBITMQ.name} does not run")
        await _RABBITMQ.control(self.data_dir / _RABBITMQ.name, entry.ports, arguments)

    async def _start(self, services: Collection[str]) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                for name in services:
                    tasks.create_task(self._start_one(name))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _start_one(self, name: str) -> None:
        program, folder = _PROGRAMS[name], _folder(self.data_dir / name)
        entry = _read(self.data_dir).get(name) or _Entry([free_port() for _ in range(program.ports)])
        try:
            await self._bring_up(program, folder, entry)
        except StackError as error:
            raise StackError(f"{error}{_tail(folder)}") from None
        _write(self.data_dir, name, entry)
        setattr(self.urls, "amqp" if name == _RABBITMQ.name else name, program.url(entry.ports[0]))

    async def _bring_up(self, program: Program, folder: Path, entry: _Entry) -> None:
        # What runs now may be about to end, and another program may take a port first: then once more.
        for _ in range(2):
            if not _runs(entry):
                await _kill(entry)  # a part of it may have survived the rest
                entry.ports = [port if await _comes_free(port) else free_port() for port in entry.ports]
                entry.processes = await program.launch(folder, entry.ports)
                self.started.add(program.name)
                _write(self.data_dir, program.name, entry)
            if await _await_ready(program, entry):
                return
        raise StackError(f"{program.name} ends while it starts")


async def start_stack(data_dir: Path, services: Collection[str] = SERVICES) -> Stack:
    """Starts those of the services that do not run yet for this folder, and waits until all of them answer.

    A RabbitMQ that is not installed leaves `urls.amqp` None and a line in `notes`. Where a service can't be
    started, those that were are stopped again. Raises StackError, with the end of that service's log.
    """
    stack = Stack(data_dir)
    wanted = list(services)
    if _RABBITMQ.name in wanted and _RABBITMQ.find() is None:
        wanted.remove(_RABBITMQ.name)
        stack.notes.append(_RABBITMQ.MISSING)
    async with _locked(stack.data_dir):
        try:
            await stack._start(wanted)
        except BaseException:
            await _stop(stack.data_dir, stack.started)
            raise
    return stack


async def stop_stack(data_dir: Path) -> list[str]:
    """Stops every service that runs for this folder, whoever started it; returns their names."""
    if not _read(data_dir):
        return []
    async with _locked(data_dir):
        return await _stop(data_dir, SERVICES)


def stack_status(data_dir: Path) -> list[ServiceStatus]:
    """How every service of this folder stands."""
    state, rows = _read(data_dir), []
    for name, program in _PROGRAMS.items():
        entry = state.get(name)
        if entry is not None and _runs(entry):
            rows.append(
                ServiceStatus(name, entry.processes[0].pid, program.url(entry.ports[0]), entry.version)
            )
        else:
            rows.append(ServiceStatus(name, None, None, entry.version if entry else ""))
    return rows


async def _await_ready(program: Program, entry: _Entry) -> bool:
    """Waits for the service's first answer, its version; False where it ended before that."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        # Whether it runs is looked at first: an answer counts only if it can be this process that gave it.
        if not _runs(entry):
            return False
        with contextlib.suppress(OSError, EOFError, TimeoutError):
            async with asyncio.timeout(5):
                entry.version = await program.probe(entry.ports[0])
                return True
        await asyncio.sleep(_PROBE_S)
    raise StackError(f"{program.name} does not answer after {_START_S:.0f} s")


async def _comes_free(port: int) -> bool:
    """Whether the port is free, or is so soon: a killed process holds sockets until its last thread ends."""
    deadline = time.monotonic() + _PORT_S
    while not port_is_free(port):
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(_PROBE_S)
    return True


async def _kill(entry: _Entry) -> None:
    await kill_processes([member for process in entry.processes for member in family(process)])


async def _stop(data_dir: Path, services: Collection[str]) -> list[str]:
    state = _read(data_dir)

    async def stop(name: str) -> None:
        # One after the other: the broker needs its port mapper to the end.
        for process in state[name].processes:
            await stop_process(process, _PROGRAMS[name].stop_signal, _STOP_S)

    running = [name for name in services if name in state and survivors(state[name].processes)]
    await asyncio.gather(*(stop(name) for name in running))
    return running


def _runs(entry: _Entry) -> bool:
    return bool(entry.processes) and survivors(entry.processes) == entry.processes


def _read(data_dir: Path) -> _State:
    try:
        return msgspec.json.decode((data_dir / "stack.json").read_bytes(), type=_State)
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as error:
        raise StackError(f"{data_dir / 'stack.json'} can't be read: {error}") from None


def _write(data_dir: Path, name: str, entry: _Entry) -> None:
    state = _read(data_dir) | {name: entry}
    unfinished = data_dir / "stack.json.new"
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
    unfinished.rename(data_dir / "stack.json")


@asynccontextmanager
async def _locked(data_dir: Path) -> AsyncIterator[None]:
    """Holds the folder's lock, so that two programs don't start or stop its services at the same time."""
    deadline = time.monotonic() + _START_S + _STOP_S
    with (_folder(data_dir) / "stack.lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StackError(f"another program has held {lock.name} for too long") from None
                await asyncio.sleep(_PROBE_S)
        yield


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _tail(folder: Path, lines: int = 15) -> str:
    log = folder.with_name(folder.name + ".log")
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []
    return "".join(f"\n    {line}" for line in (f"end of {log}:", *text)) if text else ""
