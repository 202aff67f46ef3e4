"""The processes of one example, and how they go on: a step at a time."""

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Final, cast

from engine.gate.gate import _WATCH_S
from simulation.protocol.example.asking import Asking
from simulation.protocol.example.losses import Losses
from simulation.protocol.example.processes import (
    SETTINGS,
    FrontDoor,
    FulfilmentProcess,
    Process,
    RelayProcess,
    Stores,
)
from simulation.protocol.example.requests import Requests
from simulation.protocol.steps import Actor, Fate, Step, StepLoop

Kinds = Sequence[type[Process]]
KINDS: Final[Kinds] = (
    FrontDoor, FrontDoor, RelayProcess, RelayProcess, FulfilmentProcess, FulfilmentProcess,
)  # fmt: skip
FEWEST: Final[Kinds] = (FrontDoor, FrontDoor, RelayProcess, FulfilmentProcess)
"""Nobody does the work of a process that can't."""
NOTICED_MS: Final = 500
"""A pause that is at least as long is noticed by whoever asks again and again."""
_OPENING_MS: Final = 5_000
"""Time that a front door has to open a sale."""
THREAD_STEPS: Final = 12
_SELDOM: Final = 28
"""A choice that is less leaves out the tasks that would find nothing."""
_AIM_STEPS: Final = 90
_ASK_ROUNDS: Final = 60
_STALLED: Final = 2
_CHANGES: Final = {"reserve", "open_sale", "clear", "close", "reopen"}
"""Scripts after which others find something to do."""
_WATCH: Final = f"rest {_WATCH_S:.3g}"
"""The wait of a front door before it asks again."""
_LEASE: Final = f"rest {SETTINGS.sold_out_ms / 1000:.3g}"
"""The wait of whoever opens a sale for the end of what front doors repeat of the one before."""


