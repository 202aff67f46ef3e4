"""A timeline of faults is checked before anything is started, and says in one line what is wrong."""

from typing import Any

import msgspec
import pytest

from simulation.errors import FaultError, ScenarioError
from simulation.faults.injector import check_targets
from simulation.scenario.checks import check_faults
from simulation.scenario.fault import Fault, overlap
from simulation.scenario.loading import load_scenario
from simulation.target.services import Services


def fault(**fields: Any) -> Fault:
    return msgspec.convert({"at_s": 1, "seconds": 1, "kind": "kill", "on": "redis"} | fields, Fault)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kind": "explode"}, r"faults\.0\.kind: .*kill\|stop\|.*got 'explode'"),
        ({"on": "nginx"}, r"faults\.0\.on: kill is for front-door, relay.*got 'nginx'"),
        ({"at_s": -1}, r"faults\.0\.at_s: .*got -1"),
        ({"at_s": 99}, r"faults\.0\.at_s: the load lasts 30 s, got 99"),
        ({"speed": 3}, r"faults\.0\.speed: there is no such key"),
        ({"kind": "freeze", "seconds": 0}, r"faults\.0\.seconds: freeze needs a length"),
        ({"kind": "stop", "seconds": 0}, r"faults\.0\.seconds: stop needs a length"),
        ({"kind": "cut", "on": "relay"}, r"faults\.0\.on: cut is for the way to redis, .*got 'relay'"),
        ({"kind": "read_only", "on": "rabbitmq"}, r"faults\.0\.on: read_only is for redis, postgres, got"),
        ({"kind": "rollback", "on": "postgres"}, r"faults\.0\.on: rollback is for redis, got 'postgres'"),
        ({"kind": "flush", "seconds": 0}, r"faults\.0\.seconds: flush needs a length"),
        ({"kind": "cut", "latency_ms": 5}, r"faults\.0\.latency_ms: is for latency, not for cut"),
        ({"kind": "drop_replies", "share": 2}, r"faults\.0\.share: .*got 2"),
        ({"kind": "command", "on": "shop"}, r"faults\.0\.begin: a command needs a begin or an end"),
        ({"begin": "true"}, r"faults\.0\.begin: is for command, not for kill"),
    ],
)
def test_a_fault_that_cannot_be_done_is_refused(fields: dict[str, Any], said: str) -> None:
    raw = {"at_s": 1, "seconds": 1, "kind": "kill", "on": "redis"} | fields
    with pytest.raises(ScenarioError, match=said):
        load_scenario("spike", {"faults": [raw]})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"on": "redis"}, r"faults\.0\.on: redis is several nodes on 3 machines: name one of them"),
        ({"kind": "latency", "on": "redis-primary"}, r"faults\.0\.on: latency is not for 3 machines"),
        ({"on": "redis-10"}, r"faults\.0\.on: kill is for redis-primary, .*machine-3, got 'redis-10'"),
        (
            {"kind": "switchover", "on": "queue-leader"},
            r"faults\.0\.on: switchover is for redis-primary, post",
        ),
        ({"kind": "partition", "on": "machine-1", "seconds": 0}, r"faults\.0\.seconds: partition needs"),
        ({"on": "engine-3"}, r"faults\.0\.on: there is no engine-3: see topology\.front_doors"),
    ],
)
def test_a_fault_that_three_machines_cannot_have_is_refused(fields: dict[str, Any], said: str) -> None:
    raw = {"at_s": 1, "seconds": 1, "kind": "kill"} | fields
    with pytest.raises(ScenarioError, match=said):
        load_scenario("cluster", {"faults": [raw], "topology.front_doors": 2})


