"""Where nobody relays or settles what is accepted, the front door says which stage it waits for."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial

import aiohttp
import pytest
from redis.asyncio import Redis

from engine.settings import Settings
from engine.tests.backend import CONFIRMED, count_statuses
from engine.tests.services import execute
from engine.tests.test_server import Server, buy, eventually, get, open_sale, serving

pytestmark = pytest.mark.slow

ALL = ("front-door", "relay", "fulfilment")
Ailment = Callable[[Settings, Redis], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def nothing(settings: Settings, redis: Redis) -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def forbidden(command: str, settings: Settings, redis: Redis) -> AsyncIterator[None]:
    await redis.acl_setuser("default", enabled=True, commands=[f"-{command}"], reset=False)
    try:
        yield
    finally:
        await redis.acl_setuser("default", enabled=True, commands=[f"+{command}"], reset=False)


@asynccontextmanager
async def no_writing_of_orders(settings: Settings, redis: Redis) -> AsyncIterator[None]:
    assert settings.postgres_url
    await execute(settings.postgres_url, "ALTER TABLE orders RENAME TO away")
    try:
        yield
    finally:
        await execute(settings.postgres_url, "ALTER TABLE away RENAME TO orders")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def stages(http: aiohttp.ClientSession, server: Server) -> dict[str, str]:
    status, ready = await get(http, f"{server.url}/readyz")
    assert status == 200, "it sells"
    return dict(ready["stages"])


async def names(http: aiohttp.ClientSession, server: Server, stage: str) -> bool:
    said = await stages(http, server)
    assert {name for name, text in said.items() if text != "OK"} <= {stage}
    return said[stage] != "OK"


async def are_well(http: aiohttp.ClientSession, server: Server) -> bool:
    return set((await stages(http, server)).values()) == {"OK"}


@pytest.mark.parametrize(
    ("roles", "more", "ailment", "stage", "said"),
    [
        (("front-door", "fulfilment"), {}, nothing, "relay", "in the outbox"),
        (("front-door", "relay"), {}, nothing, "fulfilment", "in 1 messages with 0 readers"),
        (ALL, {}, partial(forbidden, "xreadgroup"), "relay", "Redis"),
        (ALL, {"RELAY_CLAIM_MS": "100"}, partial(forbidden, "xautoclaim"), "relay", "Redis"),
        (ALL, {}, no_writing_of_orders, "ledger", "the ledger does not take orders"),
        (
            ALL,
            {"PAYMENT_LATENCY_MS": "60000", "PAYMENT_TIMEOUT_MS": "100"},
            nothing,
            "payment",
            "the payment of 1 orders fails",
        ),
    ],
    ids=["no relay", "no fulfilment", "no XREADGROUP", "no XAUTOCLAIM", "ledger", "payment"],
)
async def test_the_stage_that_purchases_wait_for_is_named_within_ten_seconds(
    settings: Settings,
    redis: Redis,
    http: aiohttp.ClientSession,
    roles: tuple[str, ...],
    more: dict[str, str],
    ailment: Ailment,
    stage: str,
    said: str,
) -> None:
    arguments = [word for role in roles for word in ("--role", role)]
    async with serving(settings, *arguments, log=None, **more) as server:
        await open_sale(http, server, 10)
        assert await are_well(http, server)
        async with ailment(settings, redis):
            assert (await buy(http, server))[0] == 200
            await eventually(partial(names, http, server, stage), within_s=10)
            assert said in (await stages(http, server))[stage]
            async with http.get(f"{server.url}/metrics") as response:
                lines = (await response.text()).splitlines()
            name = f'flashgrid_stage_waits_seconds{{stage="{stage}"}}'
            [line] = [line for line in lines if line.startswith(name)]
            assert float(line.split()[1]) > 2
            await asyncio.sleep(2)  # it is said once, not each second
            assert len([line for line in server.log if f"nobody sees to purchases: {stage}" in line]) == 1
        if ailment is not nothing:
            await eventually(partial(are_well, http, server))
            await eventually(partial(is_settled, settings))
            assert any(f"{stage} sees to purchases again" in line for line in server.log)


async def is_settled(settings: Settings) -> bool:
    return await count_statuses(settings) == {CONFIRMED: 1}
