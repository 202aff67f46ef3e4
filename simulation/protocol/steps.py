"""Steps: the engine's own coroutines run until they wait for a store, and go on when they are told to.

The event loop here knows neither time nor sockets. A coroutine of an actor, which stands for a process,
stops where it would talk to a store, or rest: that is a step. Whoever drives the actors decides which step
comes next, and how it ends. So the same decisions give the same order of events, always.
"""

import asyncio
import logging
from asyncio import events, futures
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from enum import StrEnum
from typing import Any, Final, TypeVar

from redis.exceptions import RedisError

from engine.errors import FlashgridError

T = TypeVar("T")

_RESTED: Final = futures._set_result_unless_cancelled  # type: ignore[attr-defined]
"""What asyncio.sleep has called when its time is over."""
_WAITED: Final = asyncio.tasks._release_waiter  # type: ignore[attr-defined]
"""What asyncio.wait_for has called: the engine rests with it until a stop, and waits so for nothing else."""


class Fate(StrEnum):
    """How a step ends."""

    DONE = "done"
    LOST = "answer lost"
    """It happens, and the actor never hears of it: its connection breaks."""
    CUT = "cut"
    """It does not happen: its connection breaks before."""
    LATE = "late"
    """The actor's connection breaks before, and it happens later all the same; only what is published."""


class Clock:
    """The only clock of an example: it stands still unless it is moved."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def time(self) -> float:
        return self.now_ms / 1000

    def time_ns(self) -> int:
        return self.now_ms * 1_000_000

    monotonic = perf_counter = time


class Step:
    """Where a task of an actor waits."""

    __slots__ = ("go", "task", "what")

    def __init__(self, what: str, task: "asyncio.Task[Any] | None", go: Callable[[Fate], None]) -> None:
        self.what = what
        self.task = task
        self.go = go


class Actor:
    """A process of the engine: its tasks, and the steps before which they wait."""

    def __init__(self, name: str, loop: "StepLoop") -> None:
        self.name = name
        self.alive = True
        self.waiting: list[Step] = []
        self.tasks: set[asyncio.Task[Any]] = set()
        self._loop = loop
        self._context = copy_context()
        self._context.run(_CURRENT.set, self)

    def start(self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run a coroutine as a task of this process, which nobody else waits for."""
        task = self._loop.create_task(work, context=self._context)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: "asyncio.Task[Any]") -> None:
        if not task.cancelled() and (error := task.exception()):
            self.note_failure("a task has failed", error)

    def note_failure(self, what: str, error: BaseException) -> None:
        """Note what must not happen, whatever the stores do."""
        self._loop.failures.append(f"{self.name}: {what}: {error!r}")

    def crash(self) -> None:
        """End every task at once; none of them reaches a store any more."""
        self.alive = False
        for _ in range(10):
            for task in self.tasks:
                task.cancel()
            self._loop.run_until_idle()
            if not self.tasks:
                break
        self.waiting.clear()


_CURRENT: ContextVar[Actor] = ContextVar("actor")


def current_actor() -> Actor:
    """Return the actor whose task runs."""
    return _CURRENT.get()


class FailureLog(logging.Handler):
    """Notes errors that the engine logs and lives on with, if no store is to blame for them."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info and record.exc_info[1]
        if error and not isinstance(error, (FlashgridError, RedisError, OSError)):
            current_actor().note_failure(record.getMessage(), error)


class Broken(Exception):
    """The connection broke, before the step or after it."""


async def take_turn(what: str, work: Callable[[], T], late: Callable[[], None] | None = None) -> T:
    """Wait until this step is to be taken; return what `work` returns, which is done then.

    `late` has it done later. Raises Broken.
    """
    actor = _CURRENT.get()
    if not actor.alive:
        raise asyncio.CancelledError
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def go(fate: Fate) -> None:
        actor.waiting.remove(step)
        try:
            if fate is Fate.LATE and late:
                late()
            result = None if fate in (Fate.CUT, Fate.LATE) else work()
        except Exception as error:
            future.set_exception(error)
            return
        if fate is Fate.DONE:
            future.set_result(result)  # type: ignore[arg-type]
        else:
            future.set_exception(Broken(fate))

    step = Step(what, asyncio.current_task(), go)
    actor.waiting.append(step)
    try:
        return await future
    finally:
        if step in actor.waiting:
            actor.waiting.remove(step)


class _Timer(asyncio.TimerHandle):
    """A rest ends when its step is taken, and a time limit never."""

    rest: tuple[Actor, Step] | None = None

    def end(self) -> None:
        self.cancel_rest()
        self._run()

    def cancel(self) -> None:
        self.cancel_rest()
        super().cancel()

    def cancel_rest(self) -> None:
        rest, self.rest = self.rest, None
        if rest and rest[1] in rest[0].waiting:
            rest[0].waiting.remove(rest[1])


class StepLoop(asyncio.AbstractEventLoop):
    """An event loop that runs until every task waits for a step."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ready: deque[asyncio.Handle] = deque()
        self.failures: list[str] = []
        """Errors that no store has caused, and what no task has caught."""

    def run_until_idle(self) -> None:
        """Run what can run."""
        events._set_running_loop(self)
        ready = self._ready
        try:
            while ready:
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
        finally:
            events._set_running_loop(None)

    def create_task(  # type: ignore[override]
        self, work: Coroutine[Any, Any, T], *, name: object = None, context: Context | None = None
    ) -> "asyncio.Task[T]":
        context = context or copy_context()
        task = asyncio.Task(work, loop=self, name=None if name is None else str(name), context=context)
        tasks = context[_CURRENT].tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return task

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        if callback in (_RESTED, _WAITED):
            actor = _CURRENT.get()
            if actor.alive:
                step = Step(f"rest {when - self.time():.3g}", asyncio.current_task(), lambda _: timer.end())
                timer.rest = actor, step
                actor.waiting.append(step)
        return timer

    def time(self) -> float:
        return self._clock.monotonic()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        self.failures.append(f"{context['message']}: {error!r}")
