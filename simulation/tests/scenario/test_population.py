"""Clients that come again, doors that open later, and bots: small sales of each, from end to end."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.campaign.suite import judge_one
from simulation.drive.plan import Plan, build_plan
from simulation.errors import ScenarioError
from simulation.scenario.fault import Fault
from simulation.scenario.loading import load_scenario, read_scenario
from simulation.scenario.patience import Patience, draw_pauses
from simulation.scenario.schema import Scenario
from simulation.target.services import Services
from simulation.tests.faults.test_single_faults import services
from simulation.tests.scenario.test_scenario import minimal

__all__ = ["services"]

# What this machine has time for, while it runs the tests, says nothing about the engine.
PATIENT = {
    "driver.late_p99_ms": 60_000,
    "driver.connections": 4_000,
    "driver.connections_may_run_out": True,
    "thresholds": [],
}


# --- the plan


def plan(**population: Any) -> Plan:
    arrivals = [{"shape": "constant", "seconds": 10, "rate_rps": 200}]
    people = {"users": 1_000, "keyed_share": 0.5}
    return build_plan(read_scenario(minimal(arrivals=arrivals, population=people | population)))


def test_bots_have_ids_of_their_own_and_make_their_share_of_the_requests() -> None:
    people, mixed = plan(), plan(bots={"users": 7, "share": 0.3}, patience={})
    is_bot = mixed.user_id > 1_000
    assert is_bot.mean() == pytest.approx(0.3, abs=0.05)
    assert set(mixed.user_id[is_bot].tolist()) == set(range(1_001, 1_008))
    assert {mixed.key[op] for op in np.flatnonzero(is_bot)} == {None}
    assert mixed.pause_ns is not None
    assert not mixed.pause_ns[is_bot].any(), "they ignore what they are answered"
    assert mixed.pause_ns[~is_bot].all()
    assert np.array_equal(mixed.user_id[~is_bot], people.user_id[~is_bot]), "the people are who they were"
    assert [mixed.key[op] for op in np.flatnonzero(~is_bot)] == [
        people.key[op] for op in np.flatnonzero(~is_bot)
    ]
    assert np.array_equal(mixed.intended_ns, people.intended_ns)


@settings(deadline=None, max_examples=30)
@given(
    st.builds(
        Patience,
        pause_ms=st.floats(1, 600_000),
        jitter=st.floats(0, 1),
        share=st.floats(0, 1),
    ),
    st.integers(0, 2**63),
)
def test_pauses_are_drawn_from_the_seed_within_their_bounds(patience: Patience, seed: int) -> None:
    one, other = (
        draw_pauses(patience.pause_ms, patience.jitter, patience.share, 500, np.random.SeedSequence(seed))
        for _ in range(2)
    )
    assert np.array_equal(one, other)
    comes_again = one[one > 0] / 1e6
    assert abs(len(comes_again) / 500 - patience.share) < 0.15
    assert np.all(comes_again >= max(1, patience.pause_ms * (1 - patience.jitter) * 0.999))
    assert np.all(comes_again <= max(1, patience.pause_ms * (1 + patience.jitter) * 1.001))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("population.patience", {"after": ["SOLD_OUT"]}, "population.patience.after"),
        ("population.patience", {"after": []}, "population.patience.after"),
        ("population.patience", {"pause_ms": 0}, "population.patience.pause_ms"),
        ("population.patience", {"jitter": 2}, "population.patience.jitter"),
        ("population.patience", {"often": 2}, "population.patience.often: there is no such key"),
        ("population.bots", {"users": 5}, "population.bots.share: is missing"),
        ("population.bots", {"users": 5, "share": 1}, "population.bots.share: expected"),
        ("population.bots", {"users": 2**63 - 1, "share": 0.5}, "population.bots.users: there are not so"),
        ("sales.0.starts_in_s", 30, "sales.0.starts_in_s: the load lasts 30 s, got 30"),
        ("sales.0.starts_in_s", -1, "sales.0.starts_in_s: expected"),
    ],
)
def test_a_bad_key_is_named(key: str, value: Any, said: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        load_scenario("spike", {key: value})
    assert said in str(caught.value)


def test_doors_open_at_the_same_place_of_a_longer_curve() -> None:
    assert load_scenario("drop", duration_s=40).sales[0].starts_in_s == 16


# --- runs


async def test_early_birds_come_again_until_the_doors_open(services: Services, tmp_path: Path) -> None:
    changes = PATIENT | {"population.patience.pause_ms": 150, "population.patience.most": 100}
    scenario = load_scenario("drop", changes, rate_rps=600, duration_s=3, stock=200)
    summary = await judge_one(scenario, tmp_path / "run", services, "")
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    assert summary["load"]["retries"] == summary["retries"]["requests"] == summary["outcomes"]["rejected"] > 0
    assert summary["retries"]["keyed_bought_again"] == summary["retries"]["unkeyed_bought_again"] == 0
    # From the first request to the last unit: none was sold before the doors opened.
    assert summary["time_to_sell_out_s"] > 1.0


async def test_only_clients_without_a_key_may_buy_twice(services: Services, tmp_path: Path) -> None:
    changes = PATIENT | {"driver.timeout_ms": 300, "population.patience.pause_ms": 200}
    scenario = load_scenario("retries", changes, rate_rps=500, duration_s=3, stock=1_000_000)
    stop = Fault(at_s=0.5, seconds=0.8, kind="stop", on="front-door")
    summary = await judge_one(with_faults(scenario, stop), tmp_path / "run", services, "")
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    assert summary["retries"]["requests"] > 50
    assert summary["retries"]["keyed_bought_again"] == 0
    assert summary["retries"]["unkeyed_bought_again"] > 0


def with_faults(scenario: Scenario, *faults: Fault) -> Scenario:
    return msgspec.structs.replace(scenario, faults=[*faults])


async def test_a_limit_keeps_bots_from_their_share_of_the_stock(services: Services, tmp_path: Path) -> None:
    changes = PATIENT | {"population.bots.users": 20}
    scenario = load_scenario("bots", changes, rate_rps=700, duration_s=3, stock=300)
    summary = await judge_one(scenario, tmp_path / "run", services, "")
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    fairness = summary["fairness"]
    assert fairness["bots_request_share"] > 0.3
    assert fairness["people_units"] + fairness["bots_units"] == fairness["winners"] == 300
    assert 0 < fairness["bots_units"] <= 20 * 2
