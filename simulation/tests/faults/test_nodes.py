"""Nodes of a cluster are lost in mid-sale, one after the other, and nothing else is; some can't hand over."""

import asyncio
import shutil
import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from engine.errors import StackError
from engine.local.cluster.nodes import list_cluster
from engine.local.cluster.postgres import PostgresCluster
from engine.local.cluster.redis import RedisCluster, connect_nodes, list_places, read_roles
from engine.local.rabbitmq import RabbitMQ
from engine.local.stack import start_stack, stop_stack
from engine.tests.services import skip_or_fail
from engine.urls import split_hosts
from simulation.errors import FaultError
from simulation.faults.nodes import NodeFault
from simulation.run import run
from simulation.scenario.fault import Fault
from simulation.scenario.loading import load_scenario
from simulation.target.services import Services
from simulation.tests.faults.test_single_faults import PATIENT
from simulation.verdict import judge_run

pytestmark = pytest.mark.slow

SALE = PATIENT | {
    "driver.connections": 2_000,
    "arrivals.0.seconds": 34,
    "arrivals.0.rate_rps": 120,
    "topology.front_doors": 2,
}
FAULTS = [
    Fault(at_s=2, seconds=4, kind="kill", on="redis-primary"),
    Fault(at_s=9, seconds=5, kind="kill", on="postgres-primary"),
    Fault(at_s=17, seconds=3, kind="kill", on="queue-leader"),
]


@pytest.mark.timeout(600)
async def test_the_nodes_in_charge_are_killed_and_come_back(tmp_path: Path) -> None:
    try:
        RabbitMQ().find()
    except StackError as error:
        skip_or_fail(str(error))
    scenario = msgspec.structs.replace(load_scenario("cluster-fault", SALE), faults=FAULTS)
    folder = tmp_path / "run"
    await run(scenario, folder, print)
    summary = judge_run(folder)
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    assert [(fault["on"], fault["hit"][0].split()[0]) for fault in summary["faults"]] == [
        ("redis-primary", "redis"), ("postgres-primary", "postgres"), ("queue-leader", "rabbitmq"),
    ]  # fmt: skip
    assert [fault for fault in summary["faults"] if fault["healed_s"] is None] == []
    hit = {fault["on"]: fault["hit"][0] for fault in summary["faults"]}
    nodes = defaultdict[str, list[str]](list)
    for each in summary["in_charge"]:
        nodes[each["role"]].append(each["node"])
    assert nodes["ledger"][0] == hit["postgres-primary"] != nodes["ledger"][-1]
    assert nodes["queue"][0] == hit["queue-leader"] != nodes["queue"][-1]
    [taken] = [held for role, held in nodes.items() if role.startswith("shard") and len(set(held)) > 1]
    assert taken[0] == taken[-1] == hit["redis-primary"], "it is the primary again where it was one"


async def test_a_primary_whose_replicas_one_node_does_not_know_says_that_it_does_not_hand_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simulation.faults.nodes._HAND_OVER_S", 1)
    folder = Path(tempfile.mkdtemp(prefix="flashgrid-"))
    stack = await start_stack(folder, [RedisCluster.name])
    try:
        services = Services(redis_url=stack.urls[RedisCluster.name], postgres_url="", stack=stack)
        fault = NodeFault(Fault(at_s=0, kind="switchover", on="redis-1"), services, stack, [])
        place = folder / RedisCluster.name
        async with asyncio.timeout(60), connect_nodes(list_places(place)) as servers:
            for number, role in (await read_roles(place)).items():
                if role.primary == 0:
                    name = await servers[number].execute_command("CLUSTER", "MYID")
                    # For a minute: nobody may tell it of that node.
                    await servers[3].execute_command("CLUSTER", "FORGET", name)
            await fault.find()
            with pytest.raises(FaultError, match="redis 1 does not hand over: nothing in 1 s"):
                await fault.begin(AsyncExitStack())
    finally:
        await stop_stack(folder)
        shutil.rmtree(folder)


async def test_a_primary_of_postgres_that_lacks_a_standby_says_that_it_does_not_hand_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simulation.faults.nodes._HAND_OVER_S", 1)
    folder = Path(tempfile.mkdtemp(prefix="flashgrid-"))
    stack = await start_stack(folder, [PostgresCluster.name])
    try:
        url = stack.urls[PostgresCluster.name]
        names = {node.name: node for node in list_cluster(folder)}
        services = Services(
            redis_url="redis://none",
            postgres_url=url,
            stack=stack,
            nodes=dict(zip(split_hosts(url), names, strict=True)),
        )
        fault = NodeFault(Fault(at_s=0, kind="switchover", on="postgres-primary"), services, stack, [])
        await fault.find()
        await next(node for name, node in names.items() if name not in fault.hit).kill()
        with pytest.raises(FaultError, match=r"postgres \d does not hand over: nothing in 1 s"):
            await asyncio.wait_for(fault.begin(AsyncExitStack()), 10)
    finally:
        await stop_stack(folder)
        shutil.rmtree(folder)
