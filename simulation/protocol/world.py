"""One example's world: the processes, the stores, and all that may happen to them, one thing at a time."""

from collections import Counter
from typing import Final, cast

from simulation.model.formats import name_key
from simulation.protocol.losses import Losses
from simulation.protocol.processes import (
    SETTINGS,
    FrontDoor,
    FulfilmentProcess,
    Process,
    RelayProcess,
    Stores,
)
from simulation.protocol.requests import Requests
from simulation.protocol.steps import Actor, Fate, Step, StepLoop
from simulation.protocol.stores.bus import Channel

KINDS: Final = (FrontDoor, FrontDoor, RelayProcess, RelayProcess, FulfilmentProcess, FulfilmentProcess)
"""The processes of every example."""
_NOTICED_MS: Final = 500
"""A pause that is at least as long is noticed by whoever asks again and again."""
_OPENING_MS: Final = 5_000
"""Time that a front door has to open a sale."""
_DRAIN_ROUNDS: Final = 150
_THREAD_STEPS: Final = 12
_SELDOM: Final = 28
"""A choice that is less leaves out the tasks that would find nothing."""
_FENCE: Final = name_key(0, "mark")
_AIM_STEPS: Final = 36
_LEASE: Final = f"rest {SETTINGS.sold_out_ms / 1000:.3g}"
"""The wait of whoever opens a sale for the end of what front doors repeat of the one before."""


