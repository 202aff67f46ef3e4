"""The injector: does a timeline of faults to a running engine, and ends each of them, whatever happens."""

import asyncio
import contextlib
import signal
from collections import defaultdict
from collections.abc import Collection, Coroutine, Sequence
from contextlib import AsyncExitStack
from typing import Any, cast

from engine.local.machines import Network
from engine.local.process import ProcessId, family, freeze_processes, identify, send_signal
from engine.local.stack import Stack
from engine.tasks import cancel
from simulation.errors import FaultError
from simulation.faults.commands import do_command, drop_connections, insist
from simulation.faults.memory_loss import MemoryLoss
from simulation.faults.nodes import NodeFault
from simulation.faults.proxy import Proxy
from simulation.faults.refusals import make_refusal
from simulation.model.events import Interval
from simulation.scenario.fault import COMMAND, PARTITIONS, REFUSALS, STAGES, Fault
from simulation.target.background import Background
from simulation.target.engine_process import Engines
from simulation.target.foreign.programs import Programs
from simulation.target.services import Services


def check_targets(
    faults: Sequence[Fault], services: Services | None, stages: Collection[str] = STAGES
) -> None:
    """Raise FaultError for a fault that needs something that this run does not have.

    `services` are those of the run's own engine, which has these stages; None if it has none.
    """
    for fault in faults:
        if fault.kind == COMMAND:
            continue
        if services is None:
            raise FaultError("faults need an engine of the run's own, not one at --target")
        if fault.on in STAGES and fault.on not in stages:
            raise FaultError(f"there is no {fault.on} to {fault.kind}: this engine has {', '.join(stages)}")
        if fault.on.startswith(("relay", "rabbitmq", "queue")) and services.amqp_url is None:
            raise FaultError(f"there is no {fault.on} to {fault.kind}: this engine has no bus")
        if fault.of_memory and services.amqp_url is None:
            raise FaultError(f"{fault.kind} would lose what the outbox holds: this engine has no bus")
        if fault.on in services.clustered:
            raise FaultError(f"{fault.on} has several nodes: there is no fault for all of them at once")
        if not fault.of_network and fault.on not in STAGES and services.stack is None:
            raise FaultError(f"{fault.on} is not the run's own: it can't {fault.kind} it")
        if fault.kind in PARTITIONS and services.stack and not Network(services.stack.data_dir).can_be_cut:
            raise FaultError(f"{fault.kind} {fault.on}: the machines share loopback; cut off, they need root")


