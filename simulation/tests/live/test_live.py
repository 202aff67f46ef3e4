"""The live view says what goes on, on a terminal and without one."""

import io

from rich.console import Console

from simulation.drive.progress import Progress, make_histogram
from simulation.live.figures import Figures, Tracker
from simulation.live.terminal import format_line, open_view, sparkline
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
        recent=make_histogram([10_000] * min(done, 100)),
    )


def figures_at(
    t_s: float, progress: Progress | None, sample: Sample | None, tracker: Tracker | None = None
) -> Figures:
    return (tracker or Tracker(SPIKE)).read(progress, sample, (), round(t_s * 1e9))


def test_rates_are_those_of_the_last_second() -> None:
    tracker = Tracker(SPIKE)
    for quarter in range(9):
        figures = figures_at(quarter / 4, progress_at(quarter / 4, 250 * quarter), SAMPLE, tracker)
    assert (figures.intended_rps, figures.done_rps) == (1_000, 1_000)


def test_the_phase_is_the_scenarios_and_then_the_drain() -> None:
    for name, middle_s in PHASES.items():
        assert figures_at(middle_s, progress_at(middle_s, 1_000), None).phase == name
    assert figures_at(31, progress_at(31, 1_000), None).phase == "last answers"
    ended = figures_at(32, progress_at(32, 1_000, planned=1_000), SAMPLE)
    assert (ended.phase, ended.done_rps, ended.p50_ms) == ("draining", 0.0, None)


def test_a_plain_line_says_everything() -> None:
    tracker = Tracker(SPIKE)
    figures_at(7, progress_at(7, 1_000), None, tracker)
    line = format_line(figures_at(8, progress_at(8, 13_000), SAMPLE, tracker))
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
    assert "reads" not in line
    looked = progress_at(8, 13_000)._replace(reads=1_500)
    assert "reads 1,500" in format_line(figures_at(8, looked, SAMPLE))
    assert "stock –" in format_line(figures_at(9, None, None))


def test_without_a_terminal_it_writes_one_line_a_second() -> None:
    written = io.StringIO()
    with open_view(SPIKE, Console(file=written)) as show:
        for _ in range(16):
            show(figures_at(8, progress_at(8, 13_000), SAMPLE))
    assert len(written.getvalue().splitlines()) == 4
    assert "\x1b" not in written.getvalue()


def test_on_a_terminal_it_draws_and_leaves_nothing_behind() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=100, height=30)
    with open_view(SPIKE, console) as show:
        show(figures_at(8, progress_at(8, 13_000), SAMPLE))
        drawn = written.getvalue()
    for word in ("spike", "accepted", "1,300", "stock", "7,654", "confirmed", "2,325"):
        assert word in drawn
    assert written.getvalue().endswith("\x1b[2K"), "the last thing is that the lines of the panel are erased"


def test_a_sparkline_is_as_high_as_its_values() -> None:
    assert sparkline([0, 5, 10]) == " ▄█"
    assert sparkline([0, 0]) == "  "
