"""A threshold is read once, with clear errors, and judged by the record alone."""

from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import pandas as pd
import pytest

from simulation.errors import ScenarioError
from simulation.judge.asked import read_asked
from simulation.judge.numbers.latency import measure_latency
from simulation.judge.numbers.load import measure_load
from simulation.judge.numbers.requests import count_outcomes, select_waits
from simulation.judge.rules.misfits import hangs_on
from simulation.judge.thresholds import Metrics, judge_thresholds
from simulation.judge.verdict import verdict, verdict_in_words
from simulation.scenario.condition import parse_change, parse_condition, quantile_of
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.tests.run_folders import START_US, make_history, make_state

BUILT = {
    "arrivals.0.seconds": 2, "arrivals.0.rate_rps": 600,
    "arrivals.1.seconds": 4, "arrivals.1.rate_rps": 5_000,
    "arrivals.2.seconds": 6, "arrivals.2.rate_rps": 2_000,
}  # fmt: skip


def scenario_with(*thresholds: str) -> Scenario:
    return load_scenario("spike", {**BUILT, "thresholds": list(thresholds)}, stock=5_000)


@pytest.fixture(scope="module")
def run() -> Metrics:
    history = make_history(5_000)
    state = make_state(history, 5_000)
    scenario = scenario_with()
    load = measure_load(history, scenario.driver, 12.0)
    started_at = datetime.fromtimestamp(START_US / 1e6, UTC)
    return Metrics(history, state, load, started_at, read_asked(scenario))


def test_metrics_are_those_of_the_summary(run: Metrics) -> None:
    latency = measure_latency(select_waits(run.history, "accepted"), 5_000)
    for kind in ("response", "service"):
        for stat, value in latency[kind].items():
            assert run.measure(f"accepted.{kind}.{stat}") == pytest.approx(value, abs=1e-3)
    outcomes = count_outcomes(run.history)
    assert {name: run.measure(f"{name}.count") for name in outcomes} == outcomes
    assert run.measure("all.count") == sum(outcomes.values())
    assert run.measure("unknown.share") == outcomes["unknown"] / sum(outcomes.values())
    assert run.measure("oversold") == 0
    assert run.measure("fulfilment.confirmed") == 5_000


def test_the_front_doors_memory_is_the_most_that_all_of_them_take(run: Metrics) -> None:
    timeline = pd.DataFrame(
        {"t_s": [0, 1, 2], "rss_mib front-door 1": [50, 60, 70], "rss_mib redis": [9, 9, 9]}
    )
    timeline["rss_mib front-door 2"] = [20.0, 30.0, None]
    assert replace(run, timeline=timeline).measure("front_door.rss_max_mib") == 90
    for unread in (pd.DataFrame(), timeline[["t_s"]]):
        assert replace(run, timeline=unread).measure("front_door.rss_max_mib") is None


def test_over_a_window_only_its_own_requests_count(run: Metrics) -> None:
    assert run.measure("all.count", (0, 2)) == 1_200
    assert run.measure("all.count", (2, 6)) == 20_000
    assert run.measure("rejected.response.p99", (2, 6)) is None
    parts = [len(run.sample_delays(span)[1]) for span in ((0, 2), (2, 3), (3, 60))]
    assert sum(parts) == len(run.sample_delays()[1]) == 5_000
    assert 0 < parts[0] <= 1_200


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("oversold == 0", True),
        ("oversold != 0", False),
        ("all.count >= 28400", True),
        ("all.count > 28400", False),
        ("all.count <= 1200 during base", True),
        ("all.count == 7200 after peak", True),
        ("all.count < 1201 between 0s 2s", True),
        ("all.count < 1200 between 0 and 2 s", False),
        ("accepted.response.max < 1", False),
        ("rejected.response.p99 < 5", None),
        ("fulfilment.lag_p50 < 100", True),
        ("fulfilment.lag_p50 < 100 during tail", None),
    ],
)
def test_a_threshold_is_judged(run: Metrics, text: str, holds: bool | None) -> None:
    (check,) = judge_thresholds(scenario_with(text), run)
    assert check.holds is holds


def test_a_threshold_missed_under_another_load_than_planned_is_unknown(run: Metrics) -> None:
    late = replace(run, load=msgspec.structs.replace(run.load, valid=False))
    checks = judge_thresholds(scenario_with("oversold == 0", "accepted.response.max < 1"), late)
    assert [check.state for check in checks] == ["held", "not judged"]


