"""The matrix: which faults it has, and that its tables say what the runs gave."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec

from simulation.campaign.matrix import Cell, Matrix, list_faults, write_matrix
from simulation.scenario.arrivals import expected_requests
from simulation.scenario.checks import check_faults
from simulation.scenario.fault import MACHINES, ROLES, STAGES
from simulation.scenario.loading import load_scenario

CELL = Cell(
    kind="kill", on="redis", verdict="pass", verdict_in_words="All 14 rules hold.", requests=21_000,
    accepted=14_000, refused=4_684, unknown=20, sold=14_000, oversold=0, down_s=1.6, healed_s=0.9,
    drained_s=0.03, tries=1, folder="kill-redis",
)  # fmt: skip
LOST = msgspec.structs.replace(
    CELL, on="<b>", verdict="fail", sold=None, oversold=None, healed_s=None, drained_s=None, folder=""
)


def test_it_has_at_least_thirty_faults_of_twenty_thousand_requests_each() -> None:
    faults, scenario = list_faults(), load_scenario("single-fault")
    assert len({(fault.kind, fault.on) for fault in faults}) == len(faults) >= 30
    assert expected_requests(scenario.arrivals) >= 20_000
    for fault in faults:
        check_faults([fault], scenario.duration_s())


def test_on_three_machines_it_has_every_role_and_each_machine() -> None:
    faults, scenario = list_faults(machines=3), load_scenario("cluster-fault")
    done = {(fault.kind, fault.on) for fault in faults}
    assert len(done) == len(faults)
    for kind in ("kill", "stop", "restart"):
        assert {on for found, on in done if found == kind} == {*ROLES, *MACHINES, *STAGES}
    for fault in faults:
        check_faults([fault], scenario.duration_s(), scenario.topology.machines)


def test_its_tables_say_what_the_runs_gave(tmp_path: Path) -> None:
    matrix = Matrix(
        command="flashsim matrix", started_at=datetime(2026, 1, 2, tzinfo=UTC), commit="abc",
        machine={"cpu": "a processor", "cores": 2}, cells=[CELL, LOST],
    )  # fmt: skip
    write_matrix(matrix, tmp_path)
    assert msgspec.json.decode((tmp_path / "matrix.json").read_bytes(), type=Matrix) == matrix
    table = (tmp_path / "matrix.md").read_text()
    assert "1 of 2 faults survived" in table
    assert (
        "| redis | kill | [pass](kill-redis/report.html) | 21,000 | 14,000 | 4,684 | 20 | 14,000 | 0 |"
        in table
    )
    assert "| never | never |" in table
    page = (tmp_path / "matrix.html").read_text()
    assert "1 of 2 faults survived" in page
    assert "a processor, 2 cores" in page
    assert page.count("<a href") == page.count('<a href="kill-redis/report.html">pass</a>') == 1
    assert "<b>" not in page
