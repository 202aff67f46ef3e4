"""The plots draw what the history holds."""

import numpy as np
import pytest

from simulation.plots import _join_cells, draw_heat, draw_percentiles, mark_faults
from simulation.tests.run_folders import make_history


def test_joined_cells_cover_the_chosen_ones_and_no_other() -> None:
    random = np.random.default_rng(7)
    chosen = random.random((9, 5)) < 0.5
    boxes = _join_cells(chosen, np.arange(10.0), np.arange(6.0))
    covered = np.zeros_like(chosen)
    for left, right, bottom, top in boxes:
        assert top == bottom + 1
        assert not covered[int(left) : int(right), int(bottom)].any()
        covered[int(left) : int(right), int(bottom)] = True
    np.testing.assert_array_equal(covered, chosen)


def test_the_percentile_curves_end_at_the_slowest_request_and_are_bold_only_where_firm() -> None:
    history = make_history(2_000)
    accepted = history[history["outcome"] == "ACCEPTED"]
    canvas = draw_percentiles(history, wide=True)
    assert canvas is not None
    whole, bold, service = canvas.panels[0].lines[:3]
    took = (accepted["done_ns"] - accepted["intended_ns"]) / 1e6
    assert np.asarray(whole.get_xydata())[-1] == pytest.approx([2_000, took.max()])
    assert np.asarray(bold.get_xydata())[-1, 0] == pytest.approx(200)
    assert np.asarray(service.get_ydata())[-1] < took.max()


def test_plots_of_nothing_are_not_drawn() -> None:
    history = make_history(10).iloc[:0]
    assert draw_heat(history, [], None, wide=True) is None
    assert draw_percentiles(history, wide=True) is None


def test_faults_are_shaded_in_turn_with_quiet_and_overlapping_ones_as_one() -> None:
    faults = [
        {"kind": "cut", "on": "redis", "start_s": 4.0, "end_s": 5.0},
        {"kind": "drop_replies", "on": "redis", "start_s": 1.0, "end_s": 3.0},
        {"kind": "kill", "on": "relay", "start_s": 2.0, "end_s": 2.0},
        {"kind": "kill", "on": "relay", "start_s": 8.0, "end_s": 8.0},
    ]
    assert mark_faults(faults) == [
        ("", 0.0, 1.0),
        ("drop replies redis, kill relay", 1.0, 3.0),
        ("", 3.0, 4.0),
        ("cut redis", 4.0, 5.0),
        ("", 5.0, 8.0),
        ("kill relay", 8.0, 8.15),
    ]
    assert mark_faults([]) == []
