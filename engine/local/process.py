"""Processes that outlive the program that started them: spawn them, recognise them again, stop them."""

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from engine.errors import StackError

try:
    import psutil
except ImportError as error:
    raise StackError("private backing services need more packages: pip install 'flashgrid[local]'") from error


_NICENESS: Final = 10
"""By how much a process steps back."""
_PROGRAM_S: Final = 120.0
"""Longest time for a program that ends by itself."""


class Machine(NamedTuple):
    """Where a process runs and listens."""

    address: str = "127.0.0.1"
    namespace: str | None = None
    """The network namespace; None is that of this process."""


HERE: Final = Machine()


class ProcessId(msgspec.Struct, frozen=True):
    """A process, known by its number and its start time, since the system hands out numbers again."""

    pid: int
    created: float
    """Seconds since the Unix epoch."""


def spawn(
    command: Sequence[str | Path],
    folder: Path,
    env: Mapping[str, str] = {},
    user: str | None = None,
    yields: bool = False,
    machine: Machine = HERE,
) -> ProcessId:
    """Start a process in a folder and in a session of its own, so that Ctrl-C here does not reach it.

    One that `yields` steps back for the front door, as relay and fulfilment do. Its output goes to the end of
    the folder's log. Raises StackError if the program can't be started.
    """
    arguments = [str(part) for part in (*enter(machine, user), *command)]
    user = None if machine.namespace else user
    try:
        with log_of(folder).open("ab") as output:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**_plain(), **env},
                user=user,
                group=_group_of(user),
                extra_groups=[] if user else None,
                start_new_session=True,
            )
    except OSError as error:
        raise StackError(f"can't start {arguments[0]}: {error.strerror}") from None
    if yields:
        with contextlib.suppress(OSError):  # it has ended already, or its user may not
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) + _NICENESS)
    # The process outlives this object, which would warn of that when it is collected.
    process.returncode = 0
    return identify(process.pid)


async def run(
    command: Sequence[str | Path],
    folder: Path,
    env: Mapping[str, str] = {},
    user: str | None = None,
    text: str = "",
    machine: Machine = HERE,
) -> str:
    """Run a program to its end with `text` as its input, and return its output.

    Kills it if the caller is cancelled meanwhile. Raises StackError with its output if it fails, or if it
    takes too long: many a program waits for as long as a server is frozen.
    """
    arguments = [*enter(machine, user), *command]
    user = None if machine.namespace else user
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**_plain(), **env},
        user=user,
        group=_group_of(user),
        extra_groups=[] if user else None,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_PROGRAM_S):
            output, _ = await process.communicate(text.encode())
    except (asyncio.CancelledError, TimeoutError) as error:
        kill_group(process.pid)
        await process.wait()
        if isinstance(error, TimeoutError):
            raise StackError(f"{Path(command[0]).name} does not end in {_PROGRAM_S:g} s") from None
        raise
    if process.returncode:
        raise StackError(f"{Path(command[0]).name} fails: {output.decode(errors='replace').strip()}")
    return output.decode(errors="replace")


def enter(machine: Machine, user: str | None = None) -> list[str]:
    """Return the words before a command that let it run on a machine that is a namespace, as this user."""
    if machine.namespace is None:
        return []
    entry = ["nsenter", f"--net=/run/netns/{machine.namespace}"]
    if user:
        known = pwd.getpwnam(user)
        entry += [f"--setuid={known.pw_uid}", f"--setgid={known.pw_gid}"]
    return [*entry, "--"]


def _plain() -> dict[str, str]:
    """Return an environment without settings for other servers (PGPORT, RABBITMQ_…, ERL_…)."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


def _group_of(user: str | None) -> int | None:
    return pwd.getpwnam(user).pw_gid if user else None


def identify(pid: int) -> ProcessId:
    """Return the process that has this number now. Raises psutil.NoSuchProcess if there is none."""
    return ProcessId(pid, psutil.Process(pid).create_time())


def find_process(known: ProcessId) -> psutil.Process | None:
    """Return the process if it still runs, else None. Reap it if it ended and is a child of this process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(known.pid)
        # The start time is counted from the system's boot: a step of the wall clock shifts it.
        if abs(process.create_time() - known.created) < 2:
            if process.status() != psutil.STATUS_ZOMBIE:
                return process
            with contextlib.suppress(ChildProcessError):
                os.waitpid(known.pid, os.WNOHANG)
    return None


def family(known: ProcessId) -> list[ProcessId]:
    """Return the process and its descendants, as far as they run."""
    process = find_process(known)
    if process is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            children = process.children(recursive=True)
            return [known, *(ProcessId(child.pid, child.create_time()) for child in children)]
    return []


async def stop_process(known: ProcessId, stop_signal: signal.Signals, timeout_s: float) -> None:
    """Ask the process to end, wait, and kill what is left of its family after `timeout_s`."""
    members = family(known)
    send_signal(members[:1], stop_signal)
    if not await wait_until(lambda: not survivors(members), timeout_s):
        await kill_processes(members)


async def kill_processes(members: Iterable[ProcessId], timeout_s: float = 10) -> None:
    """Send SIGKILL to each of them. Raises StackError if one is still there after `timeout_s`."""
    members = list(members)
    send_signal(members, signal.SIGKILL)
    if not await wait_until(lambda: not survivors(members), timeout_s):
        raise StackError(f"processes {[member.pid for member in members]} do not end, not even by SIGKILL")


def send_signal(members: Iterable[ProcessId], number: signal.Signals) -> None:
    """Send a signal to those that still run."""
    for member in members:
        if (process := find_process(member)) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def freeze_processes(members: list[ProcessId]) -> None:
    """Send SIGSTOP to the processes, and to those that they have begun until then, which join the list."""
    for member in members:
        send_signal([member], signal.SIGSTOP)
        members += [child for child in family(member) if child not in members]


def kill_group(leader: int) -> None:
    """Kill what is left of the group of a process, which may have ended before."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def log_of(folder: Path) -> Path:
    """Return the file for the output of the service whose data are in `folder`."""
    return folder.with_name(folder.name + ".log")


def find_processes(program: Path, cwd: Path) -> list[ProcessId]:
    """Return all processes that run this program file in this folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.exe() == str(program) and process.cwd() == str(cwd):
                found.append(identify(process.pid))
    return found


def survivors(members: Iterable[ProcessId]) -> list[ProcessId]:
    """Return those that still run; reap the others."""
    return [member for member in members if find_process(member) is not None]


async def wait_until(holds: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until `holds()`; return False if it does not within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True


def package_folder(package: str) -> Path:
    """Return the folder of an installed Python package. Raises StackError if it is missing."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise StackError(f"{package} is not installed: pip install 'flashgrid[local]'")
    return Path(spec.origin).parent