@pytest.mark.parametrize("on", ["redis-primary", "redis-4", "machine-2", "engine-1"])
def test_a_fault_on_a_node_needs_several_machines(on: str) -> None:
    raw = {"at_s": 1, "seconds": 1, "kind": "kill", "on": on}
    assert load_scenario("cluster", {"faults": [raw]}).faults[0].of_nodes
    with pytest.raises(
        ScenarioError, match=rf"faults\.0\.on: there is no {on}: the topology has one machine"
    ):
        load_scenario("spike", {"faults": [raw]})


def test_one_machine_of_three_fails_at_a_time() -> None:
    with pytest.raises(ValueError, match=r"faults\.1\.at_s: a machine has another fault until 2 s"):
        check_faults([fault(on="redis-1"), fault(at_s=1.5, on="queue-leader")], 10, machines=3)


def test_two_faults_of_one_sort_on_one_target_may_not_overlap() -> None:
    with pytest.raises(ValueError, match=r"faults\.1\.at_s: redis has another fault until 2 s"):
        check_faults([fault(), fault(at_s=1.5, kind="stop")], 10)
    check_faults([fault(), fault(at_s=1.5, kind="stop", on="postgres"), fault(kind="cut")], 10)
    with pytest.raises(ValueError, match=r"faults\.1\.at_s: front-door has another fault"):
        check_faults([fault(kind="rollback"), fault(on="front-door")], 10)
    with pytest.raises(ValueError, match=r"faults\.1\.at_s: front-door, fulfilment, redis has another"):
        check_faults([fault(kind="rollback"), fault(kind="wipe")], 10)
    check_faults([fault(kind="rollback"), fault(on="relay"), fault(on="rabbitmq"), fault(kind="cut")], 10)
    assert overlap(fault(), fault(at_s=2.5), apart_s=1)
    assert not overlap(fault(), fault(at_s=2.5))


def test_faults_keep_their_place_on_a_curve_of_another_length() -> None:
    raw = {"at_s": 15, "seconds": 6, "kind": "stop", "on": "relay"}
    scaled = load_scenario("spike", {"faults": [raw]}, duration_s=10).faults
    assert scaled == [Fault(at_s=5, seconds=2, kind="stop", on="relay")]


@pytest.mark.parametrize(
    ("the_fault", "own_engine", "said"),
    [
        (fault(kind="kill", on="front-door"), False, "not one at --target"),
        (fault(kind="kill", on="relay"), True, "this engine has no bus"),
        (fault(kind="cut", on="rabbitmq"), True, "this engine has no bus"),
        (fault(kind="stop", on="redis"), True, "redis is not the run's own"),
        (fault(kind="out_of_memory", on="redis"), True, "redis is not the run's own"),
        (fault(kind="flush", on="redis"), True, "flush would lose what the outbox holds"),
        (fault(kind="kill", on="queue-leader"), True, "this engine has no bus"),
        (fault(kind="kill", on="machine-1"), True, "machine-1 is not the run's own"),
    ],
)
def test_a_fault_on_what_is_not_the_runs_own_is_refused(
    the_fault: Fault, own_engine: bool, said: str
) -> None:
    services = Services(redis_url="redis://127.0.0.1:9", postgres_url="postgresql://127.0.0.1:9/x")
    with pytest.raises(FaultError, match=said):
        check_targets([the_fault], services if own_engine else None)
    check_targets([fault(kind="cut"), fault(on="fulfilment")], services)


@pytest.mark.parametrize("on", ["redis", "postgres", "rabbitmq"])
def test_a_fault_of_a_single_server_is_refused_where_there_are_several(on: str) -> None:
    services = Services(
        redis_url="redis+cluster://127.0.0.1:7,127.0.0.1:8",
        postgres_url="postgresql://127.0.0.1:7,127.0.0.1:8/x",
        amqp_url="amqp://127.0.0.1:7,127.0.0.1:8/",
    )
    for kind in ("freeze", "drop_connections"):
        with pytest.raises(FaultError, match=f"{on} has several nodes"):
            check_targets([fault(kind=kind, on=on)], services)
    check_targets([fault(kind="kill", on="front-door")], services)
