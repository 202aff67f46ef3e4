"""The watch of a front door's gate ends with the gate."""

import asyncio

import pytest

from engine.gate import gate as module
from engine.gate.gate import Gate
from engine.settings import Settings

pytestmark = pytest.mark.slow


async def test_a_gate_closes_though_a_cancellation_of_its_watch_is_lost(
    settings_without_bus: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, lost = asyncio.Event(), asyncio.Event()

    async def lose(*_: object) -> list[int]:
        watching.set()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            # As asyncio.wait_for does before Python 3.12 if what it waits for is done at that moment.
            if not lost.is_set():
                lost.set()
                return [0]
            raise
        return [0]

    monkeypatch.setattr(module, "read_memory", lose)
    monkeypatch.setattr(module, "_WATCH_S", 0.01)
    gate = Gate(settings_without_bus)
    await watching.wait()
    async with asyncio.timeout(5):
        await gate.close()
    assert lost.is_set()
