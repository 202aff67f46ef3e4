"""A reading ends as read or as unreadable, and closed, whatever a client does when its service dies."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from engine.settings import Settings
from engine.tests.interruption import interrupt_at_every_step
from simulation.errors import Unreadable
from simulation.target.stores import (
    BusStore,
    GateStore,
    LedgerStore,
    Store,
    close_stores,
    measure_skew,
    read_stores,
    read_within,
)

Reading = Callable[[], Coroutine[Any, Any, int]]


async def answer() -> int:
    return 7


async def fail() -> int:
    raise RuntimeError("cannot switch state")


async def be_cancelled_by_the_library() -> int:
    waiter = asyncio.get_running_loop().create_future()
    waiter.cancel()
    return int(await waiter)


async def hang() -> int:
    await asyncio.Event().wait()
    return 7


async def lose_a_cancellation() -> int:
    with contextlib.suppress(asyncio.CancelledError):
        await hang()
    return await hang()


async def test_an_answer_is_read() -> None:
    assert await read_within(answer(), 5) == 7


@pytest.mark.parametrize(
    ("reading", "said"),
    [
        (fail, "RuntimeError: cannot switch state"),
        (be_cancelled_by_the_library, "the connection was closed"),
        (hang, "no answer in time"),
        pytest.param(lose_a_cancellation, "no answer in time", marks=pytest.mark.slow),
    ],
)
async def test_any_other_end_is_unreadable(reading: Reading, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        await read_within(reading(), 0.05)


async def test_a_cancellation_of_the_reader_is_its_own() -> None:
    task = asyncio.create_task(read_within(hang(), 60))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_clocks_of_this_machine_agree(settings_without_bus: Settings) -> None:
    assert settings_without_bus.redis_url is not None
    assert settings_without_bus.postgres_url is not None
    assert await measure_skew(settings_without_bus.redis_url, settings_without_bus.postgres_url) < 0.05
    assert await measure_skew("redis://127.0.0.1:1", "postgresql://127.0.0.1:1/none") == 0.0


async def test_stores_whose_reading_or_closing_is_interrupted_keep_no_connection(settings: Settings) -> None:
    async def look() -> None:
        stores: list[Store] = [
            GateStore(settings.redis_url or "", [], 1),
            LedgerStore(settings.postgres_url or "", []),
            BusStore(settings.amqp_url or ""),
        ]
        try:
            await read_stores(stores, 60)
        finally:
            await close_stores(stores)

    assert await interrupt_at_every_step(look) == set()
