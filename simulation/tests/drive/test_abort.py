"""A hopeless load is stopped by what the driver has seen, but never in its first seconds."""

import msgspec
import pytest

from simulation.drive.progress import GRACE_S, Progress, find_abort, make_histogram, measure_progress
from simulation.judge.numbers.load import Load
from simulation.judge.thresholds import judge_abort
from simulation.judge.verdict import verdict
from simulation.model.outcome import OUTCOMES
from simulation.scenario.condition import parse_abort

COUNTS = {"ACCEPTED": 10, "SOLD_OUT": 50, "LIMIT_REACHED": 3, "INVALID": 2, "UNAVAILABLE": 30, "UNKNOWN": 5}
LOAD = Load(requests=1, sent=1, offered_rps=1, achieved_rps=1, lag_p99_ms=1, valid=True, reason="", retries=0)


def progress_at(t_s: float, outcomes: dict[str, int] = COUNTS) -> Progress:
    """A second in which nine of ten answers took about 5 ms, and the others about 800 ms."""
    return Progress(
        t0_ns=0,
        t_s=t_s,
        planned=1_000,
        intended=500,
        sent=400,
        done=100,
        outcomes=dict.fromkeys(OUTCOMES, 0) | outcomes,
        recent=make_histogram([5_000] * 90 + [800_000] * 10),
    )


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("all.count", 100),
        ("accepted.count", 10),
        ("sold_out.share", 0.5),
        ("rejected.count", 5),
        ("error.share", 0.3),
        ("unknown.share", 0.05),
    ],
)
def test_counts_and_shares_are_of_all_that_ended(metric: str, value: float) -> None:
    assert measure_progress(metric, progress_at(9)) == value


def test_response_times_are_those_of_the_last_second() -> None:
    assert measure_progress("all.response.p50", progress_at(9)) == pytest.approx(5, rel=0.01)
    assert measure_progress("all.response.p99", progress_at(9)) == pytest.approx(800, rel=0.01)


def test_without_requests_there_is_no_share_and_so_no_reason() -> None:
    assert measure_progress("error.share", progress_at(9, {})) is None
    assert find_abort([parse_abort("error.share >= 0")], progress_at(9, {})) is None


def test_the_first_condition_that_is_true_is_the_reason() -> None:
    texts = ["error.share > 0.5", "unknown.share > 0.01", "all.response.p99 > 500"]
    abort = find_abort([parse_abort(text) for text in texts], progress_at(9))
    assert abort is not None
    assert (abort.condition, abort.value, abort.at_s) == ("unknown.share > 0.01", 0.05, 9)


def test_a_load_may_begin_badly() -> None:
    conditions = [parse_abort("error.share > 0.1")]
    assert find_abort(conditions, progress_at(GRACE_S - 0.1)) is None
    assert find_abort(conditions, progress_at(GRACE_S)) is not None


def test_an_abort_fails_the_run_unless_the_driver_may_have_been_at_fault() -> None:
    abort = find_abort([parse_abort("error.share > 0.1")], progress_at(9))
    assert judge_abort(None, LOAD) == []
    (check,) = judge_abort(abort, LOAD)
    assert verdict([check], load_valid=True) == "fail"
    assert "0.3, the load was stopped after 9.0 s" in check.detail
    late = msgspec.structs.replace(LOAD, valid=False)
    assert verdict(judge_abort(abort, late), load_valid=False) == "unknown"