class Injector(Background):
    """Does the faults of one run. The end of `async with` ends those under way."""

    def __init__(
        self,
        faults: Sequence[Fault],
        engine: Engines | Programs | None,
        services: Services | None,
        proxy: Proxy | None,
    ) -> None:
        super().__init__()
        self.intervals: list[Interval] = []
        """The faults that have ended, in the order of their ends."""
        self._faults = faults
        self._free = defaultdict[str, asyncio.Lock](asyncio.Lock)
        """What faults hit: a fault that takes longer than planned makes the next one wait."""
        # `check_targets` has made sure of what these faults need.
        self._engine = cast(Engines | Programs, engine)
        self._services = cast(Services, services)
        self._stack = cast(Stack, services and services.stack)
        self._proxy = cast(Proxy, proxy)

    async def finish(self, early: bool = False) -> list[Interval]:
        """Wait until every fault has ended, and return them by their starts.

        `early`: end those under way, and do no more. Raises FaultError or the engine's StackError.
        """
        if early:
            await cancel(self._task)
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
        async with AsyncExitStack() as held:
            for name in fault.hits:
                await held.enter_async_context(self._free[name])
            await self._do(fault)

    async def _do(self, fault: Fault) -> None:
        start_s = self._seconds()
        ending, failed = AsyncExitStack(), None
        engines = self._engine.each if isinstance(self._engine, Engines) else ()
        nodes = NodeFault(fault, self._services, self._stack, engines) if fault.of_nodes else None
        try:
            try:
                if fault.of_memory:
                    await self._take_memory(fault, ending)
                elif nodes:
                    await nodes.find()
                    start_s = self._seconds()
                    await nodes.begin(ending)
                    await asyncio.sleep(fault.seconds)
                else:
                    await self._begin_fault(fault, ending)
                    await asyncio.sleep(fault.seconds)
            finally:
                await _to_the_end(ending.aclose())
        except FaultError as error:
            # What fails there is not the run's own: it goes on, and is judged.
            if fault.kind != COMMAND:
                raise
            failed = str(error)
        finally:
            # The server starts a stage again by itself: such a fault ends as it begins.
            end_s = self._seconds() if fault.seconds or fault.on not in STAGES else start_s
            self.intervals.append(
                Interval(
                    kind=fault.kind,
                    on=fault.on,
                    start_s=round(start_s, 3),
                    end_s=round(end_s, 3),
                    failed=failed,
                    hit=nodes.hit if nodes else [],
                )
            )

        if nodes:
            await nodes.make_whole()

    async def _begin_fault(self, fault: Fault, ending: AsyncExitStack) -> None:
        """Begin a fault. `ending` learns first what ends it, so that it ends also if this is interrupted."""
        kind, on = fault.kind, fault.on
        if fault.of_network:
            ending.push_async_callback(self._proxy.set_fault, on, None)
            await self._proxy.set_fault(on, fault)
        elif kind == COMMAND:
            ending.push_async_callback(do_command, fault.end, f"{kind} {on}: end")
            await do_command(fault.begin, f"{kind} {on}: begin")
        elif kind == "stop":
            await self._stop(on, ending)
        elif on in STAGES:
            number = signal.SIGKILL if kind == "kill" else signal.SIGTERM
            send_signal(await self._find_processes(on), number)
        elif kind == "drop_connections":
            await insist(lambda: drop_connections(on, self._services, self._stack))
        elif kind in REFUSALS:
            refusal = make_refusal(kind, on, self._services, self._stack)
            ending.push_async_callback(refusal.end)
            await refusal.begin()
        else:
            ending.push_async_callback(self._start_service, on)
            await (self._stack.kill(on) if kind == "kill" else self._stack.stop(on))

    async def _take_memory(self, fault: Fault, ending: AsyncExitStack) -> None:
        """Let fulfilment stand still during the fault, and take the gate's memory away at its end."""
        loss = MemoryLoss(fault.kind, self._services, self._stack)
        ending.callback(loss.tidy)
        await self._stop("fulfilment", ending)
        await loss.prepare()
        await asyncio.sleep(fault.seconds)
        await self._stop("front-door", ending)
        await loss.drain()
        ending.push_async_callback(self._start_service, "redis")
        await loss.strike()

    async def _stop(self, name: str, ending: AsyncExitStack) -> None:
        """Send SIGSTOP to the processes of a stage or service, and SIGCONT to the same at the end."""
        found = await self._find_processes(name)
        ending.callback(send_signal, found, signal.SIGCONT)
        freeze_processes(found)

    async def _find_processes(self, name: str) -> list[ProcessId]:
        """Return all processes of a stage or service. Raises FaultError if one is missing for too long."""
        if name not in STAGES:
            return family(identify(self._stack.pid(name)))

        async def find() -> list[ProcessId]:
            found = self._engine.find_stage(name)
            if len(found) < self._engine.sizes[name]:
                raise FaultError(f"{name} does not run")
            return found

        return await insist(find)

    async def _start_service(self, name: str) -> None:
        before = repr(self._stack.urls)
        await self._stack.start(name)
        if repr(self._stack.urls) != before:
            raise FaultError(f"another program has taken the port of {name} while it was down")
        self._services.pids[name] = self._stack.pid(name)


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, also through any number of cancellations: nothing is done after it."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])
    task.result()
