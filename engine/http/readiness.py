"""Readiness: whether this process can sell, what each service says, and which stage purchases wait for."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from engine.bus.publisher import Publisher
from engine.errors import BusUnavailable, GateUnavailable
from engine.gate.gate import Gate
from engine.gate.keys import STAGES
from engine.gate.looks.backlog import Backlog, Illness
from engine.ledger.ledger import Ledger
from engine.metrics import STAGE_WAITS
from engine.tasks import cancel

log = logging.getLogger(__name__)

OK: Final = "OK"
_LATE_S: Final = 6.0
"""A purchase that waits for a stage for longer is said, within ten seconds since it was accepted."""
_WAIT_S: Final = 0.75
"""Longest wait for a service: the probes of most platforms wait for one second."""


class Readiness:
    """Asks every service, each once at a time however many want to know."""

    def __init__(self, gate: Gate, ledger: Ledger, amqp_url: str | None) -> None:
        self._bus = Publisher(amqp_url) if amqp_url else None
        self._questions: dict[str, Callable[[], Awaitable[Any]]] = {
            "redis": gate.find_obstacle,
            "postgres": ledger.read_generation,
        }
        if self._bus:
            self._questions["rabbitmq"] = self._bus.read_queue
        self._asked: dict[str, asyncio.Task[Any]] = {}
        self._backlog = gate.backlog
        self.stages = dict.fromkeys(STAGES[not self._bus :], OK)
        """Each stage behind the gate: OK, or what purchases wait for."""

    async def watch(self) -> None:
        """Look once a second whether what is accepted is relayed and settled, and say when that changes."""
        while True:
            with suppress(GateUnavailable):  # `read` says so
                self._show(await self._find_late(await self._backlog.look()))
            await asyncio.sleep(1)

    async def read(self) -> tuple[str, dict[str, str]]:
        """Return why the gate sells nothing, "" if it sells; for each service OK or what is wrong with it."""
        tasks = {name: self._ask(name) for name in self._questions}
        await asyncio.wait(tasks.values(), timeout=_WAIT_S)
        services = {name: _describe(task) for name, task in tasks.items()}
        obstacle = tasks["redis"].result() if services["redis"] == OK else "Redis takes no purchases"
        return obstacle, services

    async def close(self, *_: object) -> None:
        """Stop asking, and disconnect."""
        await cancel(*self._asked.values())
        if self._bus:
            await self._bus.close()

    async def _find_late(self, backlog: Backlog) -> dict[str, Illness]:
        """Return the stages that purchases wait for, with the time since they do."""
        late = {stage: illness for stage, illness in backlog.ill.items() if illness.seconds > _LATE_S / 2}
        if self._bus and backlog.outbox_s > _LATE_S:
            late.setdefault("relay", Illness(backlog.outbox_s, "purchases wait in the outbox"))
        elif backlog.pending_s > _LATE_S and not late:
            place, dead_letters = "in the outbox", backlog.dead_letters
            if self._bus:
                place = "on the bus"
                with suppress(BusUnavailable, TimeoutError):
                    async with asyncio.timeout(1):
                        messages, consumers = await self._bus.read_queue()
                        dead_letters = await self._bus.count_dead_letters()
                    place = f"on the bus, in {messages} messages with {consumers} readers"
            place += f"; there are {dead_letters} dead letters" if dead_letters else ""
            late["fulfilment"] = Illness(backlog.pending_s, f"purchases wait {place}")
        for stage in self.stages:
            STAGE_WAITS.labels(stage).set(late[stage].seconds if stage in late else 0)
        return late

    def _show(self, late: dict[str, Illness]) -> None:
        for stage, before in self.stages.items():
            if stage in late:
                self.stages[stage] = f"{late[stage].text}, for {late[stage].seconds:.0f} s"
                if before == OK:
                    log.warning("nobody sees to purchases: %s: %s", stage, self.stages[stage])
            elif before != OK:
                self.stages[stage] = OK
                log.info("%s sees to purchases again", stage)

    def _ask(self, name: str) -> asyncio.Task[Any]:
        task = self._asked.get(name)
        if task is None:
            task = self._asked[name] = asyncio.ensure_future(self._questions[name]())
            task.add_done_callback(partial(self._forget, name))
        return task

    def _forget(self, name: str, task: asyncio.Task[Any]) -> None:
        del self._asked[name]
        if not task.cancelled():
            task.exception()  # which `read` may have given up


def _describe(task: asyncio.Task[Any]) -> str:
    if not task.done():
        return f"no answer in {_WAIT_S:g} s"
    return "unavailable" if task.exception() else OK
