"""The live view says what goes on, on a terminal and without one."""

import io

import numpy as np
from rich.console import Console

from simulation.drive.progress import RESPONSE_EDGES_MS, Progress
from simulation.live.terminal import Gauges, LiveView, format_line, sparkline
from simulation.model.outcome import OUTCOMES
from simulation.scenario.loading import load_scenario
from simulation.target.probes import Sample

SPIKE = load_scenario("spike")
PHASES = {name: (start + end) / 2 for name, start, end in SPIKE.phases()}
SAMPLE = Sample(
    at_ns=0,
    stock_remaining=7_654,
    outbox_entries=3,
    pending_orders=21,
    queue_messages=0,
    ledger_confirmed=2_325,
)


def progress_at(t_s: float, done: int, planned: int = 200_000) -> Progress:
    responses = np.zeros(len(RESPONSE_EDGES_MS) + 1, np.int64)
    responses[60] = done
    outcomes = dict.fromkeys(OUTCOMES, 0) | {
        "ACCEPTED": done // 10,
        "SOLD_OUT": done - done // 10 - 2,
        "UNKNOWN": 2,
    }
    return Progress(
        t0_ns=0,
        t_s=t_s,
        planned=planned,
        intended=done + 5,
        sent=done,
        done=done,
        outcomes=outcomes,
        recent_responses=responses,
    )


def test_rates_are_those_of_the_last_second() -> None:
    gauges = Gauges(SPIKE)
    for quarter in range(9):
        figures = gauges.read(progress_at(quarter / 4, 250 * quarter), SAMPLE, quarter * 250_000_000)
    assert (figures.intended_rps, figures.done_rps) == (1_000, 1_000)


def test_the_phase_is_the_scenarios_and_then_the_drain() -> None:
    gauges = Gauges(SPIKE)
    for name, middle_s in PHASES.items():
        assert gauges.read(progress_at(middle_s, 1_000), None, round(middle_s * 1e9)).phase == name
    assert gauges.read(progress_at(31, 1_000), None, 31 * 10**9).phase == "last answers"
    ended = gauges.read(progress_at(32, 1_000, planned=1_000), SAMPLE, 32 * 10**9)
    assert (ended.phase, ended.share, ended.done_rps, ended.p50_ms) == ("draining", 1.0, 0.0, None)


def test_a_plain_line_says_everything() -> None:
    gauges = Gauges(SPIKE)
    gauges.read(progress_at(7, 1_000), None, 7 * 10**9)
    line = format_line(gauges.read(progress_at(8, 13_000), SAMPLE, 8 * 10**9))
    for word in (
        "8.0 s",
        "peak",
        "done  12,000/s",
        "p99  10 ms",
        "accepted 1,300",
        "sold out 11,698",
        "errors 2",
    ):
        assert word.replace("  ", " ") in " ".join(line.split())
    for word in ("stock 7,654", "pending 21", "outbox 3", "queue 0", "confirmed 2,325"):
        assert word in line
    assert "stock –" in format_line(gauges.read(None, None, 9 * 10**9))


def test_without_a_terminal_it_writes_one_line_a_second() -> None:
    written = io.StringIO()
    with LiveView(SPIKE, Console(file=written)) as view:
        for tenth in range(40):
            view.update(progress_at(8, 13_000), SAMPLE, (), 10**12 + tenth * 100_000_000)
    assert len(written.getvalue().splitlines()) == 4
    assert "\x1b" not in written.getvalue()


def test_on_a_terminal_it_draws_and_leaves_nothing_behind() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, height=30)
    with LiveView(SPIKE, console) as view:
        view.update(progress_at(8, 13_000), SAMPLE)
        drawn = written.getvalue()
    for word in ("spike", "accepted", "1,300", "stock left", "7,654", "confirmed", "2,325"):
        assert word in drawn
    assert written.getvalue().endswith("\x1b[2K"), "the last thing is that the lines of the panel are erased"


def test_a_sparkline_is_as_high_as_its_values() -> None:
    assert sparkline([0, 5, 10]) == " ▄█"
    assert sparkline([0, 0]) == "  "
