"""The ledger with several hosts: a primary is lost, a standby is promoted, and the old primary comes back."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from engine.errors import LedgerUnavailable
from engine.ledger import hosts as ledger_hosts
from engine.ledger.checks import check_postgres
from engine.ledger.ledger import Ledger
from engine.local.cluster.postgres import Server
from engine.model.sale import Sale
from engine.tests.machines import PostgresCluster, freeze, run_postgres_cluster, thaw
from engine.tests.orders import ids, make_terms, reserve
from engine.tests.test_server import eventually

log = logging.getLogger(__name__)

pytestmark = pytest.mark.slow

_FOREVER_MS = 600_000
"""Nothing here ends because a statement was given up."""
_CONNECTIONS: Final = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'till' AND wait_event IS DISTINCT FROM 'SyncRep'
"""
_END_WAITS: Final = """
SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'
"""
_FOUND: Final = "SELECT count(*) FROM orders WHERE order_id = ANY ($1::text[]::uuid[])"


@pytest.fixture(scope="module")
async def cluster(stack_dir: Path) -> AsyncIterator[PostgresCluster]:
    async with run_postgres_cluster(stack_dir) as cluster:
        yield cluster


class Settler:
    """Settles one order after the other, and knows which of them were settled."""

    def __init__(self, ledger: Ledger, sale: Sale) -> None:
        self._ledger = ledger
        self._sale = sale
        self._task = asyncio.create_task(self._run())
        self.settled: list[str] = []
        self.began_s = 0.0
        """When the latest settlement began, on time.monotonic()."""

    async def _run(self) -> None:
        while True:
            lots = reserve(self._sale)
            while True:
                began_s = time.monotonic()
                try:
                    await self._ledger.settle(lots, {})
                except LedgerUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    break
            self.settled += ids(lots)
            self.began_s = began_s

    async def go_on(self) -> None:
        """Wait until an order is settled that was sent from now on."""
        start_s = time.monotonic()
        await eventually(lambda: self.began_s > start_s)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


async def promote(cluster: PostgresCluster, settler: Settler) -> None:
    """Promote a standby, wait until settling goes on, and report how long that took."""
    start_s = time.monotonic()
    await cluster.promote()
    promoted_s = time.monotonic()
    await settler.go_on()
    log.info("promoted in %.2f s, settled %.2f s later", promoted_s - start_s, time.monotonic() - promoted_s)


async def has_orders(server: Server, order_ids: list[str]) -> bool:
    """Whether the server has every one of these orders."""
    found = await server.fetch(_FOUND, order_ids)
    return bool(found == len(order_ids))


async def ends_waiting(server: Server, order_ids: list[str]) -> bool:
    """Give up waiting for standbys, which shows what was written; return whether these orders were."""
    await server.fetch(_END_WAITS)
    return await has_orders(server, order_ids)


async def is_left_alone(server: Server) -> bool:
    """Whether no connection of the ledger to the server is left, but for one whose commit waits."""
    return not await server.fetch(_CONNECTIONS)


async def test_a_primary_is_killed_and_settling_goes_on_at_the_standby_that_is_promoted(
    cluster: PostgresCluster,
) -> None:
    lost = cluster.primary
    async with await Ledger.connect(cluster.list_hosts(), timeout_ms=_FOREVER_MS) as ledger:
        await ledger.migrate()
        settler = Settler(ledger, await ledger.open_sale(make_terms(stock=1_000_000)))
        await settler.go_on()
        await lost.kill()
        await promote(cluster, settler)
        await cluster.take_back(lost)
        await settler.go_on()
        await settler.stop()
        for server in (cluster.primary, *cluster.standbys):
            await eventually(partial(has_orders, server, settler.settled))


async def test_an_old_primary_that_thaws_settles_nothing_and_is_believed_by_nobody(
    cluster: PostgresCluster,
) -> None:
    lost = cluster.primary
    till = f"{cluster.list_hosts(lost, *cluster.standbys)}?application_name=till"
    async with await Ledger.connect(till, timeout_ms=_FOREVER_MS) as ledger:
        await ledger.migrate()
        sale = await ledger.open_sale(make_terms(stock=1_000_000))
        settler = Settler(ledger, sale)
        await settler.go_on()
        freeze(lost)
        await promote(cluster, settler)
        thaw(lost)
        await eventually(partial(is_left_alone, lost))

        tail = reserve(sale)
        async with await Ledger.connect(lost.url, timeout_ms=500) as mistaken:
            with pytest.raises(LedgerUnavailable):
                await mistaken.settle(tail, {})
            await eventually(partial(ends_waiting, lost, ids(tail)))
        async with await Ledger.connect(till) as newcomer:
            for reader in (ledger, newcomer):
                settled = settler.settled.copy()
                assert len(await reader.find_orders(settled + ids(tail))) == len(settled)
        assert await is_left_alone(lost)

        await cluster.take_back(lost)
        await settler.go_on()
        await settler.stop()
        await eventually(partial(has_orders, lost, settler.settled))
        assert not await has_orders(lost, ids(tail))


async def test_a_host_that_does_not_answer_and_a_standby_that_confirms_nothing_are_said_at_the_start(
    cluster: PostgresCluster, caplog: pytest.LogCaptureFixture
) -> None:
    primary = cluster.primary
    # A role without rights learns who is in charge.
    await primary.fetch("DROP ROLE IF EXISTS till")
    await primary.fetch("CREATE ROLE till LOGIN PASSWORD 'secret'")
    for standby in cluster.standbys:
        await eventually(partial(standby.fetch, "SELECT count(*) FROM pg_roles WHERE rolname = 'till'"))
    login = cluster.list_hosts().rpartition("@")[0]
    url = cluster.list_hosts().replace(login, "postgresql://till:secret", 1)
    await check_postgres(url)
    assert caplog.messages == []
    await cluster.standbys[0].kill()
    await check_postgres(url)
    [silent] = caplog.messages
    assert f"127.0.0.1:{cluster.standbys[0].port} does not answer" in silent
    await cluster.standbys[0].start()
    await eventually(cluster.is_whole)
    caplog.clear()
    await primary.fetch("ALTER ROLE till SET synchronous_commit = 'local'")
    await check_postgres(url)
    [asynchronous] = caplog.messages
    assert "no standby confirms what is settled" in asynchronous
    await primary.fetch("ALTER ROLE till RESET synchronous_commit")


async def test_where_no_host_is_in_charge_each_is_named(
    cluster: PostgresCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    standby, lost = cluster.standbys
    await lost.kill()
    monkeypatch.setattr(ledger_hosts, "_PATIENCE_S", 0.5)
    async with await Ledger.connect(cluster.list_hosts(*cluster.standbys)) as ledger:
        with pytest.raises(LedgerUnavailable) as error:
            await ledger.find_newest()
    assert f"127.0.0.1:{standby.port} is read-only; 127.0.0.1:{lost.port} does not answer" in str(error.value)
    await lost.start()
    await eventually(cluster.is_whole)