class World(Requests):
    """Everything of one example."""

    def __init__(self, stores: Stores) -> None:
        super().__init__()
        self._generation = stores.begin()
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
        self._idle: set[Actor] = set()
        """Relays that have found no entry since one was written."""
        self._asked: dict[Actor, int] = {}
        """The last server that each front door has asked, or that each keeper has compared."""
        self._rounds: dict[Actor, int] = {}
        """The server at which each keeper's round began."""
        self._stalled: Step | None = None
        """Where a task stands still."""
        self.memory.asked = self._note_script
        self.database.is_late = lambda: self.clock.now_ms - self._opens_ms >= _OPENING_MS
        self.processes = [self._start(kind) for kind in KINDS]

    # What the processes do.

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
        tasks = [
            (process, step)
            for process in self.processes
            for step in process.waiting
            if step is not self._stalled
        ]
        if choice < _SELDOM:
            tasks = [each for each in tasks if not self._is_idle(*each)] or tasks
        process, step = tasks[choice % len(tasks)]
        self.run(process, step, most, fate)

    def aim(self, what: str, first: int) -> tuple[Process, Step] | None:
        """Let all processes go on in turn until one is about to take this step, which it does not take."""
        for number in range(first, first + _AIM_STEPS):
            process = self.processes[number % len(KINDS)]
            for step in list(process.waiting):
                if step.what == what:
                    return process, step
                if step in process.waiting and step is not self._stalled and not self._is_idle(process, step):
                    self.run(process, step, 1)
            # A keeper looks again only after a while.
            if number % len(KINDS) == 0 and self.may_pass(_NOTICED_MS):
                self.pass_time(_NOTICED_MS)
        return None

    def stall(self, process: Process, step: Step) -> None:
        """Have a task stand still before this step until another one does, or until the end."""
        self._say(f"{process.name} stands still before {step.what}")
        self._stalled = step

    def _is_idle(self, process: Process, step: Step) -> bool:
        match step.what:
            case "bus deliver":
                process = cast(FulfilmentProcess, process)
                return not self.bus.queue and not process.pause.wanted and process.source.is_open
            case "Redis XREADGROUP":
                return process in self._idle
            case "rest 0.2":
                return self._asked.get(process) == self.memory.incarnation
        return False

    def run(self, process: Process, step: Step, most: int, fate: Fate = Fate.DONE) -> None:
        """Let the task that waits take so many steps at most, of which the first ends by fate."""
        task = step.task
        for number in range(most):
            self._take(process, step, Fate.DONE if number else fate)
            mine = [each for each in process.waiting if each.task is task]
            if not mine or mine[-1].what.startswith("rest"):
                return
            if step.what == mine[-1].what == "Redis XREADGROUP":
                self._idle.add(process)
            is_repeated, step = step.what == mine[-1].what == "bus deliver", mine[-1]
            if is_repeated or self._is_idle(process, step):
                return

    def _take(self, process: Process, step: Step, fate: Fate) -> None:
        if fate is Fate.LATE and step.what != "bus publish":
            fate = Fate.CUT
        keeps = isinstance(process, FulfilmentProcess) and step.task is process.keeper
        rests = step.what.startswith("rest")
        if keeps and rests:
            self._rounds[process] = self.memory.incarnation
        what = "rest" if rests else step.what
        self.steps[what if fate is Fate.DONE or rests else f"{what}: {fate}"] += 1
        self.trace.append(f"{process.name}: {step.what}" + ("" if fate is Fate.DONE else f" ({fate})"))
        if step.what == _LEASE:
            self.clock.now_ms += 2 * SETTINGS.sold_out_ms
        step.go(fate)
        self.loop.run_until_idle()
        if keeps and any(
            each.task is step.task and each.what in ("rest 0.5", "rest 0.1") for each in process.waiting
        ):
            self._asked[process] = self._rounds.get(process, 0)

    def _note_script(self, actor: Actor, name: str) -> None:
        if name == "vouch":
            self._asked[actor] = self.memory.incarnation
        elif name == "reserve":
            self._idle.clear()

    def crash(self, number: int) -> None:
        """Kill a process; another one starts in its place."""
        process = self.processes[number]
        self._say(f"{process.name} dies")
        self.losses.note_death(process)
        process.crash()
        self._idle.clear()
        self.processes[number] = self._start(KINDS[number])

    # What happens to the stores.

    def take_copy(self) -> None:
        """Keep a copy of Redis' memory."""
        self._say("Redis' memory is copied")
        self.losses.take_copy()

    def lose_memory(self, which: int | None) -> None:
        """Put a server in place of Redis that holds one of the copies, or nothing."""
        self._idle.clear()
        self._say(f"Redis goes back to {self.losses.go_back(which, self.processes)}")

    def restart_redis(self) -> None:
        """Put a server in place of Redis that holds the same."""
        self._say("Redis restarts")
        self.memory.go_back(self.memory.take_copy())

    def lose_channel(self, which: int) -> None:
        """Have the broker take a consumer for gone."""
        channels: list[Channel] = self.bus.channels
        if channels:
            self._say("a consumer's channel is lost")
            self.bus.notice(channels[which % len(channels)])

    @property
    def holds_lock(self) -> bool:
        """Whether a keeper rebuilds the gate."""
        return self.database.lock_holder is not None

    def lose_lock(self) -> None:
        """Have PostgreSQL lose the session of the keeper that rebuilds."""
        if self.database.lock_holder is not None:
            self._say("PostgreSQL loses the session that holds the lock")
            self.database.lock_holder.terminate()

    def arrive(self) -> None:
        """Have a message arrive of which its publisher knows nothing any more."""
        if self.bus.late:
            self._say("a message arrives late")
            self.bus.arrive()

    def may_pass(self, ms: int) -> bool:
        """Return whether so much time may pass: whoever asks again and again has asked the server by then.

        As long as nothing is sold, any time may pass.
        """
        return (
            ms < _NOTICED_MS
            or not self.memory.call("HEXISTS", _FENCE, "open")
            or all(
                self._asked.get(process, 0) == self.memory.incarnation
                for process in self.processes
                if not isinstance(process, RelayProcess)
            )
        )

    def pass_time(self, ms: int) -> None:
        """Move the clock."""
        self._say(f"{ms} ms pass")
        self.clock.now_ms += ms
        self._idle.clear()

    # The end.

    def settle_down(self) -> None:
        """Let everything that is under way end, without another fault."""
        for channel in [each for each in self.bus.channels if each.is_abandoned]:
            self.bus.notice(channel)
        while self.bus.late:
            self.bus.arrive()
        before = self.steps
        self.steps = Counter()
        for number in range(_DRAIN_ROUNDS):
            for process in self.processes:
                for task in dict.fromkeys(step.task for step in process.waiting):
                    step = next((each for each in process.waiting if each.task is task), None)
                    if step and not self._is_idle(process, step):
                        self.run(process, step, _THREAD_STEPS)
            if not self.find_unrest():
                break
            # A fulfilment leaves the bus after a while, which its keeper may wait for before it asks.
            ms = 6_000 if number % 2 else _NOTICED_MS - 1
            if self.may_pass(ms):
                self.pass_time(ms)
        self.drain_steps += self.steps.total()
        self.steps = before

    def find_unrest(self) -> str:
        """Return what is under way yet, or in what gate and ledger disagree; nothing if all is settled."""
        if any(each.done is None and each.front_door.alive for each in self.purchases):
            return "a purchase has no answer"
        if self.bus.list_bodies() or self.losses.list_entries():
            return "purchases are under way"
        if not self.memory.call("HEXISTS", _FENCE, "open"):
            return "the gate is closed"
        if pending := self.losses.list_pending():
            return f"orders are pending: {pending}"
        for product_id, sale_id, left in self.database.read("find_left"):
            at_gate = self.memory.call("HMGET", name_key(0, f"sale:{product_id}"), "sale_id", "remaining")
            if at_gate != [b"%d" % sale_id, b"%d" % left]:
                return f"sale {sale_id} has {left} units left in the ledger, and the gate has {at_gate}"
        return ""

    @property
    def was_rebuilt(self) -> bool:
        """Whether a keeper has rebuilt the gate."""
        [[latest]] = self.database.read("read_generation")
        return bool(latest > self._generation)

    def end(self) -> None:
        """End every process."""
        for process in self.processes:
            process.crash()
