"""The plots draw what the history holds."""

from itertools import combinations
from xml.etree import ElementTree as Xml

import numpy as np
import pytest

from simulation.report.plots.canvas import WIDE, Course, Phase
from simulation.report.plots.latency import draw_heat, draw_latency, draw_percentiles, percentile_steps
from simulation.report.plots.load import count_most, draw_errors, draw_flight, draw_lag, list_causes
from simulation.report.plots.moment import draw_moment, find_rush_s
from simulation.report.plots.responsive import Label, Upright, make_plot
from simulation.report.plots.run import mark_faults
from simulation.scenario.schema import DriverOptions
from simulation.tests.run_folders import START_US, make_history, make_state


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


def test_the_decisive_moment_goes_from_before_the_rush_to_after_the_last_unit() -> None:
    history = make_history(5_000)
    assert find_rush_s(history) == pytest.approx(2.0, abs=0.1)
    sold_out_s = history.loc[history["outcome"] == "ACCEPTED", "done_ns"].max() / 1e9
    orders = make_state(history, 5_000).orders
    course = Course(
        [Phase("base", 0, 2), Phase("peak", 2, 6)], [], [(sold_out_s, "sold out"), (9.0, "later")]
    )
    canvas = draw_moment(history, orders, START_US, sold_out_s, 5_000, course, 5_000)
    assert canvas is not None
    rates, stock, _ = canvas.panels
    assert rates.get_xlim() == pytest.approx((1.5, sold_out_s + 1), abs=0.1)
    told, reserved, settled, _ = (np.asarray(line.get_ydata()) for line in stock.lines)
    assert told[-1] == reserved[-1] == 5_000
    assert settled[len(settled) // 2] < reserved[len(reserved) // 2]
    assert draw_moment(history, orders, START_US, None, 5_000, course, 5_000) is None


def test_the_most_at_once_is_counted_in_each_bin() -> None:
    begin = np.array([1, 2, 3, 25, 41], dtype=np.int64) * 10**8
    end = np.array([4, 4, 28, 26, 45], dtype=np.int64) * 10**8
    np.testing.assert_array_equal(count_most(begin, end, np.arange(6.0)), [3, 1, 2, 0, 1])


def test_causes_count_what_went_wrong_and_name_the_first() -> None:
    history = make_history(2_000)
    assert draw_errors(history.dropna(subset="done_ns"), Course(), 5_000) is None
    lost = history.index[history["done_ns"].isna()]
    history.loc[lost, "end"] = "timeout"
    late = history.index[10_000:10_007]
    history.loc[late, "outcome"] = "UNAVAILABLE"
    history.loc[late, "status"] = 503
    causes = list_causes(history, 5_000)
    assert {str(cause): cause.number for cause in causes} == {
        "503 unavailable": 7,
        "no answer in time": len(lost),
    }
    [first] = [cause for cause in causes if cause.status == 503]
    assert first.op == history.loc[late].sort_values("done_ns")["op"].iloc[0]
    canvas = draw_errors(history, Course(), 5_000)
    assert canvas is not None
    labels = canvas.panels[0].get_legend_handles_labels()[1]
    assert set(labels) == {"503 unavailable, 7", f"no answer in time, {len(lost)}"}


def test_what_waits_for_a_connection_is_drawn_beside_what_is_in_flight() -> None:
    history = make_history(2_000)
    canvas = draw_flight(history, Course(), DriverOptions(connections=5))
    assert canvas is not None
    labels = canvas.panels[0].get_legend_handles_labels()[1]
    words = {label.partition(", ")[0] for label in labels}
    assert words == {"all 5 connections", "in flight", "due and not sent"}
    assert draw_lag(history, Course()) is not None
    assert draw_lag(history.iloc[:0], Course()) is None


def test_a_plot_is_drawn_once_and_a_phone_has_words_of_its_own() -> None:
    course = Course([Phase("crowd", 0, 12)], [Phase("1 kill relay", 4, 5)], [(4.2, "sold out, 4.20 s")])
    canvas = draw_latency(make_history(421), course, 5_000)
    assert canvas is not None
    plot = make_plot(canvas)
    accepted, sold_out = plot.panels
    assert [key.words for key in accepted.keys] == ["p50", "p99", "max"]
    assert [key.words for key in sold_out.keys] == ["p50", "p99", "p99.9", "max"]
    shown = {(mark.words, where) for mark, where in accepted.marks if isinstance(mark, Label)}
    assert {("crowd", ""), ("sold out, 4.20 s", ""), ("1 kill relay", "wide-only"), ("1", "narrow")} <= shown
    [(moment, where)] = [each for each in sold_out.marks if isinstance(each[0], Upright)]
    end_s = canvas.panels[0].get_xlim()[1]
    assert moment.left == pytest.approx(100 * 4.2 / end_s, abs=0.1)
    assert (moment.top, where) == (0, "")
    # A lone point would become an oval, so it is no part of what is stretched.
    assert len(accepted.dots) == 1
    assert not sold_out.dots
    lines = Xml.fromstring(f"<svg>{accepted.lines}</svg>")
    assert not [each for each in lines.iter() if each.tag in ("text", "use", "defs")]
    assert not [each for each in lines.iter() if {"id", "clip-path"} & set(each.keys())]
    assert "var(--blue)" in accepted.lines
    assert "#" not in accepted.lines


def test_words_of_both_axes_stand_where_the_lines_are() -> None:
    canvas = draw_percentiles(make_history(2_000), 5_000)
    assert canvas is not None
    [panel] = make_plot(canvas).panels
    words = {mark.words: mark for mark, _ in panel.marks if isinstance(mark, Label)}
    ends = words["0"], words["99%"]
    most = np.log10(canvas.panels[0].get_xlim()[1])
    assert [each.left for each in ends] == pytest.approx([0, 200 / most], abs=0.1)
    assert [each.top for each in ends] == [100, 100]
    times = [mark for mark in words.values() if mark.words.endswith("s")]
    assert {(each.left, each.anchor) for each in times} == {(0, "end")}
    assert len({each.top for each in times}) == len(times) > 2