def test_what_was_measured_is_said_in_plain_digits(run: Metrics) -> None:
    checks = judge_thresholds(
        scenario_with("all.count > 1", "all.count > 1 during base", "error.share < 1"), run
    )
    assert [check.detail for check in checks] == ["28,400", "1,200", "0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("accepted.response.p99", "must be a metric, a sign and a limit"),
        ("accepted.latency < 5", "there is no metric 'accepted.latency'"),
        ("accepted.response.p99 < fast", "'fast' is not a number"),
        ("oversold == 0 during peak", "is of the whole run"),
        ("all.count > 1 during lunch", "there is no 'lunch'; there are: base, peak, tail"),
        ("all.count > 1 between 5s 2s", "ends before it begins"),
        ("all.count > 1 until 2s", "is not a window"),
    ],
)
def test_a_bad_threshold_names_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=r"thresholds\.0: ") as caught:
        scenario_with(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["oversold == 0", "all.response.p999 <= 12.5 during peak", "all.count > 3 between 1s 2.5s"]
)
def test_a_condition_reads_back_as_it_was_written(text: str) -> None:
    assert str(parse_condition(text)) == text


def test_a_longer_run_moves_its_windows_along() -> None:
    scenario = load_scenario("spike", {"thresholds": ["all.count > 1 between 5s 10s"]}, duration_s=60)
    assert scenario.thresholds == ["all.count > 1 between 10s 20s"]


def test_a_window_can_follow_a_fault() -> None:
    fault = {"at_s": 3, "kind": "stop", "on": "front-door", "seconds": 1}
    scenario = load_scenario(
        "spike", {"faults": [fault], "thresholds": ["all.count > 1 after stop front-door"]}
    )
    assert scenario.spans()["stop front-door"] == (3, 4)


@pytest.mark.parametrize(("stat", "share"), [("p50", 0.5), ("p99", 0.99), ("p999", 0.999), ("max", 1)])
def test_digits_after_the_second_are_decimals(stat: str, share: float) -> None:
    assert quantile_of(stat) == pytest.approx(share)


def test_a_change_is_relative_or_in_its_own_unit() -> None:
    change = parse_change("accepted.response.p99 > +10%")
    assert (change.metric, change.sign, change.limit, change.relative) == (
        "accepted.response.p99",
        ">",
        10,
        True,
    )
    assert str(change) == "accepted.response.p99 > +10%"
    assert parse_change("oversold > 0").relative is False
    with pytest.raises(ValueError, match="is not a change"):
        parse_change("oversold > much")


def test_a_missed_threshold_fails_a_run_in_which_all_rules_hold(run: Metrics) -> None:
    rules = judge_thresholds(scenario_with("oversold == 0"), run)
    missed = judge_thresholds(scenario_with("accepted.response.max < 1", "oversold == 0"), run)
    assert verdict([*rules, *missed], load_valid=True) == "fail"
    words = verdict_in_words(rules, True, missed)
    assert words.startswith("1 rule tested and held.")
    assert "1 of 2 thresholds missed: accepted.response.max < 1 (" in words
    unmeasured = judge_thresholds(scenario_with("rejected.response.p99 < 5"), run)
    assert verdict([*rules, *unmeasured], load_valid=True) == "unknown"


TOLD = "sold_out.count rejected.count error.share unknown.share sold_out_after_s knee.rps"
HELD = "oversold sold fulfilment.confirmed fulfilment.lag_p99 fulfilment.drained_s"
ALWAYS = "all.count load.late_p99 front_door.rss_max_mib"
EVERY = f"{TOLD} {HELD} {ALWAYS} all.response.p99 accepted.count accepted.response.p99 remaining".split()


@pytest.mark.parametrize(
    ("part", "partial", "judged"),
    [
        ("requests", False, f"{ALWAYS} oversold"),
        ("requests", True, ALWAYS),
        ("buy", False, f"{ALWAYS} {HELD} all.response.p99 remaining"),
        ("buy", True, f"{ALWAYS} all.response.p99 remaining"),
        (
            "refusals",
            False,
            f"{ALWAYS} {HELD} all.response.p99 remaining accepted.count accepted.response.p99",
        ),
        ("orders", False, f"{ALWAYS} {TOLD} all.response.p99 remaining accepted.count accepted.response.p99"),
        ("reads of order", False, " ".join(EVERY)),
    ],
)
def test_a_misfit_excuses_the_metrics_that_hang_on_it(part: str, partial: bool, judged: str) -> None:
    found = {metric for metric in EVERY if not hangs_on(metric, {part: "so"}, partial)}
    assert found == set(judged.split())


def test_a_missed_threshold_of_what_does_not_fit_is_not_judged(run: Metrics) -> None:
    doubtful = replace(run, state=replace(run.state, misfits={"orders": "so"}))
    checks = judge_thresholds(scenario_with("sold > 9000", "accepted.response.max < 1"), doubtful)
    assert [check.state for check in checks] == ["not judged", "broken"]
    fitting = replace(run, state=replace(doubtful.state, fitting=frozenset({"orders"})))
    checks = judge_thresholds(scenario_with("sold > 9000"), fitting)
    assert [check.state for check in checks] == ["broken"]
