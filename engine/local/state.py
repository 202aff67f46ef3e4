"""What a data folder remembers of its services, <data_dir>/stack.json, and the lock that guards it."""

import fcntl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec

from engine.errors import StackError
from engine.local.process import ProcessId, survivors, wait_until


class Entry(msgspec.Struct):
    """What is known of a service, also while it is stopped."""

    ports: list[int] = []
    processes: list[ProcessId] = []
    """The serving process first."""
    version: str = ""

    def runs(self) -> bool:
        """Return whether every process of the service runs."""
        return bool(self.processes) and survivors(self.processes) == self.processes


def read_state(data_dir: Path) -> dict[str, Entry]:
    """Return the entry of each service that was ever started. Raises StackError if it can't be read."""
    try:
        return msgspec.json.decode((data_dir / "stack.json").read_bytes(), type=dict[str, Entry])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise StackError(f"{data_dir / 'stack.json'} can't be read: {error}") from None


def write_entry(data_dir: Path, name: str, entry: Entry) -> None:
    """Remember one service."""
    state = read_state(data_dir) | {name: entry}
    unfinished = data_dir / "stack.json.new"
    unfinished.write_bytes(msgspec.json.format(msgspec.json.encode(state)))
    unfinished.rename(data_dir / "stack.json")


@asynccontextmanager
async def lock_folder(data_dir: Path) -> AsyncIterator[None]:
    """Hold the folder's lock, so that two programs don't start or stop its services at the same time.

    Raises StackError if another program holds the lock for too long.
    """
    with (data_dir / "stack.lock").open("w") as lock:
        # No program takes so long to start or stop all services.
        if not await wait_until(partial(_try_lock, lock.fileno()), timeout_s=120):
            raise StackError(f"another program holds {lock.name} for too long")
        yield


def runs(state: Mapping[str, Entry]) -> bool:
    """Return whether a process of any service runs."""
    return any(survivors(entry.processes) for entry in state.values())


def is_in_use(data_dir: Path) -> bool:
    """Return whether a service of a folder runs, or a program is about to start or to stop one."""
    try:
        if runs(read_state(data_dir)):
            return True
        with (data_dir / "stack.lock").open() as lock:
            return not _try_lock(lock.fileno())
    except FileNotFoundError:
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
