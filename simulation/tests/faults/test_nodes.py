"""Nodes of a cluster are lost in mid-sale, one after the other, and nothing else is."""

from collections import defaultdict
from pathlib import Path

import msgspec
import pytest

from engine.errors import StackError
from engine.local.rabbitmq import RabbitMQ
from engine.tests.services import skip_or_fail
from simulation.run import run
from simulation.scenario.fault import Fault
from simulation.scenario.loading import load_scenario
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
