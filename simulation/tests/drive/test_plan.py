"""The same scenario gives the same plan, and a change to one part of it leaves the others as they are."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulation.drive.plan import Plan, build_plan
from simulation.scenario.loading import read_scenario
from simulation.tests.scenario.test_scenario import minimal


def plan(prefix: str = "", users: int = 1_000, keyed_share: float = 0.5, **changes: Any) -> Plan:
    raw = minimal(
        arrivals=[{"shape": "constant", "seconds": 10, "rate_rps": 100}],
        population={"users": users, "keyed_share": keyed_share},
        sales=[{"product_id": 7, "stock": 5}, {"product_id": 9, "stock": 5}],
    )
    return build_plan(read_scenario(raw | changes), prefix)


@given(st.integers(0, 2**63 - 1), st.integers(1, 2**63 - 1), st.floats(0, 1))
def test_the_same_seed_gives_the_same_plan(seed: int, users: int, keyed_share: float) -> None:
    one, other = (plan(seed=seed, users=users, keyed_share=keyed_share) for _ in range(2))
    assert np.array_equal(one.intended_ns, other.intended_ns)
    assert np.array_equal(one.user_id, other.user_id)
    assert np.array_equal(one.product_id, other.product_id)
    assert one.key == other.key
    assert len(one) == len(one.user_id) == len(one.product_id) == len(one.key)
    assert one.user_id.min() >= 1
    assert one.user_id.max() <= users
    assert set(one.product_id.tolist()) <= {7, 9}


def test_another_seed_gives_another_plan() -> None:
    one, other = plan(seed=1), plan(seed=2)
    assert not np.array_equal(one.intended_ns, other.intended_ns)
    assert not np.array_equal(one.user_id[:100], other.user_id[:100])


def test_a_change_to_one_part_does_not_reshuffle_the_others() -> None:
    before = plan()
    more_users = plan(users=999_999)
    assert np.array_equal(before.intended_ns, more_users.intended_ns)
    assert np.array_equal(before.product_id, more_users.product_id)
    assert before.key == more_users.key
    no_keys = plan(keyed_share=0)
    assert np.array_equal(before.user_id, no_keys.user_id)
    assert no_keys.key == [None] * len(no_keys)
    longer = plan(arrivals=[{"shape": "constant", "seconds": 20, "rate_rps": 100}])
    assert np.array_equal(before.user_id, longer.user_id[: len(before)])
    assert before.key == longer.key[: len(before)]


def test_users_products_and_keys_have_nothing_to_do_with_each_other() -> None:
    drawn = plan(arrivals=[{"shape": "constant", "seconds": 10, "rate_rps": 1_000}])
    keyed = [key is not None for key in drawn.key]
    related = np.corrcoef([drawn.intended_ns, drawn.user_id, drawn.product_id, keyed])
    assert np.abs(related - np.eye(4)).max() < 0.1


def test_keys_are_unlike_and_as_many_as_the_share_says() -> None:
    keys = [key for key in plan(prefix="run-").key if key is not None]
    assert len(set(keys)) == len(keys)
    assert len(keys) == pytest.approx(500, abs=100)
    assert all(key.startswith("run-") for key in keys)
    assert None not in plan(keyed_share=1).key


def test_popular_products_draw_the_crowd_by_zipfs_law() -> None:
    scenario = read_scenario(
        minimal(
            arrivals=[{"shape": "constant", "seconds": 10, "rate_rps": 10_000}],
            population={"users": 10, "zipf": 1.0},
            sales=[{"product_id": 5, "products": 100, "stock": 3}],
        )
    )
    assert [sale.product_id for sale in scenario.sales] == list(range(5, 105))
    drawn = np.bincount(build_plan(scenario).product_id, minlength=105)[5:]
    expected = 1 / np.arange(1, 101)
    expected *= drawn.sum() / expected.sum()
    assert np.all(np.abs(drawn - expected) < 5 * np.sqrt(expected))
