"""The injector: does a timeline of faults to a running engine, and ends each of them, whatever happens."""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import psutil

from engine.local.process import ProcessId, family, find_process, identify
from engine.stages.lifecycle import cancel
from simulation.errors import FaultError
from simulation.faults.commands import insist
from simulation.faults.memory_loss import MemoryLoss
from simulation.faults.proxy import Proxy
from simulation.faults.refusals import make_refusal
from simulation.model.events import Interval
from simulation.scenario.fault import REFUSALS, STAGES, Fault
from simulation.target.background import Background
from simulation.target.engine_process import EngineProcess
from simulation.target.services import Services

T = TypeVar("T")


def check_targets(faults: Sequence[Fault], services: Services | None, own_engine: bool) -> None:
    """Raise FaultError for a fault that needs something that this run does not have."""
    for fault in faults:
        if not own_engine or services is None:
            raise FaultError("faults need an engine of the run's own, not one at --target")
        if fault.on in ("relay", "rabbitmq") and services.amqp_url is None:
            raise FaultError(f"there is no {fault.on} to {fault.kind}: this engine has no bus")
        if fault.of_memory and services.amqp_url is None:
            raise FaultError(f"{fault.kind} would lose what the outbox holds: this engine has no bus")
        if not fault.of_network and fault.on not in STAGES and services.stack is None:
            raise FaultError(f"{fault.on} is not the run's own: it can't {fault.kind} it")


async def _do_nothing() -> None:
    pass


class _Effect(NamedTuple):
    """How a fault is done and ended."""

    begin: Callable[[], Awaitable[Any]]
    end: Callable[[], Awaitable[Any]]
    """Undoes the fault, also if anything before was interrupted."""
    strike: Callable[[], Awaitable[Any]] = _do_nothing
    """Runs before `end`, if nothing was interrupted."""


class Injector(Background):
    """Does the faults of one run. The end of `async with` ends those under way."""

    def __init__(
        self,
        faults: Sequence[Fault],
        engine: EngineProcess | None,
        services: Services | None,
        proxy: Proxy | None,
    ) -> None:
        super().__init__()
        self.intervals: list[Interval] = []
        """The faults that have ended, in the order of their ends."""
        self._faults = faults
        self._engine = engine
        self._services = services
        self._proxy = proxy

    async def finish(self, early: bool = False) -> list[Interval]:
        """Wait until every fault has ended, and return them by their starts.

        `early`: end those under way, and do no more. Raises FaultError or the engine's StackError.
        """
        if early:
            await self._cancel()
        else:
            await self._task
        return sorted(self.intervals, key=lambda interval: interval.start_s)

    async def _run(self) -> None:
        await self._begun.wait()
        tasks = [asyncio.create_task(self._inject(fault)) for fault in self._faults]
        try:
            await asyncio.gather(*tasks)
        finally:
            await cancel(*tasks)

    async def _inject(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s - self._seconds())
        start_s = self._seconds()
        effect = self._effect_of(fault)
        try:
            await effect.begin()
            await asyncio.sleep(fault.seconds)
            await effect.strike()
        finally:
            try:
                await _to_the_end(effect.end())
            finally:
                # The server starts a stage again by itself: such a fault ends as it begins.
                end_s = self._seconds() if fault.seconds or fault.on not in STAGES else start_s
                self.intervals.append(
                    Interval(kind=fault.kind, on=fault.on, start_s=round(start_s, 3), end_s=round(end_s, 3))
                )

    def _effect_of(self, fault: Fault) -> _Effect:
        kind, on = fault.kind, fault.on
        if fault.of_network:
            proxy = _known(self._proxy)
            return _Effect(lambda: proxy.set_fault(on, fault), lambda: proxy.set_fault(on, None))
        stopped: list[ProcessId] = []
        if kind == "stop":
            return _Effect(lambda: self._stop(on, stopped), lambda: _continue(stopped))
        if on in STAGES:
            return _Effect(lambda: self._end_stage(on, kind), _do_nothing)
        services = _known(self._services)
        stack = _known(services.stack)
        if fault.of_memory:
            return self._forget(MemoryLoss(kind, services, stack), stopped)
        if kind in REFUSALS:
            refusal = make_refusal(kind, on, services, stack)
            return _Effect(refusal.begin, refusal.end)
        halt = stack.kill if kind == "kill" else stack.stop
        return _Effect(lambda: halt(on), lambda: self._start_service(on))

    def _forget(self, loss: MemoryLoss, stopped: list[ProcessId]) -> _Effect:
        """Let fulfilment stand still during the fault, and take the gate's memory away at its end."""

        async def begin() -> None:
            await self._stop("fulfilment", stopped)
            await loss.prepare()

        async def strike() -> None:
            await self._stop("front-door", stopped)
            await loss.drain()
            await loss.strike()

        async def end() -> None:
            try:
                await self._start_service("redis")
            finally:
                await _continue(stopped)
                loss.tidy()

        return _Effect(begin, end, strike)

    async def _stop(self, name: str, stopped: list[ProcessId]) -> None:
        """Send SIGSTOP. The processes join `stopped` before, so that all of them are continued."""
        found = await self._find_processes(name)
        stopped += found
        _signal(found, signal.SIGSTOP)

    async def _end_stage(self, name: str, kind: str) -> None:
        _signal(await self._find_processes(name), signal.SIGKILL if kind == "kill" else signal.SIGTERM)

    async def _find_processes(self, name: str) -> list[ProcessId]:
        """Return the processes of a stage or service. Raises FaultError if there are none for too long."""
        if name not in STAGES:
            return family(identify(_known(_known(self._services).stack).pid(name)))
        engine = _known(self._engine)

        async def find() -> list[ProcessId]:
            if not (found := engine.find_stage(name)):
                raise FaultError(f"{name} does not run")
            return found

        return await insist(find)

    async def _start_service(self, name: str) -> None:
        services = _known(self._services)
        stack = _known(services.stack)
        before = repr(stack.urls)
        await stack.start(name)
        if repr(stack.urls) != before:
            raise FaultError(f"another program has taken the port of {name} while it was down")
        services.pids[name] = stack.pid(name)


def _known(part: T | None) -> T:
    """Return a part of the run that `check_targets` has made sure of."""
    if part is None:
        raise FaultError("engine, services or proxy are not the run's own")
    return part


async def _continue(stopped: Iterable[ProcessId]) -> None:
    _signal(stopped, signal.SIGCONT)


def _signal(processes: Iterable[ProcessId], number: signal.Signals) -> None:
    for known in processes:
        if (process := find_process(known)) is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)


async def _to_the_end(work: Awaitable[Any]) -> None:
    """Await `work`. Cancellations, however many, wait for its end, too."""
    task = asyncio.ensure_future(work)
    cancelled = False
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            cancelled = True
    if cancelled and not task.exception():
        raise asyncio.CancelledError
    task.result()
