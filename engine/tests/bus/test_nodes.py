"""The bus with several nodes: the one that leads the queue is lost, and nothing that was confirmed."""

import asyncio
import json
import logging
import random
import re
import socket
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import aio_pika
import aiohttp
import pytest
from aiormq.exceptions import AMQPError

from engine.bus import checks as bus_checks
from engine.bus.checks import check_bus
from engine.bus.consumer import Consumer
from engine.bus.publisher import Publisher
from engine.bus.topology import DEAD, PURCHASES, declare_topology
from engine.errors import BusUnavailable, SettingsError
from engine.gate.client import connect_shards
from engine.ledger.ledger import Ledger
from engine.local.ports import free_port
from engine.metrics import UNSAFE
from engine.settings import Settings
from engine.stages import keeper
from engine.stages.keeper import watch_settings
from engine.stages.lifecycle import running
from engine.tests.machines import RabbitCluster, RabbitNode, freeze, run_rabbit_cluster, thaw
from engine.tests.test_server import eventually

pytestmark = pytest.mark.slow

log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
async def cluster(stack_dir: Path, amqp_url: str) -> AsyncIterator[RabbitCluster]:
    async with run_rabbit_cluster(stack_dir) as cluster:
        yield cluster


class Traffic:
    """Publishes one message after the other until it is confirmed, and reads them on another connection."""

    def __init__(self, url: str) -> None:
        self._publisher, self._consumer = Publisher(url), Consumer(url, prefetch=100)
        self._confirmed: list[bytes] = []
        self._received: set[bytes] = set()
        self._began_s = self._longest_s = 0.0
        self._tasks = [asyncio.create_task(self._publish()), asyncio.create_task(self._consume())]

    async def _publish(self) -> None:
        number = 0
        while True:
            number += 1
            first_s = time.monotonic()
            while True:
                began_s = time.monotonic()
                try:
                    await self._publisher.publish(b"%d" % number)
                except BusUnavailable:
                    await asyncio.sleep(0.05)
                else:
                    break
            self._confirmed.append(b"%d" % number)
            self._began_s = began_s
            self._longest_s = max(self._longest_s, time.monotonic() - first_s)

    async def _consume(self) -> None:
        while True:
            try:
                messages = await self._consumer.read(1)
            except BusUnavailable:
                await asyncio.sleep(0.05)
            else:
                self._received.update(message.lines for message in messages)
                await self._consumer.acknowledge(messages)

    async def go_on(self) -> None:
        """Wait until a message is confirmed that was sent from now on."""
        start_s = time.monotonic()
        await eventually(lambda: self._began_s > start_s, within_s=60)

    async def end(self) -> float:
        """Publish no more, and wait until all that was confirmed is received; return the longest wait for a
        confirm."""
        self._tasks[0].cancel()
        await eventually(lambda: self._received.issuperset(self._confirmed), within_s=60)
        self._tasks[1].cancel()
        await asyncio.wait(self._tasks)
        await self._publisher.close()
        await self._consumer.close()
        return self._longest_s


async def make_leader(cluster: RabbitCluster, node: RabbitNode) -> None:
    """Make the queues anew. RabbitMQ makes the node that declares a queue its leader."""
    await eventually(partial(_declares_anew, node))


async def _declares_anew(node: RabbitNode) -> bool:
    # On a busy machine RabbitMQ may still be deleting the queue of before, and refuses.
    with suppress(AMQPError):
        async with await aio_pika.connect(node.url) as connection, connection.channel() as channel:
            for name in (PURCHASES, DEAD):
                await channel.queue_delete(name)
            await declare_topology(channel)
            return True
    return False


