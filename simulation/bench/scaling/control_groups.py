"""Control groups of Linux, version 1 (cpu.cfs_quota_us) and 2 (cpu.max): they hold processes to a share.

They need root. Each carries the number of the process that made it, so that what a killed one left is found.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from simulation.errors import BenchError

PERIOD_US: Final = 100_000
"""The kernel's default: a process that has used its share waits for the next period."""
PREFIX: Final = "flashsim-"
_MOUNTS: Final = Path("/proc/mounts")
_REMOVE_S: Final = 2.0
_numbers: Final = count(1)


class Periods(NamedTuple):
    """How many periods a group has seen, and in how many of them it had to wait."""

    all: int
    throttled: int


class ControlGroup:
    """A group that exists: a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read_periods(self) -> Periods:
        """Return what the group has seen so far."""
        words = (self.folder / "cpu.stat").read_text().split()
        found = dict(zip(words[::2], map(int, words[1::2]), strict=True))
        return Periods(found["nr_periods"], found["nr_throttled"])

    def read_cpu_s(self) -> float:
        """Return the processor time of its threads so far, to the nanosecond: for a small share of a core the
        ticks of 10 ms are too coarse.
        """
        spent_ns = 0
        for pid in (self.folder / "cgroup.procs").read_text().split():
            for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                with suppress(OSError):  # it has ended
                    spent_ns += int(thread.read_text().split()[0])
        return spent_ns / 1e9

    def hold_to(self, cores: float) -> None:
        """Let its processes use so many cores together."""
        quota_us = round(cores * PERIOD_US)
        if (self.folder.parent / "cgroup.controllers").exists():
            (self.folder / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota_us))

    def take(self, pid: int) -> None:
        """Put a process into the group, with all its threads."""
        (self.folder / "cgroup.procs").write_text(str(pid))

    def remove(self) -> None:
        """Give what runs in the group back to the one above, and remove it."""
        deadline = time.monotonic() + _REMOVE_S
        while self.folder.exists():
            for pid in (self.folder / "cgroup.procs").read_text().split():
                with suppress(ProcessLookupError):
                    (self.folder.parent / "cgroup.procs").write_text(pid)
            try:
                self.folder.rmdir()
            except OSError:
                # A process that has ended leaves its group a moment later.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


@contextmanager
def throttle(cores: float, pids: Mapping[str, Iterable[int]]) -> Iterator[dict[str, ControlGroup]]:
    """Hold the processes of each name together to so many cores until the end of the block.

    Raises BenchError, in one line, where that is not allowed.
    """
    above = find_folder()
    remove_left(above)
    groups: dict[str, ControlGroup] = {}
    try:
        try:
            for name, members in pids.items():
                groups[name] = group = _make(above, cores)
                for pid in members:
                    group.take(pid)
        except OSError as error:
            raise BenchError(f"no control group can be made in {above}: {error.strerror}") from None
        yield groups
    finally:
        for group in groups.values():
            group.remove()


def find_folder(mounts: Path = _MOUNTS) -> Path:
    """Return the folder in which groups of the processor are made. Raises BenchError if there is none."""
    for line in mounts.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        folder = Path(place)
        is_of_processor = "cpu" in (
            options.split(",") if kind == "cgroup" else _list_controllers(folder) if kind == "cgroup2" else []
        )
        if is_of_processor:
            if os.geteuid() or not os.access(folder, os.W_OK):
                raise BenchError(f"machines are throttled by control groups, which need root and {folder}")
            return folder
    raise BenchError("machines are throttled by control groups of the processor, which are not mounted here")


def _list_controllers(folder: Path) -> list[str]:
    with suppress(OSError):
        return (folder / "cgroup.controllers").read_text().split()
    return []


def _make(above: Path, cores: float) -> ControlGroup:
    if (above / "cgroup.controllers").exists():
        (above / "cgroup.subtree_control").write_text("+cpu")
    group = ControlGroup(above / f"{PREFIX}{os.getpid()}-{next(_numbers)}")
    group.folder.mkdir()
    try:
        group.hold_to(cores)
    except OSError:
        group.folder.rmdir()
        raise
    return group


def remove_left(above: Path) -> None:
    """Remove the groups of processes that were killed before they could."""
    for folder in above.glob(f"{PREFIX}*"):
        found = re.fullmatch(rf"{PREFIX}(\d+)-\d+", folder.name)
        if found and not psutil.pid_exists(int(found[1])):
            with suppress(OSError):
                ControlGroup(folder).remove()
