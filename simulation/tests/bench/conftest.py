"""The engine that the benchmark's tests measure, on the session's services."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from engine.settings import Settings
from simulation.bench.subjects import Engine, serve_engine
from simulation.target.services import Services


@pytest.fixture
async def services(settings: Settings, redis: Redis) -> Services:
    return Services(
        redis_url=str(settings.redis_url),
        postgres_url=str(settings.postgres_url),
        amqp_url=settings.amqp_url,
        pids={"redis": (await redis.info("server"))["process_id"]},
    )


@pytest.fixture
async def engine(services: Services, tmp_path: Path) -> AsyncIterator[Engine]:
    async with serve_engine(services, tmp_path / "engine.log") as engine:
        yield engine
