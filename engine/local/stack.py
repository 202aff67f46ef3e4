"""A stack of private backing services that belongs to one data folder.

<data_dir>/stack.json names the processes, <data_dir>/<service>/ holds the data of a service and
<data_dir>/<service>.log its output.
"""

import asyncio
import contextlib
import re
import stat
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
from asyncpg import InterfaceError, PostgresError
from redis.exceptions import RedisError

from engine.errors import StackError
from engine.local.cluster.postgres import PostgresCluster
from engine.local.cluster.rabbitmq import RabbitMQCluster
from engine.local.cluster.redis import RedisCluster
from engine.local.machines import Network
from engine.local.ports import free_port, port_is_free
from engine.local.postgres import Postgres
from engine.local.process import family, kill_processes, log_of, stop_process, survivors, wait_until
from engine.local.rabbitmq import RabbitMQ
from engine.local.redis import Redis
from engine.local.state import Entry, lock_folder, read_state, runs, write_entry

Program = Redis | RedisCluster | Postgres | RabbitMQ | PostgresCluster | RabbitMQCluster
_RABBITMQ: Final = RabbitMQ()
_PROGRAMS: Final[dict[str, Program]] = {
    program.name: program
    for program in (Redis(), RedisCluster(), Postgres(), PostgresCluster(), _RABBITMQ, RabbitMQCluster())
}
SERVICES: Final = ("redis", "postgres", "rabbitmq")
"""Those of one machine."""
CLUSTER: Final = ("redis-cluster", "postgres-cluster", "rabbitmq-cluster")
"""Those of three machines."""
_START_S: Final = 90.0
_LONGEST_PATH: Final = 800
"""Bytes of a data folder's path: PostgreSQL's tools take 1,023 with what they append."""


class ServiceStatus(msgspec.Struct):
    """One service of a data folder; pid and url are None if it does not run."""

    name: str
    pid: int | None
    url: str | None
    version: str


