"""CPU and memory of the processes of a run, by name: front-door N, relay, fulfilment, server, redis,
postgres, rabbitmq, driver N (of Locust as well, its master among them), flashsim."""

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from operator import attrgetter
from typing import Final, NamedTuple

import psutil

SCAN_S: Final = 1.0
"""How often processes that came and went are looked for: a scan reads every process of the machine."""
_NUMBERED: Final = ("front-door", "driver")
"""Names of which there may be several processes."""
STAGE_MODULES: Final = ("engine.stages.process", "engine.stage")
"""What a stage runs; a checkout of an earlier version, which may be under test as well, has the latter."""
_MIB: Final = 1024 * 1024


class Usage(NamedTuple):
    """What the processes of one name use."""

    cpu_percent: float
    """100 is one core, since the reading before."""
    rss_mib: float
    """Resident memory; what they share with each other counts once."""


class ProcessMeter:
    """Reads what the processes of a run use.

    `services` names the serving process of each backing service; all of its children count as it. `engine` is
    the server's process, `None` where the engine runs elsewhere.
    """

    def __init__(self, services: Mapping[str, int], engine: int | None = None) -> None:
        self._services = services
        self._engine = engine
        self._names: dict[int, str] = {}
        self._groups: dict[str, list[psutil.Process]] = {}
        self._scanned_s = -SCAN_S
        self._read_s = 0.0
        self._cpu_s: dict[psutil.Process, float] = {}

    def read(self) -> dict[str, Usage]:
        """What each name uses now; a name whose processes have ended is left out."""
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
                    times = process.cpu_times()
                    own, ended = times.user + times.system, times.children_user + times.children_system
                    spent_s[name] = spent_s.get(name, 0.0) + own + ended
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
        return Usage(round(100 * spent / elapsed_s, 1), round((own + shared) / _MIB, 1))

    def _scan(self) -> dict[str, list[psutil.Process]]:
        children = defaultdict(list)
        known = {}
        for process in psutil.process_iter(["ppid"]):
            children[process.info["ppid"]].append(process)
            known[process.pid] = process
        parents = filter(None, (self._engine, os.getpid()))
        candidates = sorted((child for pid in parents for child in children[pid]), key=attrgetter("pid"))
        # Who has a name keeps it; one that is started again takes the name of the one that died.
        names = {child.pid: self._names[child.pid] for child in candidates if child.pid in self._names}
        groups: dict[str, list[psutil.Process]] = {}
        for child in candidates:
            if name := names.get(child.pid) or _name(child, set(names.values())):
                names[child.pid] = name
                groups[name] = [child]
        self._names = names
        for name, pid in {"server": self._engine, "flashsim": os.getpid()}.items():
            if pid in known:
                groups[name] = [known[pid]]
        for name, pid in self._services.items():
            if pid in known:
                groups[name] = _family(known[pid], children)
        return groups


def _name(process: psutil.Process, taken: set[str]) -> str | None:
    """The name of a stage of the engine or of a driver; None for another process."""
    try:
        command = process.cmdline()
    except psutil.Error:
        return None
    if not {"simulation.drive.process", "simulation.drive.locust.process"}.isdisjoint(command):
        kind = "driver"
    elif module := next((word for word in STAGE_MODULES if word in command[:-1]), None):
        kind = command[command.index(module) + 1]
    else:
        return None
    if kind not in _NUMBERED and kind not in taken:
        return kind
    return next(name for number in range(1, 10_000) if (name := f"{kind} {number}") not in taken)


def _family(process: psutil.Process, children: Mapping[int, list[psutil.Process]]) -> list[psutil.Process]:
    members = [process]
    for child in children.get(process.pid, []):
        members += _family(child, children)
    return members