class Running(Requests):
    """The processes, the stores, and the time."""

    def __init__(self, stores: Stores, kinds: Kinds = KINDS) -> None:
        super().__init__()
        self.generation = stores.begin()
        self.memory, self.database, self.bus, self.clock = (
            stores.memory,
            stores.database,
            stores.bus,
            stores.clock,
        )
        self.loop = StepLoop(self.clock)  # type: ignore[abstract]
        self.losses = Losses(stores)
        self.steps: Counter[str] = Counter()
        self.drain_steps = 0
        self._numbers: Counter[type] = Counter()
        self._idle: set[Process] = set()
        """Relays that have found no entry, and keepers' rounds that are over, since something changed."""
        self._last: dict[Process, str] = {}
        """The last step of each process."""
        self._asking = Asking(self.memory)
        self._stalled: deque[Step] = deque(maxlen=_STALLED)
        """Where tasks stand still."""
        self.memory.asked = self._note_script
        self.database.is_late = lambda: self.clock.now_ms - self._opens_ms >= _OPENING_MS
        self.processes = [self._start(kind) for kind in kinds]

    def _start(self, kind: type[Process]) -> Process:
        self._numbers[kind] += 1
        name = kind.__name__.removesuffix("Process").lower()
        process = kind(f"{name} {self._numbers[kind]}", self.loop)
        process.begin()
        self.loop.run_until_idle()
        return process

    def go_on(self, choice: int, most: int, fate: Fate = Fate.DONE) -> None:
        """Let one task of a process take so many steps at most, of which the first ends by fate.

        A task that would find nothing is chosen seldom, or where there is no other.
        """
        tasks = [(process, step) for process in self.processes for step in self._list_steps(process)]
        if choice < _SELDOM:
            tasks = [each for each in tasks if not self._is_idle(*each)] or tasks
        if tasks:
            self.run(*tasks[choice % len(tasks)], most, fate)

    def _list_steps(self, process: Process) -> list[Step]:
        """Return the steps that a process may take, unless it or its task stands still."""
        if process is self.asleep:
            return []
        return [step for step in process.waiting if step not in self._stalled]

    def _let_each(self, process: Process) -> Iterator[Step]:
        """Yield each step that a process may take, which may take another one away, or end it."""
        for step in self._list_steps(process):
            if step in process.waiting:
                yield step

    def aim(self, what: str, first: int) -> tuple[Process, Step] | None:
        """Let all processes go on in turn until one is about to take a step that begins so; it does not."""
        for number in range(first, first + _AIM_STEPS):
            process = self.processes[number % len(self.processes)]
            for step in self._let_each(process):
                if step.what.startswith(what):
                    return process, step
                if not self._is_idle(process, step):
                    self.run(process, step, 1)
            # A keeper looks again only after a while.
            if number % len(self.processes) == 0 and self.may_pass(NOTICED_MS):
                self.pass_time(NOTICED_MS)
        return None

    def stall(self, process: Process, step: Step) -> None:
        """Have a task stand still before this step until others do, or until it is to go on."""
        self._say(f"{process.name} stands still before {step.what}")
        self._stalled.append(step)

    def end_stall(self) -> None:
        """Let the task that stands still longest go on."""
        if self._stalled:
            step = self._stalled.popleft()
            for process in self.processes:
                if step in process.waiting and process is not self.asleep:
                    self.run(process, step, THREAD_STEPS)

    def fall_asleep(self, number: int) -> None:
        """Have a front door stand still as a whole, for longer than a new server waits for it; or wake it."""
        woken, self.asleep = self.asleep, None
        if woken is None:
            self.asleep = self._door(number)
        self._say(f"{woken.name} goes on" if woken else f"{self._door(number).name} stands still")

    def _is_idle(self, process: Process, step: Step) -> bool:
        match step.what:
            case "bus deliver":
                process = cast(FulfilmentProcess, process)
                return not self.bus.queue and not process.pause.wanted and process.source.is_open
            case "Redis XREADGROUP":
                return process in self._idle
            case what if what == _WATCH and isinstance(process, FrontDoor):
                return self._asking.has_asked(process)
            case "rest 0.5" if step.task is process.asker:
                return process in self._idle and self._asking.has_asked(process)
        return False

    def run(self, process: Process, step: Step, most: int, fate: Fate = Fate.DONE) -> None:
        """Let the task that waits take so many steps at most, of which the first ends by fate."""
        task = step.task
        for number in range(most):
            self._take(process, step, Fate.DONE if number else fate)
            mine = [each for each in process.waiting if each.task is task]
            if not mine or mine[-1].what.startswith("rest"):
                return
            is_repeated, step = step.what == mine[-1].what == "bus deliver", mine[-1]
            if is_repeated or self._is_idle(process, step):
                return

    def _take(self, process: Process, step: Step, fate: Fate) -> None:
        if fate is Fate.LATE and step.what != "bus publish":
            fate = Fate.CUT
        rests = step.what.startswith("rest")
        what = "rest" if rests else step.what
        self.steps[what if fate is Fate.DONE or rests else f"{what}: {fate}"] += 1
        self.trace.append(f"{process.name}: {step.what}" + ("" if fate is Fate.DONE else f" ({fate})"))
        if step.what == _LEASE:
            self.clock.now_ms += 2 * SETTINGS.sold_out_ms
        self._asking.note_beginning(process, step)
        opens = step.what == "Redis reopen" and not self.losses.is_open
        step.go(fate)
        if step.what == "PostgreSQL find_current_sales":
            self.losses.note_reading(process)
        elif opens and self.losses.is_open:
            self.losses.note_opening(process)
        self.loop.run_until_idle()
        is_repeated = step.what == self._last.get(process) == "Redis XREADGROUP"
        self._last[process] = step.what
        finds_nothing = is_repeated and all(each.what != "bus publish" for each in process.waiting)
        if self._asking.note_end(process, step.task) or finds_nothing:
            self._idle.add(process)

    def _note_script(self, actor: Actor, name: str) -> None:
        self._asking.note_script(actor, name)
        if name in _CHANGES:
            self._idle.clear()

    def may_pass(self, ms: int) -> bool:
        """Return whether so much time may pass: whoever asks again and again has asked the server by then.

        As long as nothing is sold, any time may pass.
        """
        return ms < NOTICED_MS or not self.losses.is_open or not self._list_askers()

    def _list_askers(self) -> list[Process]:
        """Return those who have yet to ask the server, but for a front door that stands still."""
        return [
            process
            for process in self.processes
            if process.asker and process is not self.asleep and not self._asking.has_asked(process)
        ]

    def let_ask(self) -> None:
        """Let those go on who have yet to ask the server, until all have."""
        for _ in range(_ASK_ROUNDS):
            for process in self._list_askers():
                for step in self._let_each(process):
                    if step.task is process.asker:
                        self.run(process, step, 1)

    def pass_time(self, ms: int) -> None:
        """Move the clock."""
        self._say(f"{ms} ms pass")
        self.clock.now_ms += ms
        if ms > SETTINGS.sold_out_ms:
            self.losses.note_time()
        # A relay looks for what a dead one has left after a longer time than a keeper looks again.
        self._idle = {each for each in self._idle if each.asker is None and ms <= NOTICED_MS}
        if self.asleep and ms > 1 and not self._asking.has_asked(self.asleep):
            self.losses.note_absence(self.asleep)
