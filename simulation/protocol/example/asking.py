"""Who has asked the server that holds the gate what it remembers; time passes only for those who have."""

import asyncio

from simulation.protocol.example.processes import FulfilmentProcess, Process
from simulation.protocol.steps import Actor, Step
from simulation.protocol.stores.memory import Memory


class Asking:
    """Servers by the number of their incarnation."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._noted = 0
        """The last server whose name is in the fence."""
        self._asked: dict[Actor, int] = {}
        """The last server that each front door has asked, or that each keeper has compared."""
        self._rounds: dict[Actor, int] = {}
        """The server that was noted when each keeper's round began."""

    def has_asked(self, process: Process) -> bool:
        """Return whether a process has asked the server that there is."""
        return self._asked.get(process, 0) == self._memory.incarnation

    def note_script(self, actor: Actor, name: str) -> None:
        """Note that a script was run."""
        if name == "vouch":
            self._asked[actor] = self._noted = self._memory.incarnation

    def note_beginning(self, process: Process, step: Step) -> None:
        """Note that a step is about to be taken, which may begin a keeper's round."""
        if _is_rest(process, step):
            self._rounds[process] = self._noted

    def note_end(self, process: Process, task: "asyncio.Task[object] | None") -> bool:
        """Note that a step was taken; return whether a keeper's round is over by it."""
        is_over = any(each.task is task and _is_rest(process, each) for each in process.waiting)
        if is_over:
            self._asked[process] = self._rounds.get(process, 0)
        return is_over


def _is_rest(process: Process, step: Step) -> bool:
    """Return whether a keeper rests between two rounds."""
    is_keeper = isinstance(process, FulfilmentProcess) and step.task is process.keeper
    return is_keeper and step.what in ("rest 0.5", "rest 0.1")
