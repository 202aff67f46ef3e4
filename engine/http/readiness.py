"""Readiness: whether this process can sell, and what each service says."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from engine.bus.publisher import Publisher
from engine.gate.gate import Gate
from engine.ledger.ledger import Ledger

OK: Final = "OK"
_WAIT_S: Final = 0.75
"""Longest wait for a service: the probes of most platforms wait for one second."""


class Readiness:
    """Asks every service, each once at a time however many want to know."""

    def __init__(self, gate: Gate, ledger: Ledger, amqp_url: str | None) -> None:
        self._bus = Publisher(amqp_url) if amqp_url else None
        self._questions: dict[str, Callable[[], Awaitable[Any]]] = {
            "redis": gate.reads.is_open,
            "postgres": ledger.read_generation,
        }
        if self._bus:
            self._questions["rabbitmq"] = self._bus.read_queue
        self._asked: dict[str, asyncio.Task[Any]] = {}

    async def read(self) -> tuple[bool, dict[str, str]]:
        """Return whether the gate is open, and for each service OK or what is wrong with it."""
        tasks = {name: self._ask(name) for name in self._questions}
        await asyncio.wait(tasks.values(), timeout=_WAIT_S)
        services = {name: _describe(task) for name, task in tasks.items()}
        return services["redis"] == OK and bool(tasks["redis"].result()), services

    async def close(self, *_: object) -> None:
        """Stop asking, and disconnect."""
        for task in self._asked.values():
            task.cancel()
        await asyncio.gather(*self._asked.values(), return_exceptions=True)
        if self._bus:
            await self._bus.close()

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
