"""Several nodes that speak TLS alone: the engine follows them, and says in a line what does not fit."""

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from redis.exceptions import RedisError

from engine.errors import LedgerUnavailable
from engine.gate.client import connect_shards, find_silent_nodes
from engine.gate.keys import shard_of
from engine.ledger.checks import check_postgres
from engine.ledger.ledger import Ledger
from engine.local.cluster.postgres import Server
from engine.settings import Settings
from engine.tests.certificates import Authority, Certificate
from engine.tests.clusters import Node
from engine.tests.distribution import find_postgres
from engine.tests.ledger.test_hosts import Settler, has_orders
from engine.tests.machines import run_postgres_cluster
from engine.tests.orders import make_terms
from engine.tests.test_server import http, serving
from engine.tests.test_set_ups import refused
from engine.tests.test_shards import Fetch, change, keys_of, sells_on
from engine.tests.tls import TlsCluster, run_tls_cluster

__all__ = ["http"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
async def cluster(stack_dir: Path) -> AsyncIterator[TlsCluster]:
    async with run_tls_cluster(stack_dir) as cluster:
        yield cluster


@pytest.fixture
async def spread(settings_without_bus: Settings, cluster: TlsCluster) -> Settings:
    """An engine with three shards on an empty cluster."""
    for node in cluster.nodes.values():
        with suppress(RedisError):  # a replica is emptied by its primary
            await node.execute("FLUSHALL")
    return change(settings_without_bus, redis_url=cluster.url, gate_shards=3)


@pytest.mark.parametrize("end", ["killed", "frozen"])
async def test_a_sale_goes_on_when_primaries_hand_over_and_are_lost(
    spread: Settings, cluster: TlsCluster, http: Fetch, end: str
) -> None:
    keys = shard_of(1, keys_of(3))
    lost: list[Node] = []
    with ExitStack() as frozen:

        async def disturb() -> None:
            primary = await cluster.find_primary(keys)
            lost.append(await cluster.fail_over(primary))
            await cluster.make_whole()
            if end == "killed":
                await lost[0].kill()
            else:
                frozen.enter_context(lost[0].frozen())

        async with serving(spread) as server:
            await sells_on(spread, http, server, disturb)
            frozen.close()
    if end == "killed":
        await cluster.start(lost[0])
    await cluster.make_whole()


async def test_what_does_not_fit_is_said_in_a_line(
    spread: Settings, cluster: TlsCluster, tmp_path: Path
) -> None:
    stranger = Authority(tmp_path, "stranger")
    mine = cluster.client
    for url, *said in (
        (cluster.name_nodes(mine._replace(authority=stranger.file).for_redis), "self-signed certificate"),
        (
            cluster.name_nodes(f"ssl_ca_certs={mine.authority}"),
            "wants a certificate of its client: add ssl_cert",
        ),
        (cluster.name_nodes().replace("rediss", "redis"), "wants TLS: write rediss+cluster://"),
        (cluster.name_nodes(mine.for_redis, "localhost"), "not valid for 'localhost'"),
    ):
        await refused(change(spread, redis_url=url), "FLASHGRID_REDIS_URL: ", *said)


async def find_hosts(url: str) -> set[str]:
    """The hosts at which the primaries of three shards answer."""
    found = set[str]()
    async with connect_shards(Settings(redis_url=url, gate_shards=3)) as shards:
        for shard in shards:
            await shard.redis.ping()
            found |= {each.host for each in shard.redis.connection_pool._available_connections}
    return found


async def test_clients_reach_nodes_by_what_the_nodes_prefer(cluster: TlsCluster) -> None:
    """https://github.com/redis/RedisInsight/pull/6180: a name is announced to all, and is not for all."""
    by_name = cluster.authority.issue("named", "DNS:localhost")
    url = cluster.name_nodes(cluster.client.for_redis, "localhost")
    try:
        await cluster.announce("nowhere.invalid", "ip")
        assert await find_hosts(cluster.url) == {"127.0.0.1"}
        await cluster.present(by_name)
        with pytest.raises(RedisError, match=r"not valid for '127.0.0.1'"):
            await find_hosts(url)
        await cluster.announce("nowhere.invalid", "unknown-endpoint")
        assert await find_hosts(url) == {"localhost"}
        await cluster.announce("localhost", "hostname")
        assert await find_hosts(url) == {"localhost"}
        await cluster.present()
        await cluster.announce("", "hostname")
        assert await find_hosts(cluster.url) == {"127.0.0.1"}, "the name is missing"
    finally:
        await cluster.announce("", "ip")
        await cluster.present()


async def test_a_replica_whose_certificate_does_not_fit_is_named_at_the_start(cluster: TlsCluster) -> None:
    assert await find_silent_nodes(cluster.url) == []
    others = list(cluster.nodes.values())[3:]
    [other, *_] = [node for node in others if await node.has_role("slave")]
    await cluster.present(cluster.authority.issue("elsewhere", "DNS:elsewhere"), other)
    try:
        [said] = await find_silent_nodes(cluster.url)
        assert said.startswith(f"127.0.0.1:{other.port}: ")
        assert "not valid for '127.0.0.1'" in said
    finally:
        await cluster.present()


async def speak_tls(server: Server, certificate: Certificate) -> None:
    """Let a server of PostgreSQL speak TLS, too."""
    for name, file in (("crt", certificate.file), ("key", certificate.key)):
        copy = server.data / f"server.{name}"
        shutil.copyfile(file, copy)
        if os.geteuid() == 0:
            shutil.chown(copy, "nobody")
        copy.chmod(0o600)
    await server.fetch("ALTER SYSTEM SET ssl = on")
    await server.fetch("SELECT pg_reload_conf()")


async def test_the_ledger_follows_a_standby_that_is_promoted(
    stack_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = find_postgres()  # the package's knows no TLS
    for module in ("engine.local.postgres", "engine.local.cluster.postgres"):
        monkeypatch.setattr(f"{module}.find_programs", lambda _user: programs)
    authority = Authority(tmp_path)
    certificate = authority.issue("server", "IP:127.0.0.1")
    async with run_postgres_cluster(stack_dir) as cluster:
        for server in (cluster.primary, *cluster.standbys):
            await speak_tls(server, certificate)
        url = f"{cluster.list_hosts()}?sslmode=verify-full&sslrootcert={authority.file}"
        async with await Ledger.connect(url) as ledger:
            await ledger.migrate()
            settler = Settler(ledger, await ledger.open_sale(make_terms(stock=1_000_000)))
            await settler.go_on()
            assert await cluster.primary.fetch("SELECT count(*) FROM pg_stat_ssl WHERE ssl")
            await cluster.primary.kill()
            await cluster.promote()
            await settler.go_on()
            await settler.stop()
            assert await has_orders(cluster.primary, settler.settled)
        with pytest.raises(LedgerUnavailable, match="not valid for 'localhost'"):
            await check_postgres(url.replace("127.0.0.1", "localhost"))
