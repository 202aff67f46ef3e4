"""A timeline of chaos is a function of its table and seed, can be done, and ends before the load; a
sale survives some of them."""

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.campaign.matrix import list_faults
from simulation.campaign.suite import judge_one
from simulation.errors import ScenarioError
from simulation.scenario.arrivals import Constant
from simulation.scenario.chaos import APART_S, MACHINES_APART_S, Chaos, draw_faults
from simulation.scenario.checks import check_faults
from simulation.scenario.fault import overlap
from simulation.scenario.loading import load_scenario
from simulation.target.services import Services
from simulation.tests.faults.test_single_faults import PATIENT, services

__all__ = ["services"]

LOST = ("front-door", "fulfilment", "redis")
"""What a loss of memory has for itself, with the way to Redis."""
CALM_S = 7
"""Load after the last fault."""
TABLES = st.builds(
    Chaos,
    faults=st.integers(1, 20),
    longest_s=st.floats(0.2, 3),
    quiet_s=st.floats(0, 2),
)


@given(TABLES, st.integers(0, 2**53), st.floats(8, 60))
def test_a_timeline_can_be_done_and_ends_before_the_load(chaos: Chaos, seed: int, duration_s: float) -> None:
    faults = draw_faults(chaos, seed, duration_s)
    assert 1 <= len(faults) <= chaos.faults
    check_faults(faults, duration_s)
    rounding_s = 0.02
    for number, fault in enumerate(faults):
        assert fault.at_s >= chaos.quiet_s - rounding_s
        assert fault.end_s <= duration_s - chaos.quiet_s + rounding_s
        assert not any(overlap(fault, other, APART_S) for other in faults[:number])


@given(TABLES, st.integers(0, 2**53))
def test_the_same_seed_gives_the_same_timeline(chaos: Chaos, seed: int) -> None:
    assert draw_faults(chaos, seed, 10) == draw_faults(chaos, seed, 10)


def test_other_seeds_give_other_timelines_and_in_the_end_every_fault() -> None:
    chaos = load_scenario("chaos")
    timelines = [load_scenario("chaos", seed=seed).timeline() for seed in range(1, 301)]
    assert chaos.timeline() == timelines[0]
    assert len({tuple(timeline) for timeline in timelines}) == len(timelines)
    drawn = {(fault.kind, fault.on) for timeline in timelines for fault in timeline}
    assert drawn == {(fault.kind, fault.on) for fault in list_faults()}


def test_on_three_machines_every_fault_of_nodes_is_drawn_and_one_machine_fails_at_a_time() -> None:
    timelines = [load_scenario("cluster-chaos", seed=seed).timeline() for seed in range(1, 601)]
    drawn = {(fault.kind, fault.on) for timeline in timelines for fault in timeline}
    assert drawn == {(fault.kind, fault.on) for fault in list_faults(machines=3)}
    for timeline in timelines:
        of_nodes = [fault for fault in timeline if fault.of_nodes]
        assert all(one.end_s + MACHINES_APART_S < other.at_s for one, other in pairwise(of_nodes))


def test_losses_of_memory_have_company_of_every_kind_that_they_can_have() -> None:
    timelines = [load_scenario("chaos", seed=seed).timeline() for seed in range(1, 1_001)]
    company = {
        (other.kind, other.on)
        for timeline in timelines
        for loss in timeline
        for other in timeline
        if loss.of_memory and loss is not other and loss.at_s <= other.end_s and other.at_s <= loss.end_s
    }
    alone = [fault for fault in list_faults() if fault.on in LOST]
    assert company == {(fault.kind, fault.on) for fault in list_faults() if fault not in alone}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"chaos.faults": 0}, r"chaos\.faults: .*got 0"),
        ({"chaos.longest_s": 30}, r"chaos\.longest_s: 30 s do not fit into 18 s"),
        ({"faults": [{"at_s": 1, "kind": "kill", "on": "relay"}]}, "leave either it or faults out"),
    ],
)
def test_a_table_that_cannot_be_done_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        load_scenario("chaos", changes)


@pytest.mark.parametrize("seed", [1, 4, 17])
async def test_a_sale_survives_chaos(seed: int, services: Services, tmp_path: Path) -> None:
    changes = PATIENT | {"chaos.longest_s": 1, "chaos.quiet_s": 0.5}
    storm = load_scenario("chaos", changes, rate_rps=1_200, duration_s=4, stock=2_500, seed=seed)
    # The last recovery shows only in a load that goes on; a few requests are enough.
    calm = Constant(name="calm", seconds=CALM_S, rate_rps=200)
    scenario = msgspec.structs.replace(
        storm, chaos=None, faults=storm.timeline(), arrivals=[*storm.arrivals, calm]
    )
    folder = tmp_path / "run"
    summary = await judge_one(scenario, folder, services, "")
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    assert [fault for fault in summary["faults"] if fault["healed_s"] is None] == []
    assert len(summary["faults"]) == len(scenario.faults)
    kept = {path.name for path in folder.iterdir()}
    assert kept == {"summary.json", "report.html", "manifest.json", "run.json", "faults.json"}
