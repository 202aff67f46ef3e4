"""CPU and memory of the processes of a run, by name.

The names are front-door N, relay, fulfilment, server, redis, postgres, rabbitmq, driver N and flashsim. The
processes of Locust, its master among them, are drivers, too. Of several engines, each name has the engine's
number; of several nodes, the node's.
"""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import psutil

SCAN_S: Final = 1.0
"""Time between two scans for new processes: a scan reads every process of the machine."""
_NUMBERED: Final = ("front-door", "driver")
"""Names of which there may be several processes."""
_DRIVERS: Final = {"simulation.drive.process", "simulation.drive.locust.process"}
"""What a driver runs."""


class Usage(NamedTuple):
    """What the processes of one name use."""

    cpu_percent: float
    """Since the reading before; 100 is one core."""
    rss_mib: float
    """Resident memory; memory that they share counts once."""


class ProcessMeter:
    """Reads what the processes of a run use.

    `services` names the serving process of each backing service; its descendants count with it. `find` does
    so anew at each scan, and `find_engines` returns the servers' processes, since any of them may be started
    again; an engine that runs elsewhere has none.
    """

    def __init__(
        self,
        services: Mapping[str, int],
        find_engines: Callable[[], Sequence[int]] = tuple,
        find: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        self._services = services
        self._find = find
        self._find_engines = find_engines
        self._names: dict[int, str] = {}
        self._groups: dict[str, list[psutil.Process]] = {}
        self._scanned_s = -SCAN_S
        self._read_s = 0.0
        self._cpu_s: dict[psutil.Process, float] = {}

    def read(self) -> dict[str, Usage]:
        """Return what each name uses now; a name whose processes have ended is left out."""
        now = time.monotonic()
        if now - self._scanned_s >= SCAN_S:
            self._groups = self._scan()
            self._scanned_s = now
        elapsed, self._read_s = now - self._read_s, now
        before, self._cpu_s = self._cpu_s, {}
        return {
            name: usage
            for name, group in self._groups.items()
            if (usage := self._measure(group, before, elapsed))
        }

    def read_cpu_s(self) -> dict[str, float]:
        """Return the processor time of each name so far, in seconds; children that ended count as well."""
        spent_s: dict[str, float] = {}
        for name, group in self._scan().items():
            for process in group:
                with contextlib.suppress(psutil.NoSuchProcess):
                    # User and system time: its own, and that of children that have ended.
                    spent_s[name] = spent_s.get(name, 0.0) + sum(process.cpu_times()[:4])
        return spent_s

    def _measure(
        self, group: list[psutil.Process], before: Mapping[psutil.Process, float], elapsed_s: float
    ) -> Usage | None:
        spent = own = shared = 0.0
        for process in group:
            with contextlib.suppress(psutil.NoSuchProcess):
                times, memory = process.cpu_times(), process.memory_info()
                cpu_s = self._cpu_s[process] = times.user + times.system
                spent += cpu_s - before.get(process, cpu_s)
                common = getattr(memory, "shared", 0)
                own += memory.rss - common
                shared = max(shared, common)
        if not own:
            return None
        return Usage(round(100 * spent / elapsed_s, 1), round((own + shared) / 2**20, 1))

    def _scan(self) -> dict[str, list[psutil.Process]]:
        """Find the processes of each name that run now."""
        children = _read_children()
        services = {**self._services, **self._find()}
        groups = {name: _list_family(pid, children, recursive=True) for name, pid in services.items()}
        workers: list[tuple[psutil.Process, str]] = []
        engines = self._find_engines()
        parents = {pid: f" {n}" if len(engines) > 1 else "" for n, pid in enumerate(engines, 1)}
        for pid, number in {**parents, os.getpid(): ""}.items():
            family = _list_family(pid, children)
            groups[f"server{number}" if pid in parents else "flashsim"] = family[:1]
            workers += [(worker, number) for worker in family[1:]]
        # A process keeps its name. One that is started again takes the name of the one that died.
        names = {worker.pid: self._names[worker.pid] for worker, _ in workers if worker.pid in self._names}
        for worker, number in workers:
            if title := names.get(worker.pid) or _name(worker, number, set(names.values())):
                names[worker.pid] = title
                groups[title] = [worker]
        self._names = names
        return groups


def _name(process: psutil.Process, engine: str, taken: set[str]) -> str | None:
    """Return the name of a driver, or of a stage of the engine of that number; None for another process."""
    kind = "driver" if _DRIVERS.intersection(_command(process)) else stage_of(process)
    if kind is None:
        return None
    kind += engine
    if kind not in taken and (engine or kind not in _NUMBERED):
        return kind
    sign = "." if engine else " "
    return next(name for number in range(1, 10_000) if (name := f"{kind}{sign}{number}") not in taken)


def stage_of(process: psutil.Process) -> str | None:
    """Return the name of the engine's stage that the process runs; None for another process."""
    match _command(process):
        case [_, "-m", "engine.stages.process" | "engine.stage", name, *_]:
            # An earlier version, which may be under test as well, has the latter.
            return name
    return None


def _command(process: psutil.Process) -> list[str]:
    """Return the words of the process's command line; none if it has ended."""
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


def _read_children() -> dict[int, list[psutil.Process]]:
    """Return the children of each process of this machine, in the order of their numbers."""
    children = defaultdict[int, list[psutil.Process]](list)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess):
            children[process.ppid()].append(process)
    return children


def _list_family(
    pid: int, children: Mapping[int, list[psutil.Process]], recursive: bool = False
) -> list[psutil.Process]:
    """Return the process and its children, or all that descend from it; nothing if it does not run."""
    try:
        found = [psutil.Process(pid)]
    except psutil.NoSuchProcess:
        return []
    for process in found:
        # The list grows while it is read.
        found += children.get(process.pid, []) if recursive or process.pid == pid else []
    return found
