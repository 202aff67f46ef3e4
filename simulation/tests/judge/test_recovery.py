"""Recovery is measured from the record alone: requests are decided again, and the backlogs have drained."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulation.judge.numbers.recovery import measure_recovery
from simulation.judge.verdict import judge_recovery
from simulation.model.events import Interval, Recovery
from simulation.model.history import make_history

FAULT = Interval(kind="kill", on="redis", start_s=2.0, end_s=3.0)


def history(refused: tuple[float, float] | None = None, slow: tuple[float, float] | None = None) -> Any:
    """A thousand requests a second for 8 s, some of them answered with 503, some after 3 s."""
    meant = np.arange(8_000) * 1_000_000
    t_s = meant / 1e9
    down = np.zeros(8_000, bool) if refused is None else (t_s >= refused[0]) & (t_s < refused[1])
    late = np.zeros(8_000, bool) if slow is None else (t_s >= slow[0]) & (t_s < slow[1])
    frame = {
        "op": np.arange(8_000),
        "driver": 0,
        "user_id": 1,
        "product_id": 1,
        "key": None,
        "intended_ns": meant,
        "sent_ns": meant,
        "done_ns": meant + np.where(late, 3_000_000_000, 1_000_000),
        "status": np.where(down, 503, 200),
        "outcome": np.where(down, "UNAVAILABLE", "ACCEPTED"),
        "result": np.where(down, "fail", "ok"),
        "order_id": None,
    }
    return make_history(frame)


def timeline(backlog: tuple[float, float] | None = None, unread: tuple[float, float] | None = None) -> Any:
    t_s = np.round(np.arange(0, 10, 0.2), 1)
    pending = np.full(len(t_s), 20.0)
    if backlog:
        pending[(t_s >= backlog[0]) & (t_s < backlog[1])] = 5_000
    if unread:
        pending[(t_s >= unread[0]) & (t_s < unread[1])] = np.nan
    return pd.DataFrame({"t_s": t_s, "pending_orders": pending})


def recovered(history: Any, timeline: Any, *faults: Interval) -> list[float | None]:
    return [recovery.recovered_after_s for recovery in measure_recovery(history, timeline, faults or [FAULT])]


def test_an_engine_that_never_faltered_recovers_at_once() -> None:
    assert recovered(history(), timeline()) == [0.0]


def test_it_takes_until_requests_are_decided_again() -> None:
    assert recovered(history(refused=(2.0, 4.2)), timeline()) == [1.2]
    assert recovered(history(slow=(2.0, 3.5)), timeline()) == [0.5]


def test_answers_that_are_slow_again_until_the_next_fault_are_no_recovery() -> None:
    for trouble in ({"slow": (4.5, 8.0)}, {"refused": (4.5, 8.0)}):
        assert recovered(history(**trouble), timeline()) == [5.0], "when nobody asks any more"
        assert (
            judge_recovery(measure_recovery(history(**trouble), timeline(), [FAULT]), 4, 8).state == "broken"
        )
    assert recovered(history(slow=(4.5, 4.9)), timeline()) == [0.0], "those are a few"
    later = Interval(kind="cut", on="redis", start_s=4.4, end_s=8.5)
    assert recovered(history(slow=(4.5, 8.0)), timeline(), FAULT, later)[0] == 0.0, "that is the next one's"
    [meant] = measure_recovery(history(slow=(4.5, 8.0)), timeline(), [FAULT], overload=True)
    assert meant.recovered_after_s == 0.0


def test_it_takes_until_what_waited_has_drained_or_can_be_read() -> None:
    assert recovered(history(), timeline(backlog=(2.2, 5.0))) == [2.0]
    assert recovered(history(), timeline(unread=(2.2, 4.0))) == [1.0]


def test_what_only_the_last_sample_shows_to_have_drained_has_drained() -> None:
    assert recovered(history(), timeline(backlog=(2.2, 9.7))) == [6.8]


def test_trouble_that_begins_right_after_the_fault_counts() -> None:
    killed = Interval(kind="kill", on="relay", start_s=2.0, end_s=2.0)
    assert recovered(history(), timeline(backlog=(2.6, 4.0)), killed) == [2.0]


def test_what_the_next_fault_does_is_not_the_earlier_ones() -> None:
    later = Interval(kind="cut", on="redis", start_s=3.6, end_s=5.0)
    assert recovered(history(refused=(3.6, 5.2)), timeline(), FAULT, later) == [0.0, 0.2]


def test_a_quiet_crowd_shows_it_as_well() -> None:
    """Two requests a second: no 100 ms holds more than one."""
    assert recovered(history(refused=(2.0, 4.2)).iloc[::500], timeline()) == [1.1]
    assert recovered(history().iloc[::500], timeline()) == [0.0]


def test_a_recovery_that_takes_too_long_breaks_the_rule() -> None:
    recoveries = measure_recovery(history(refused=(2.0, 4.2)), timeline(), [FAULT])
    assert judge_recovery(recoveries, 1.3, 8).state == "held"
    assert judge_recovery(recoveries, 1.1, 8).state == "broken"


@pytest.mark.parametrize(
    ("recovered_s", "others", "state"),
    [
        (8.0, [], "broken"),
        (8.0, [(3.0, 9.0)], "held"),
        (8.0, [(3.0, 4.0)], "broken"),
        (8.0, [(1.5, 6.0), (7.0, 9.0), (7.5, 8.0)], "held"),
        (8.0, [(20.0, 30.0)], "broken"),
        (58.0, [(1.5, 59.0)], "not judged"),
    ],
)
def test_time_in_which_another_fault_is_on_is_not_taken_for_a_late_recovery(
    recovered_s: float, others: list[tuple[float, float]], state: str
) -> None:
    recoveries = [
        Recovery(kind="cut", on="redis", start_s=1, end_s=2, recovered_after_s=recovered_s),
        *(
            Recovery(kind="freeze", on="rabbitmq", start_s=start_s, end_s=end_s, recovered_after_s=1)
            for start_s, end_s in others
        ),
    ]
    assert judge_recovery(recoveries, 5, 60).state == state


@pytest.mark.parametrize("step", [1, 500])
def test_a_recovery_that_no_request_shows_is_not_one(step: int) -> None:
    recoveries = measure_recovery(history(refused=(2.0, 9.0)).iloc[::step], timeline(), [FAULT])
    assert judge_recovery(recoveries, 10, 7.5).state == "not judged"
    assert judge_recovery(recoveries, 2, 7.5).state == "broken"


def test_an_engine_that_does_not_come_back_breaks_the_rule() -> None:
    recoveries = measure_recovery(history(), timeline(backlog=(2.2, 99)), [FAULT])
    check = judge_recovery(recoveries, 10, 8)
    assert (check.holds, check.violations) == (False, 1)
    assert judge_recovery(measure_recovery(history(), timeline(), [FAULT]), 10, 8).holds


def test_it_counts_resets_and_the_longest_wait_in_the_outbox_until_it_is_recovered() -> None:
    seen, looked = history(refused=(2.0, 4.2)), timeline()
    [quiet] = measure_recovery(seen, looked, [FAULT])
    assert (quiet.resets, quiet.outbox_wait_s) == (0, None)
    looked["outbox_wait_ms"] = 100
    # Before, during and after.
    for at_s, wait_ms in ((1.0, 9_000), (3.0, 1_200), (4.0, np.nan), (6.0, 9_000)):
        looked.loc[looked["t_s"] == at_s, "outbox_wait_ms"] = wait_ms
    seen.loc[[1_000, 2_500, 4_100, 6_000], "end"] = "reset"
    [found] = measure_recovery(seen, looked, [FAULT])
    assert found.recovered_after_s == 1.2
    assert (found.resets, found.outbox_wait_s) == (2, 1.2)