@pytest.mark.parametrize("end", ["killed", "frozen", "killed by TLS"])
async def test_the_leader_of_the_queue_is_lost_and_all_that_was_confirmed_arrives(
    cluster: RabbitCluster, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    leader = cluster.nodes[1]
    monkeypatch.setattr(random, "sample", lambda urls, _: urls)  # they connect to the first one
    await make_leader(cluster, leader)
    by_tls = end.endswith("TLS")
    traffic = Traffic(cluster.list_tls_hosts(leader) if by_tls else cluster.list_hosts(leader))
    await traffic.go_on()
    if end.startswith("killed"):
        await leader.kill()
    else:
        freeze(leader)
    await traffic.go_on()
    thaw(leader)
    # A node that was frozen stays apart from the others until it is started again.
    await leader.restart()
    await traffic.go_on()
    log.info("the leader is %s: a confirm took %.2f s", end, await traffic.end())


async def test_a_policy_that_loses_purchases_is_refused_at_the_start_and_said_later(
    cluster: RabbitCluster,
    settings_without_bus: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = cluster.nodes[0]
    url = f"{first.url}?management_port={cluster.management}"
    ledger = await Ledger.connect(settings_without_bus.postgres_url)
    await ledger.migrate()
    identity = await ledger.read_identity()
    await check_bus(url, identity)

    async def holds(pattern: str, policy: str) -> bool:
        found = {
            queue: (await bus_checks.read_queue(url, queue)).get("effective_policy_definition") or {}
            for queue in (PURCHASES, DEAD)
        }
        return found == {queue: json.loads(policy) if re.search(pattern, queue) else {} for queue in found}

    for pattern, policy, said in (
        (".*", '{"expires":60000}', f"sets expires for the queue {PURCHASES}"),
        (f"^{PURCHASES}$", '{"message-ttl":60000}', "sets message-ttl"),
        (".*", '{"max-length":10,"overflow":"drop-head"}', "sets max-length"),
        (f"^{DEAD}$", '{"max-length-bytes":10}', f"sets max-length-bytes for the queue {DEAD}"),
        (".*", '{"delivery-limit":20}', f"sets delivery-limit for the queue {PURCHASES}"),
        # A quorum queue drops its oldest message all the same.
        (".*", '{"max-length":10,"overflow":"reject-publish-dlx"}', "sets max-length"),
        (".*", '{"max-length":10,"overflow":"reject-publish"}', ""),
    ):
        await first.set_policy(pattern, policy)
        await eventually(partial(holds, pattern, policy))
        if said:
            with pytest.raises(SettingsError, match=re.escape(said)):
                await check_bus(url, identity)
        else:
            await check_bus(url, identity)

    def is_said(text: str, unsafe: int) -> bool:
        return text in caplog.text and UNSAFE.labels("RabbitMQ")._value.get() == unsafe

    monkeypatch.setattr(keeper, "_WATCH_S", 0.02)
    UNSAFE.labels("RabbitMQ").set(2)
    async with (
        connect_shards(settings_without_bus) as shards,
        ledger,
        running(watch_settings(shards, ledger, url)),
    ):
        await eventually(lambda: is_said("", 0))
        await first.set_policy(".*", '{"delivery-limit":20}')
        await eventually(lambda: is_said("a policy of RabbitMQ loses purchases: it sets delivery-limit", 1))
        with caplog.at_level(logging.INFO):
            await first.set_policy("", "")
            await eventually(lambda: is_said("RabbitMQ are safe again", 0))
        # Operators' policies are of another kind.
        await first.set_operator_policy('{"max-length":10}')
        await eventually(lambda: is_said("it sets max-length", 1))
        await first.set_operator_policy("")
        await eventually(lambda: is_said("", 0))
    assert find_warnings(caplog) == []
    with pytest.raises(BusUnavailable, match="that of another broker"):
        await bus_checks.find_risk(url, "another")
    nowhere = f"{first.url}?management_port={free_port()}"
    await check_bus(nowhere)
    [said] = find_warnings(caplog)
    assert "can't read the policies" in said
    assert "management_port" in said
    await check_bus(nowhere, is_private=True)
    assert len(find_warnings(caplog)) == 1


async def test_a_silent_node_and_a_queue_that_one_node_holds_are_said_at_the_start(
    cluster: RabbitCluster, caplog: pytest.LogCaptureFixture
) -> None:
    first, *others = cluster.nodes
    port = f"?management_port={cluster.management}"
    await make_leader(cluster, first)
    await eventually(partial(has_members, first.url + port, 3))
    await check_bus(cluster.list_hosts() + port)
    # Management asks the client for the certificate as well.
    by_tls = f"{cluster.list_tls_hosts(first)}&management_port={first.tls_management}"
    await check_bus(by_tls)
    [cafile] = re.findall(r"cafile=[^&]+", by_tls)
    await check_bus(by_tls.replace(cafile, "no_verify_ssl=1"))
    assert find_warnings(caplog) == []
    for node in others:
        await node.leave_queue(PURCHASES)
    await eventually(partial(has_members, first.url + port, 1))
    await check_bus(cluster.list_hosts() + port)
    [said] = find_warnings(caplog)
    assert f"only {first.name} holds the queue {PURCHASES}" in said
    caplog.clear()
    await others[0].kill()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = (f"127.0.0.1:{others[0].port}", f"127.0.0.1:{silent.getsockname()[1]}")
        await check_bus(f"{cluster.list_hosts().removesuffix('/')},{hosts[1]}/{port}")
    assert [line.split()[2] for line in find_warnings(caplog) if "does not answer" in line] == [*hosts]


async def has_members(url: str, count: int) -> bool:
    """Whether the node's management knows that so many nodes hold the queue."""
    with suppress(aiohttp.ClientError):
        return len((await bus_checks.read_queue(url, PURCHASES))["members"]) == count
    return False


def find_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        line.getMessage() for line in caplog.records if line.name == bus_checks.__name__ and line.levelno > 20
    ]