class Stack:
    """The running services of a data folder, as `start_stack` left them."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir.resolve()
        path = str(self.data_dir)
        if re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", path) or len(path.encode()) > _LONGEST_PATH:
            raise StackError(
                f"PostgreSQL can't have its data under {path[:100]!r}: a path must be one line of text,"
                f" {_LONGEST_PATH} bytes at most"
            )
        try:
            self.data_dir.mkdir(parents=True, exist_ok=True)
            if not any(self.data_dir.iterdir()):
                # It is the stack's alone: the user as whom PostgreSQL runs may pass through it.
                self.data_dir.chmod(self.data_dir.stat().st_mode | stat.S_IXOTH)
        except OSError as error:
            raise StackError(f"can't make the folder {data_dir}: {error.strerror}") from None
        self.urls: dict[str, str] = {}
        """By service; those that were not asked for or are not installed are missing."""
        self.started: set[str] = set()
        """Services that this object started; the others ran already."""
        self.notes: list[str] = []
        """Lines for a person to read."""

    async def start(self, service: str) -> None:
        """Start one service again, on the same port and with the same data, unless it runs."""
        async with lock_folder(self.data_dir):
            await self._make_machines([service])
            await self._start(service)

    async def stop(self, service: str | None = None) -> None:
        """Stop one service, or all that this object started."""
        services = {service} if service else set(self.started)
        async with lock_folder(self.data_dir):
            await _stop(self.data_dir, services)
        self.started -= services

    async def kill(self, service: str) -> None:
        """Send SIGKILL to every process of a service. As in a crash, nothing is flushed."""
        async with lock_folder(self.data_dir):
            await _kill(read_state(self.data_dir).get(service, Entry()))

    def pid(self, service: str) -> int:
        """Return the number of the serving process. Raises StackError if the service does not run."""
        return self._find_running(service).processes[0].pid

    async def control_rabbitmq(self, *arguments: str) -> None:
        """Run rabbitmqctl for the running broker. Raises StackError with its output if it fails."""
        ports = self._find_running(_RABBITMQ.name).ports
        await _RABBITMQ.control(self.data_dir / _RABBITMQ.name, ports, arguments)

    def _find_running(self, service: str) -> Entry:
        entry = read_state(self.data_dir).get(service, Entry())
        if not entry.runs():
            raise StackError(f"{service} does not run")
        return entry

    async def _make_machines(self, services: Collection[str]) -> None:
        """Make the machines of a cluster, unless something runs on them."""
        if set(CLUSTER).isdisjoint(services) or runs(read_state(self.data_dir)):
            return
        if note := await Network(self.data_dir).make():
            self.notes.append(note)

    async def _start(self, name: str) -> None:
        program, folder = _PROGRAMS[name], self.data_dir / name
        folder.mkdir(exist_ok=True)
        entry = read_state(self.data_dir).get(name) or Entry([free_port() for _ in range(program.ports)])
        try:
            await self._bring_up(program, folder, entry)
        except StackError as error:
            raise StackError(f"{error}{read_tail(log_of(folder))}") from None
        write_entry(self.data_dir, name, entry)
        self.urls[name] = program.url(entry.ports[0], folder)

    async def _bring_up(self, program: Program, folder: Path, entry: Entry) -> None:
        # A process that runs now may be about to end, and another program may take a port first: try twice.
        for _ in range(2):
            if not entry.runs():
                await _kill(entry)  # a part of it may have survived the rest
                # A killed process holds its port until its last thread ends.
                entry.ports = [
                    port if await wait_until(partial(port_is_free, port), 3) else free_port()
                    for port in entry.ports
                ]
                entry.processes = await program.launch(folder, entry.ports)
                self.started.add(program.name)
                write_entry(self.data_dir, program.name, entry)
            if await _await_ready(program, entry, folder):
                return
        raise StackError(f"{program.name} ends while it starts")


async def start_stack(data_dir: Path, services: Collection[str] = SERVICES) -> Stack:
    """Start those of the services that do not run yet for this folder, and wait until all of them answer.

    If RabbitMQ is not installed, it is not in `urls`, and `notes` says so. If a service can't be started,
    those that were are stopped again. Raises StackError with the end of that service's log.
    """
    stack = Stack(data_dir)
    wanted = list(services)
    for bus in (_RABBITMQ.name, RabbitMQCluster.name):
        if bus in wanted:
            try:
                _RABBITMQ.find()
            except StackError as error:
                wanted.remove(bus)
                stack.notes.append(str(error))
    async with lock_folder(stack.data_dir):
        try:
            await stack._make_machines(wanted)
            async with asyncio.TaskGroup() as tasks:
                for name in wanted:
                    tasks.create_task(stack._start(name))
        except BaseException as error:
            await _stop(stack.data_dir, stack.started)
            raise error.exceptions[0] if isinstance(error, ExceptionGroup) else error from None
    return stack


async def stop_stack(data_dir: Path) -> list[str]:
    """Stop every service of this folder, even if another program started it; return their names."""
    if not read_state(data_dir):
        return []
    async with lock_folder(data_dir):
        return await _stop(data_dir, _PROGRAMS)


def stack_status(data_dir: Path) -> list[ServiceStatus]:
    """Return the status of every service of this folder."""
    state, rows = read_state(data_dir), []
    expected = CLUSTER if CLUSTER[0] in state else SERVICES
    for name, program in _PROGRAMS.items():
        if name not in state and name not in expected:
            continue
        entry = state.get(name, Entry())
        runs = entry.runs()
        pid = entry.processes[0].pid if runs else None
        url = program.url(entry.ports[0], data_dir / name) if runs else None
        rows.append(ServiceStatus(name, pid, url, entry.version))
    return rows


async def _await_ready(program: Program, entry: Entry, folder: Path) -> bool:
    """Wait for the service's first answer, its version; return False if it ended before that."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        # Look first whether it runs: an answer counts only if it can come from this process.
        if not entry.runs():
            return False
        with contextlib.suppress(OSError, EOFError, RedisError, PostgresError, InterfaceError):
            async with asyncio.timeout(5):
                entry.version = await program.probe(entry.ports[0], folder)
                return True
        await asyncio.sleep(0.05)
    raise StackError(f"{program.name} does not answer after {_START_S:.0f} s")


async def _kill(entry: Entry) -> None:
    await kill_processes([member for process in entry.processes for member in family(process)])


async def _stop(data_dir: Path, services: Collection[str]) -> list[str]:
    state = read_state(data_dir)

    async def stop(name: str) -> None:
        # One after the other: the broker needs its port mapper to the end.
        for process in state[name].processes:
            await stop_process(process, _PROGRAMS[name].stop_signal, timeout_s=30)

    running = [name for name in services if name in state and survivors(state[name].processes)]
    await asyncio.gather(*(stop(name) for name in running))
    if not runs(state):
        await Network(data_dir).remove()
    return running


def read_tail(log: Path) -> str:
    """Return the last lines of a log below a heading, to follow an error; nothing if it is empty."""
    text = log.read_text(errors="replace").splitlines()[-15:] if log.exists() else []
    return "".join(f"\n    {line}" for line in (f"end of {log}:", *text)) if text else ""
