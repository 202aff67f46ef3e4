"""Numbers that the driver or the machine may have made are marked, and prove nothing against the engine."""

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulation.judge.asked import Asked
from simulation.judge.comparison import compare, judge_change
from simulation.judge.figures import Run
from simulation.judge.numbers.doubt import Machine, find_mark, measure_machine
from simulation.judge.numbers.load import measure_load, own_lag_ms
from simulation.judge.summary import summarise
from simulation.judge.thresholds import Metrics, judge_thresholds
from simulation.model.history import make_history
from simulation.model.state import FinalState
from simulation.scenario.condition import parse_change
from simulation.scenario.loading import read_scenario
from simulation.scenario.schema import DriverOptions
from simulation.tests.scenario.test_scenario import minimal

QUIET = Machine(
    stolen_percent=3.0, stolen_most_percent=9.0, cpu_pressure_percent=None, io_pressure_percent=None
)
ROBBED = Machine(
    stolen_percent=3.1, stolen_most_percent=9.0, cpu_pressure_percent=None, io_pressure_percent=None
)


def measured(lag_ms: float, service_ms: float, timeline: pd.DataFrame | None = None) -> Metrics:
    """A thousand requests that were all so late and took so long."""
    intended = np.arange(1_000) * 10_000_000
    sent = intended + round(lag_ms * 1e6)
    columns: dict[str, Any] = {
        "op": range(1_000), "driver": 0, "user_id": 1, "product_id": 1, "key": None, "intended_ns": intended,
        "sent_ns": sent, "done_ns": sent + round(service_ms * 1e6), "status": 429, "outcome": "SOLD_OUT",
        "result": "fail", "order_id": None,
    }  # fmt: skip
    history = make_history(columns)
    load = measure_load(history, DriverOptions(), 10)
    timeline = pd.DataFrame({"t_s": []}) if timeline is None else timeline
    return Metrics(history, FinalState(), load, datetime.now(UTC), Asked(sales=[]), timeline=timeline)


@pytest.mark.parametrize(
    ("lag_p99_ms", "machine", "reason", "excess_ms"),
    [
        (1.0, None, None, None),
        (1.001, None, "driver-limited", 1.001),
        (None, QUIET, None, None),
        (None, ROBBED, "processor time stolen", 10.0),
        (2.0, ROBBED, "driver-limited, processor time stolen", 10.0),
    ],
)
def test_a_percentile_is_in_doubt_from_a_tenth_of_lag_or_a_few_per_cent_of_theft(
    lag_p99_ms: float | None, machine: Machine | None, reason: str | None, excess_ms: float | None
) -> None:
    mark = find_mark(10.0, lag_p99_ms, machine)
    assert mark == (None if reason is None else (reason, excess_ms))
    assert find_mark(None, 99.0, ROBBED) is None


@pytest.mark.parametrize(
    ("threshold", "holds"),
    [
        ("sold_out.response.p99 < 12", True),
        ("sold_out.response.p99 < 9", None),
        ("sold_out.response.p99 < 7", False),
        ("sold_out.response.p99 > 9", None),
        ("sold_out.response.p99 > 7", True),
        ("sold_out.count > 9", True),
    ],
)
def test_a_threshold_is_judged_only_where_the_drivers_lag_makes_no_difference(
    threshold: str, holds: bool | None
) -> None:
    [check] = judge_thresholds(read_scenario(minimal(thresholds=[threshold])), measured(2, 8))
    assert check.holds is holds
    assert ("driver-limited" in check.detail) == ("response" in threshold)


def test_on_a_machine_that_lost_time_a_missed_threshold_says_nothing() -> None:
    timeline = pd.DataFrame({"t_s": [0.2, 0.4], "stolen_percent": [0.0, 21.0]})
    scenario = read_scenario(minimal(thresholds=["sold_out.response.p99 < 5", "sold_out.response.p99 < 9"]))
    assert [each.holds for each in judge_thresholds(scenario, measured(0, 8, timeline))] == [None, True]
    assert [each.holds for each in judge_thresholds(scenario, measured(0, 8))] == [False, True]


def test_a_wait_for_a_connection_is_not_the_drivers_lag() -> None:
    intended = np.zeros(4, np.int64)
    columns: dict[str, Any] = {
        "op": range(4), "driver": 0, "user_id": 1, "product_id": 1, "key": None, "intended_ns": intended,
        "sent_ns": [1_000, 2_000, 9_000_000, -1], "done_ns": [9_000_000, 20_000_000, 20_000_000, -1],
        "status": [429, 429, 429, 0], "outcome": "SOLD_OUT", "result": "fail", "order_id": None,
    }  # fmt: skip
    history = make_history(columns)
    assert own_lag_ms(history, DriverOptions(connections=2)).to_dict() == {0: 0.001}
    assert own_lag_ms(history, DriverOptions(connections=9)).to_dict() == {0: 0.001, 1: 0.002, 2: 9.0}


def test_the_machine_is_measured_under_the_load_by_the_length_of_each_sample() -> None:
    timeline = pd.DataFrame(
        {
            "t_s": [1.0, 2.0, 5.0, 9.0],
            "stolen_percent": [0.0, 10.0, 2.0, 90.0],
            "cpu_pressure_percent": [float("nan"), 8.0, float("nan"), 9.0],
        }
    )
    machine = measure_machine(timeline, end_s=5.5)
    assert machine == Machine(
        stolen_percent=3.2, stolen_most_percent=10.0, cpu_pressure_percent=8.0, io_pressure_percent=None
    )
    assert machine.is_disturbed
    assert not measure_machine(pd.DataFrame({"t_s": []})).is_disturbed


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize(("lag_ms", "service_ms", "judged"), [(2, 8, None), (2, 80, True), (0, 10, True)])
def test_a_change_that_the_driver_may_have_made_is_neither_sure_nor_a_reason_to_fail(
    lag_ms: float, service_ms: float, judged: bool | None, kept: bool
) -> None:
    scenario, metric = read_scenario(minimal()), "sold_out.response.p99"

    def run(metrics: Metrics) -> Run:
        summary = summarise(metrics, scenario, [])
        return Run("", "", summary, scenario, metrics if kept else None)

    sides = [[run(measured(0, 8))] * 4, [run(measured(lag_ms, service_ms))] * 4]
    values = [[each.measure(metric) for each in side] for side in sides]
    marks = [[each.find_mark(metric) for each in side] for side in sides]
    [row] = compare({metric: values}, marks={metric: marks})
    [change] = row.changes
    assert change is not None
    assert judge_change(parse_change(f"{metric} > 1"), [row]) is judged
    assert change.sure == bool(judged)
    assert [any(side) for side in row.marks or [[], []]] == [False, judged is None]
