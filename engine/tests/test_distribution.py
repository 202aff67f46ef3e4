"""An engine on services as the distribution has them, whose ledger is owned by another role."""

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from engine.settings import Settings
from engine.tests.distribution import Place, run_postgres, run_redis
from engine.tests.services import execute
from engine.tests.stages.test_reconciliation import run_command
from engine.tests.test_server import http
from engine.tests.test_set_ups import DML, sells

__all__ = ["http"]
pytestmark = pytest.mark.slow


@pytest.fixture
async def places() -> AsyncIterator[tuple[Place, Place]]:
    """Redis, and PostgreSQL with a database whose owner is "shop"; both also on sockets with short paths."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # noqa: ASYNC240
        for part in ("redis", "postgres"):
            (folder / part).mkdir()
        async with (
            run_redis(folder / "redis") as redis,
            run_postgres(folder / "postgres", "admin") as postgres,
        ):
            url = f"postgresql://admin@127.0.0.1:{postgres.port}"
            await execute(f"{url}/postgres", "CREATE ROLE shop LOGIN; CREATE ROLE till LOGIN")
            await execute(f"{url}/postgres", "CREATE DATABASE shop OWNER shop")
            yield redis, postgres


@pytest.mark.parametrize("sockets", [False, True], ids=["tcp", "sockets"])
async def test_services_of_the_distribution_serve(
    places: tuple[Place, Place], bus_url: str, http: aiohttp.ClientSession, tmp_path: Path, sockets: bool
) -> None:
    redis, postgres = places

    def settings_of(role: str) -> Settings:
        ledger = (
            f"postgresql://{role}@/shop?host={postgres.socket}&port={postgres.port}"
            if sockets
            else f"postgresql://{role}@127.0.0.1:{postgres.port}/shop"
        )
        return Settings(
            redis_url=f"unix://{redis.socket}" if sockets else f"redis://127.0.0.1:{redis.port}",
            amqp_url=bus_url,
            postgres_url=ledger,
            data_dir=str(tmp_path),
            port=0,
            dev=True,
        )

    assert (await run_command(settings_of("shop"), "migrate"))[0] == 0
    owner = f"postgresql://shop@127.0.0.1:{postgres.port}/shop"
    await execute(owner, DML.format(role="till"))
    log = await sells(settings_of("till"), http)
    assert any("Redis may lose accepted purchases" in line for line in log)
