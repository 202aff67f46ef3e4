"""The plots draw what the history holds."""

from itertools import combinations

import numpy as np
import pytest

from simulation.report.plots.canvas import WIDE, Course, Phase
from simulation.report.plots.latency import draw_heat, draw_latency, draw_percentiles, percentile_steps
from simulation.report.plots.run import mark_faults
from simulation.tests.run_folders import make_history


def test_the_percentile_curves_end_at_the_slowest_request_and_are_bold_only_where_firm() -> None:
    history = make_history(2_000).dropna(subset="done_ns")
    accepted = history[history["outcome"] == "ACCEPTED"]
    canvas = draw_percentiles(history, 5_000)
    assert canvas is not None
    whole, bold, service = canvas.panels[0].lines[:3]
    took = (accepted["done_ns"] - accepted["intended_ns"]) / 1e6
    assert np.asarray(whole.get_xydata())[-1] == pytest.approx([2_000, took.max()])
    assert np.asarray(bold.get_xydata())[-1, 0] == pytest.approx(200)
    assert np.asarray(service.get_ydata())[-1] < took.max()
    canvas = draw_percentiles(make_history(2_000), 5_000)
    assert canvas is not None
    assert np.asarray(canvas.panels[0].lines[0].get_ydata())[-1] >= 5_000, "one was not answered"


def test_plots_of_nothing_are_not_drawn() -> None:
    history = make_history(10).iloc[:0]
    assert draw_heat(history, Course(), 5_000) is None
    assert draw_percentiles(history, 5_000) is None


def test_a_step_of_a_percentile_is_as_long_as_it_takes_to_tell_it_from_the_maximum() -> None:
    at_s = np.concatenate([np.linspace(0, 0.99, 60), np.linspace(1, 1.99, 60), np.linspace(5, 5.99, 150)])
    values = np.arange(len(at_s), dtype="float64")
    edges = np.arange(8.0)
    none = float("nan")
    np.testing.assert_array_equal(
        percentile_steps(at_s, values, edges, 100), [59, 119, none, none, none, 269, none]
    )
    first, last = np.percentile(values[:120], 99), np.percentile(values[120:], 99)
    np.testing.assert_allclose(
        percentile_steps(at_s, values, edges, 99), [first, first, none, none, none, last, none]
    )
    assert np.isnan(percentile_steps(at_s, values, edges, 99.9)).all()


def test_a_percentile_of_too_few_requests_is_a_point_that_says_how_many() -> None:
    canvas = draw_latency(make_history(421), Course(), 5_000)
    assert canvas is not None
    accepted, sold_out = ([text.get_text() for text in panel.texts] for panel in canvas.panels)
    assert accepted == ["p99.9 of 421 requests"]
    assert sold_out == []


def test_faults_are_shaded_and_numbered_and_seen_even_if_they_last_no_time() -> None:
    faults = [
        {"kind": "drop_replies", "on": "redis", "start_s": 1.0, "end_s": 3.0},
        {"kind": "kill", "on": "relay", "start_s": 8.0, "end_s": 8.0},
    ]
    assert mark_faults(faults, 10.0) == [("1 drop replies redis", 1.0, 3.0), ("2 kill relay", 8.0, 8.06)]
    assert mark_faults([], 10.0) == []


def test_labels_on_an_axis_of_time_do_not_meet() -> None:
    faults = [Phase(f"{number} restart fulfilment", 4 + number / 10, 5) for number in range(4)]
    course = Course([Phase("crowd", 0, 12)], faults, [(4.2, "sold out, 4.20 s")])
    canvas = draw_latency(make_history(5_000), course, 5_000)
    assert canvas is not None
    canvas.lay_out(WIDE)
    boxes = [text.get_window_extent() for text in canvas.panels[0].texts]
    assert len(boxes) == 6
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
