"""The injector: does a timeline of faults to a running engine, and heals each of them, whatever happens."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import psutil

from engine.local.process import ProcessId, family, find_process, identify
from engine.local.stack import Stack
from simulation.errors import FaultError
from simulation.faults.memory_loss import MemoryLoss
from simulation.faults.proxy import Proxy
from simulation.faults.refusals import make_refusal
from simulation.model.events import Interval
from simulation.scenario.fault import REFUSALS, STAGES, Fault
from simulation.target.engine_process import EngineProcess
from simulation.target.services import Services

STAGE_S: Final = 15.0
"""Longest wait for a stage that is being started again, when the next fault is to be done to it."""
POLL_S: Final = 0.02


def check_targets(faults: Sequence[Fault], services: Services | None, own_engine: bool) -> None:
    """Raises FaultError where a fault needs something that this run does not have."""
    for fault in faults:
        if not own_engine or services is None:
            raise FaultError("faults need an engine of the run's own, not one at --target")
        if fault.on in ("relay", "rabbitmq") and services.amqp_url is None:
            raise FaultError(f"there is no {fault.on} to {fault.kind}: this engine has no bus")
        if fault.of_memory and services.amqp_url is None:
            raise FaultError(f"{fault.kind} would lose what the outbox holds: this engine has no bus")
        if not fault.of_network and fault.on not in STAGES and services.stack is None:
            raise FaultError(f"{fault.on} is not the run's own: it can't {fault.kind} it")


class Injector:
    """Does the faults of one run."""

    def __init__(
        self,
        faults: Sequence[Fault],
        engine: EngineProcess | None,
        services: Services | None,
        proxy: Proxy | None,
    ) -> None:
        self.intervals: list[Interval] = []
        """Those that were done and healed, in the order of their ends."""
        self._faults = faults
        self._engine = engine
        self._services = services
        self._proxy = proxy
        self._t0_ns: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(), name="injector")

    def begin(self, t0_ns: int) -> None:
        """The run's start, on time.monotonic_ns(), is known; may be said more than once."""
        if not self._t0_ns.done():
            self._t0_ns.set_result(t0_ns)

    async def finish(self, early: bool = False) -> list[Interval]:
        """Waits until every fault is healed; `early`: ends those under way, and does no more.

        Raises FaultError or the engine's StackError.
        """
        if early:
            await self.abandon()
        else:
            await self._task
        return sorted(self.intervals, key=lambda interval: interval.start_s)

    async def abandon(self) -> None:
        """Does no more faults, and waits until those under way are healed."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        t0_ns = await self._t0_ns
        try:
            async with asyncio.TaskGroup() as tasks:
                for fault in self._faults:
                    tasks.create_task(self._inject(fault, t0_ns))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None

    async def _inject(self, fault: Fault, t0_ns: int) -> None:
        await asyncio.sleep(fault.at_s - _since(t0_ns))
        start_s = _since(t0_ns)
        try:
            async with self._inflict(fault):
                await asyncio.sleep(fault.seconds)
        finally:
            end_s = _since(t0_ns) if fault.seconds or fault.on not in STAGES else start_s
            self.intervals.append(
                Interval(kind=fault.kind, on=fault.on, start_s=round(start_s, 3), end_s=round(end_s, 3))
            )

    @asynccontextmanager
    async def _inflict(self, fault: Fault) -> AsyncIterator[None]:
        """Does the fault, and heals it at the end, also where doing it was interrupted."""
        if fault.of_memory:
            async with self._forget(fault):
                yield
            return
        healing: Coroutine[Any, Any, None]
        stopped: list[ProcessId] = []
        if fault.of_network:
            healing = self._heal_network(fault)
        elif fault.kind in REFUSALS:
            refusal = make_refusal(fault.kind, fault.on, self._known_services, self._stack)
            healing = refusal.end()
        elif fault.kind == "stop":
            healing = _continue(stopped)
        elif fault.on in STAGES:
            healing = asyncio.sleep(0)  # the server heals it
        else:
            healing = self._start_service(fault.on)
        try:
            if fault.of_network:
                await self._change_network(fault)
            elif fault.kind in REFUSALS:
                await refusal.begin()
            elif fault.kind == "stop":
                await self._stop(fault.on, stopped)
            elif fault.on in STAGES:
                number = signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM
                _signal(await self._find_processes(fault.on), number)
            elif fault.kind == "kill":
                await self._stack.kill(fault.on)
            else:
                await self._stack.stop(fault.on)
            yield
        finally:
            await _to_the_end(healing)

    @asynccontextmanager
    async def _forget(self, fault: Fault) -> AsyncIterator[None]:
        """Fulfilment stands still while the block lasts; at its end the gate loses its memory."""
        loss = MemoryLoss(fault.kind, self._known_services, self._stack)
        stopped: list[ProcessId] = []

        async def heal() -> None:
            try:
                await self._start_service("redis")
            finally:
                _signal(stopped, signal.SIGCONT)
                loss.tidy()

        try:
            await self._stop("fulfilment", stopped)
            await loss.prepare()
            yield
            await self._stop("front-door", stopped)
            await loss.drain()
            await loss.strike()
        finally:
            await _to_the_end(heal())

    async def _stop(self, name: str, stopped: list[ProcessId]) -> None:
        """SIGSTOP; the processes are in `stopped` before, so that all of them are continued."""
        found = await self._find_processes(name)
        stopped += found
        _signal(found, signal.SIGSTOP)

    @property
    def _known_services(self) -> Services:
        if self._services is None:
            raise FaultError("the services are not the run's own")
        return self._services

    @property
    def _stack(self) -> Stack:
        if (stack := self._known_services.stack) is None:
            raise FaultError("the services are not the run's own")
        return stack

    async def _find_processes(self, name: str) -> list[ProcessId]:
        """The processes of a stage or service. Raises FaultError where it has none for too long."""
        if name not in STAGES:
            return family(identify(self._stack.pid(name)))
        if self._engine is None:
            raise FaultError("the engine is not the run's own")
        deadline = time.monotonic() + STAGE_S
        while not (found := self._engine.find_stage(name)):
            if time.monotonic() > deadline:
                raise FaultError(f"{name} does not run")
            await asyncio.sleep(POLL_S)
        return found

    async def _start_service(self, name: str) -> None:
        before = repr(self._stack.urls)
        await self._stack.start(name)
        if repr(self._stack.urls) != before:
            raise FaultError(f"another program has taken the port of {name} while it was down")
        if self._services is not None:
            self._services.pids[name] = self._stack.pid(name)

    async def _change_network(self, fault: Fault) -> None:
        if self._proxy is None:
            raise FaultError(f"there is no proxy before {fault.on}")
        await self._proxy.set_fault(fault.on, fault)

    async def _heal_network(self, fault: Fault) -> None:
        if self._proxy is not None:
            await self._proxy.set_fault(fault.on, None)


async def _continue(stopped: list[ProcessId]) -> None:
    _signal(stopped, signal.SIGCONT)


def _signal(processes: Iterable[ProcessId], number: signal.Signals) -> None:
    for known in processes:
        if (process := find_process(known)) is not None:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Awaits `work`; a cancellation waits for its end, too."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise


def _since(t0_ns: int) -> float:
    return (time.monotonic_ns() - t0_ns) / 1e9
