"""The knee of a made-up ramp is found, whatever a single half second looks like."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulation.judge.numbers.knee import BUCKET_S, find_knee, find_ramp, locate_knee
from simulation.model.history import make_history
from simulation.scenario.loading import load_scenario, read_scenario
from simulation.scenario.schema import Scenario
from simulation.tests.scenario.test_scenario import minimal

CAPACITY_RPS = 1_200
RAMP = {"shape": "linear", "seconds": 20, "rate_rps": 100, "to_rps": 2_100}
CALM = {"shape": "constant", "seconds": 5, "rate_rps": 200}

Floats = npt.NDArray[np.float64]


def scenario_of(*arrivals: dict[str, Any]) -> Scenario:
    return read_scenario(minimal(arrivals=list(arrivals)))


def ramp_history(capacity_rps: float = CAPACITY_RPS, start_s: float = 0.0, **columns: Any) -> pd.DataFrame:
    """RAMP against one server of that capacity, which answers in turn; each answer takes 2 ms besides."""
    count = np.arange(22_000) + 0.5
    meant_s = (-100 + np.sqrt(100**2 + 200 * count)) / 100  # Λ⁻¹ of 100 + 100 t
    turn = np.arange(len(count)) / capacity_rps
    freed_s = turn + np.maximum.accumulate(meant_s - turn)
    meant_ns = np.rint((start_s + meant_s) * 1e9).astype(np.int64)
    done_ns = np.rint((start_s + freed_s + 0.002) * 1e9).astype(np.int64)
    size = len(count)
    outcome = np.full(size, "ACCEPTED", object)
    given = {
        "op": np.arange(size), "driver": np.zeros(size), "user_id": np.ones(size),
        "product_id": np.ones(size),
        "key": [None] * size, "intended_ns": meant_ns, "sent_ns": meant_ns, "done_ns": done_ns,
        "status": np.full(size, 200), "outcome": outcome, "result": np.full(size, "ok", object),
        "order_id": [None] * size, "attempt": np.zeros(size), "first_op": np.arange(size),
    }  # fmt: skip
    return make_history(given | columns)


@pytest.mark.parametrize("capacity_rps", [600, 1_200, 1_800])
@pytest.mark.parametrize("before", [(), (CALM,)])
def test_the_knee_is_where_the_server_is_full(
    capacity_rps: float, before: tuple[dict[str, Any], ...]
) -> None:
    history = ramp_history(capacity_rps, start_s=5.0 * len(before))
    knee = find_knee(history, scenario_of(*before, RAMP, CALM))
    assert knee is not None
    assert knee.rps is not None
    assert knee.rps == pytest.approx(capacity_rps, abs=2 * 100 * BUCKET_S)
    assert knee.at_s == pytest.approx(5 * len(before) + (knee.rps - 100) / 100)
    assert knee.plateau_p99_ms == pytest.approx(2, rel=0.2)
    assert knee.achieved_max_rps == pytest.approx(capacity_rps, rel=0.02)


def test_a_ramp_that_never_reaches_the_capacity_has_no_knee_but_a_plateau() -> None:
    knee = find_knee(ramp_history(capacity_rps=9_000), scenario_of(RAMP))
    assert knee is not None
    assert (knee.rps, knee.at_s) == (None, None)
    assert knee.plateau_p99_ms == pytest.approx(2, rel=0.2)


def test_an_engine_that_sheds_its_load_does_not_hide_the_knee() -> None:
    history = ramp_history()
    waits = (history["done_ns"] - history["intended_ns"] > 50e6).to_numpy()
    history.loc[waits, "done_ns"] = history.loc[waits, "intended_ns"] + 1_000_000
    shed = history.assign(outcome=history["outcome"].mask(waits, "UNAVAILABLE"))
    lost = history.assign(
        outcome=history["outcome"].mask(waits, "UNKNOWN"), done_ns=history["done_ns"].mask(waits)
    )
    for changed in (shed, lost):
        knee = find_knee(changed, scenario_of(RAMP))
        assert knee is not None
        assert knee.rps == pytest.approx(CAPACITY_RPS, abs=2 * 100 * BUCKET_S)
        assert knee.achieved_max_rps <= CAPACITY_RPS * 1.02


@pytest.mark.parametrize(
    "arrivals",
    [
        [CALM],
        [RAMP | {"rate_rps": 2_100, "to_rps": 100}],
        [{"shape": "sine", "seconds": 20, "rate_rps": 1, "to_rps": 9}],
        [RAMP | {"seconds": 3}],
    ],
)
def test_without_a_climb_of_some_length_there_is_no_knee(arrivals: list[dict[str, Any]]) -> None:
    assert find_knee(ramp_history(), scenario_of(*arrivals)) is None


def test_the_longest_climb_is_the_ramp() -> None:
    short, long = RAMP | {"seconds": 2}, RAMP | {"seconds": 3}
    found = find_ramp(scenario_of(short, CALM, long))
    assert found is not None
    assert (found[0], found[1].seconds) == (7, 3)


@st.composite
def curves(draw: st.DrawFn) -> tuple[Floats, int]:
    """p99 over 24 to 80 half seconds, flat to a tenth and then climbing, and the last on the plateau."""
    size = draw(st.integers(24, 80))
    last = draw(st.integers(size // 4, 3 * size // 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    noise = random.uniform(0.9, 1.1, size)
    plateau_ms = draw(st.floats(0.5, 100))
    step = draw(st.floats(2, 20))  # within one half second, and then by a queue that grows
    beyond = np.arange(size - last - 1) + 1.0
    p99 = np.concatenate([np.ones(last + 1), step * (1 + beyond)])
    return plateau_ms * p99 * noise, last


@settings(max_examples=40, deadline=None)
@given(curves())
def test_any_flat_curve_that_climbs_has_its_knee_there(curve: tuple[Floats, int]) -> None:
    p99_ms, last = curve
    found = locate_knee(p99_ms)
    assert found is not None
    assert abs(found - last) <= 1


@settings(max_examples=40, deadline=None)
@given(curves(), st.integers(0, 10_000), st.floats(0.01, 1_000))
def test_one_half_second_moves_the_knee_hardly(curve: tuple[Floats, int], place: int, factor: float) -> None:
    p99_ms, last = curve
    p99_ms[place % len(p99_ms)] *= factor
    found = locate_knee(p99_ms)
    assert found is not None
    assert abs(found - last) <= 2


@settings(max_examples=40, deadline=None)
@given(st.integers(10, 80), st.integers(0, 2**32), st.integers(0, 10_000))
def test_noise_and_a_lone_slow_half_second_are_no_knee(size: int, seed: int, place: int) -> None:
    p99_ms = np.random.default_rng(seed).uniform(0.8, 1.25, size) * 5
    p99_ms[place % size] *= 200
    assert locate_knee(p99_ms) is None


def test_a_restless_plateau_does_not_hide_the_knee() -> None:
    """Half seconds of a ramp on a machine that others kept busy."""
    plateau = [184, 31, 16, 15, 59, 37, 98, 55, 47, 56]
    beyond = [812, 2034, 2028, 1934, 2413, 3159, 4175, 7176, 5176, 6041, 6200, 7000, 7526, *[10_000] * 20]
    assert locate_knee(np.array([*plateau, *beyond], np.float64)) == len(plateau) - 1


def test_the_ramp_asks_for_a_knee() -> None:
    ramp = load_scenario("ramp")
    assert find_ramp(ramp) is not None
    assert any(threshold.startswith("knee.rps >") for threshold in ramp.thresholds)
