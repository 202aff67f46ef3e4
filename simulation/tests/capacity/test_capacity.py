"""What a purchase costs, fitted to what was observed; what a crowd needs by that; and how both are told."""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from simulation.bench.results import DOORS, SHARDS, Bench, FrontDoor, ScaledRound, Scaling
from simulation.bench.samples import Sample, Spread
from simulation.bench.scaling.measure import make_points
from simulation.capacity.check import check_model
from simulation.capacity.fit import CAUSES, DRAWS, GATE_CAUSES, IDLE, Costs, fit_costs, fit_role, interval
from simulation.capacity.observations import ROLES, Observation, observe_bench, observe_run
from simulation.capacity.plan import BUSY, Crowd, find_bound, plan, share_out
from simulation.cli.commands import main
from simulation.errors import RunError
from simulation.model.history import make_history

ROOT = Path(__file__).parents[3]
US = 1e-6


def observe(
    costs: Mapping[str, float], doors: int, rng: np.random.Generator, noise: float = 0.0, point: str = "run"
) -> Observation:
    """What a span of random load would show, if each role had these costs by cause."""
    seconds = float(rng.uniform(0.1, 3))
    counts = {name: float(rng.integers(0, 20_000)) for name in GATE_CAUSES}
    counts["settled"] = counts["accepted"]
    processes = {role: doors if role == "front-door" else 1 for role in ROLES}
    cpu_s = {
        role: (
            sum(costs[cause] * counts[cause] for cause in CAUSES[role])
            + costs[IDLE] * seconds * processes[role]
        )
        * float(1 + noise * rng.standard_normal())
        for role in ROLES
    }
    return Observation(point=point, seconds=seconds, cpu_s=cpu_s, processes=processes, **counts)


def rest(costs: Mapping[str, float]) -> Observation:
    """What a second without load would show."""
    counts = dict.fromkeys((*GATE_CAUSES, "settled"), 0.0)
    return Observation(
        point="run", seconds=1, cpu_s=dict.fromkeys(ROLES, costs[IDLE]), processes=dict.fromkeys(ROLES, 1),
        **counts,
    )  # fmt: skip


COSTS = st.fixed_dictionaries(
    {name: st.floats(1 * US, 200 * US) for name in (*GATE_CAUSES, "settled")} | {IDLE: st.floats(0, 0.05)}
)


@settings(max_examples=25)
@given(COSTS, st.integers(0, 2**32 - 1))
def test_costs_without_noise_are_found_as_they_are(costs: dict[str, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    observations = [rest(costs), *(observe(costs, doors, rng) for doors in [1, 1, 2, 8] * 5)]
    for role, found in fit_costs(observations, draws=2).items():
        assert list(found) == [*CAUSES[role], IDLE]
        for cause, draws in found.items():
            assert draws[0] == pytest.approx(costs[cause], rel=1e-4, abs=1e-9), (role, cause)


def test_a_span_in_which_the_host_took_time_away_does_not_tilt_the_costs() -> None:
    rng, costs = np.random.default_rng(1), dict.fromkeys((*GATE_CAUSES, "settled"), 10 * US) | {IDLE: 0.01}
    observations = [rest(costs), *(observe(costs, doors, rng, noise=0.01) for doors in [1, 1, 2, 8] * 5)]
    for disturbed in (observations[3], observations[12]):
        disturbed.cpu_s.update({role: 3 * cpu_s for role, cpu_s in disturbed.cpu_s.items()})
    found = fit_costs(observations, draws=2)
    for role, cause in (("front-door", "accepted"), ("front-door", "refused"), ("postgres", "settled")):
        assert found[role][cause][0] == pytest.approx(costs[cause], rel=0.05), (role, cause)


def test_of_a_role_that_was_only_seen_idle_nothing_is_claimed() -> None:
    observations = observe_bench(make_bench({key: RATES[key] for key in [*RATES][:3]}), "bench")
    assert any("redis" in each.cpu_s for each in observations)
    with pytest.raises(RunError, match="takes of redis"):
        fit_costs(observations, draws=1)


def test_of_a_process_that_never_rested_nothing_is_claimed() -> None:
    whole = [each for each in observe_bench(make_bench(RATES), "bench") if "engine" in each.point]
    assert [each.cpu_s["front-door"] / each.seconds for each in whole] == [0.15]
    busier = [each._replace(accepted=9.0, seconds=1.5) for each in whole]
    with pytest.raises(RunError, match="front-door needs at rest"):
        fit_role(busier, "front-door", draws=1)


TYPICAL = {
    "accepted": 50 * US,
    "refused": 15 * US,
    "asked": 9 * US,
    "looked": 30 * US,
    "resumed": 40 * US,
    "settled": 20 * US,
    IDLE: 0.01,
}


def test_the_interval_holds_the_truth_about_as_often_as_it_claims() -> None:
    costs = TYPICAL
    rng, held = np.random.default_rng(3), 0
    for _ in range(100):
        observations = [observe(costs, 1, rng, noise=0.1) for _ in range(60)] + [rest(costs)]
        low, high = interval(fit_role(observations, "front-door", draws=100)["accepted"])
        held += low <= costs["accepted"] <= high
    assert 85 <= held <= 100


def test_runs_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    costs = TYPICAL
    runs = [
        {name: cost * factor for name, cost in costs.items()} | {IDLE: 0.01}
        for factor in (0.8, 0.85, 0.95, 1.0, 1.1, 1.2, 1.3)
    ]
    spans = [observe(run, 1, rng, point=str(number)) for number, run in enumerate(runs) for _ in range(100)]
    spans.append(rest(runs[0])._replace(point="0"))

    def width(observations: Sequence[Observation]) -> float:
        low, high = interval(fit_role(observations, "front-door", draws=200)["accepted"])
        return high - low

    assert width(spans) > 2 * width([span._replace(point="one run") for span in spans])


CROWDS = st.builds(
    Crowd,
    people=st.floats(1, 1e8),
    seconds=st.floats(0.1, 600),
    stock=st.floats(0, 1e6),
    wait_s=st.floats(0.1, 10),
    settle_s=st.floats(1, 600),
)


def exact(costs: Mapping[str, float]) -> Costs:
    return {role: {cause: np.array([costs[cause]]) for cause in (*CAUSES[role], IDLE)} for role in ROLES}


@given(COSTS, CROWDS, st.floats(1, 100))
def test_a_larger_crowd_and_a_larger_stock_never_need_less(
    costs: dict[str, float], crowd: Crowd, factor: float
) -> None:
    for cost in exact(costs).values():
        # A unit that is sold takes more than a refusal.
        assume("accepted" not in cost or cost["accepted"][0] >= cost["refused"][0])
        needed = share_out(cost, crowd)[0]
        for larger in (
            crowd._replace(people=crowd.people * factor),
            crowd._replace(stock=crowd.stock * factor),
        ):
            assert share_out(cost, larger)[0] >= needed * (1 - 1e-9)


@given(COSTS, CROWDS)
def test_one_is_enough_for_as_many_as_it_says_and_for_no_more(costs: dict[str, float], crowd: Crowd) -> None:
    needs = plan(exact(costs), crowd)
    assert find_bound(needs).most_people == min(need.most_people for need in needs.values())
    for role, need in needs.items():
        cost = exact(costs)[role]
        assert need.low <= need.needed <= need.high
        assert (need.needed == 1) == (crowd.people <= need.most_people) or math.isclose(
            crowd.people, need.most_people, rel_tol=1e-4
        )
        if 1 < need.most_people < math.inf:
            assert share_out(cost, crowd._replace(people=need.most_people))[0] <= 1
            assert share_out(cost, crowd._replace(people=need.most_people * 1.0001))[0] > 1 - 1e-3


EASY = {
    "accepted": 50 * US,
    "refused": 10 * US,
    "asked": 5 * US,
    "looked": 0.0,
    "resumed": 0.0,
    "settled": 35 * US,
    IDLE: 0.0,
}


@pytest.mark.parametrize(
    ("crowd", "count"),
    [
        # (9,990,000 × 10 µs + 10,000 × 50 µs) in 11 s, at 70 %
        (Crowd(10e6, 10, 10_000), {"front-door": 14, "redis": 14, "postgres": 1}),
        # A million units: in the first second and one more 50 s of work at each
        (Crowd(10e6, 10, 1e6), {"front-door": 36, "redis": 36, "postgres": 1}),
        # 35 s of settling in 11 s
        (Crowd(1e6, 10, 1e6, settle_s=1), {"front-door": 7, "redis": 7, "postgres": 5, "relay": 5}),
        (Crowd(1, 10, 0), dict.fromkeys(ROLES, 1)),
        # Units that nobody comes for
        (Crowd(1_000, 10, 1e9), dict.fromkeys(ROLES, 1)),
    ],
)
def test_what_is_needed_is_the_work_over_the_time(crowd: Crowd, count: dict[str, int]) -> None:
    needs = plan(exact(EASY), crowd)
    assert {role: needs[role].needed for role in count} == count
    assert BUSY == 0.7, "as in these sums"


STATUS = {"ACCEPTED": 200, "SHOWN": 200, "SOLD_OUT": 429, "LIMIT_REACHED": 409}


def test_a_run_is_observed_between_two_readings() -> None:
    at_ms = [50, 150, 160, 250, 260, 270, 900]
    words = ["ACCEPTED", "ACCEPTED", "SOLD_OUT", "SHOWN", "LIMIT_REACHED", "UNKNOWN", "SOLD_OUT"]
    columns: dict[str, Any] = {
        "op": range(7), "driver": 0, "user_id": 1, "product_id": 1, "key": None,
        "intended_ns": [at * 1_000_000 for at in at_ms], "sent_ns": [at * 1_000_000 for at in at_ms],
        "done_ns": [at * 1_000_000 if word in STATUS else -1 for at, word in zip(at_ms, words, strict=True)],
        "status": [STATUS.get(word, 0) for word in words],
        "outcome": words, "result": "ok", "order_id": None, "attempt": 0, "first_op": range(7),
        "kind": ["stock" if word == "SHOWN" else "buy" for word in words], "order_status": None,
        "initial": None, "remaining": None, "sold": None, "end": "answered", "unsure_ns": 0,
    }  # fmt: skip
    timeline = pd.DataFrame(
        {
            "t_s": [0.1, 0.2, 0.4],
            "ledger_confirmed": pd.array([1, 1, None], "Int64"),
            "cpu_percent front-door 1": [None, 10.0, 20.0],
            "cpu_percent front-door 2": [None, 30.0, None],
            "cpu_percent redis": [None, 5.0, 5.0],
            "cpu_percent driver 1": [None, 90.0, 90.0],
        }
    )
    first, second = observe_run(make_history(columns), timeline, "run")
    assert (first.accepted, first.refused, first.looked, first.settled) == (1, 1, 0, 0)
    assert (second.accepted, second.refused, second.looked) == (0, 1, 1)
    assert first.cpu_s == pytest.approx({"front-door": 0.04, "redis": 0.005})
    assert first.processes == {"front-door": 2, "redis": 1}
    assert second.cpu_s == pytest.approx({"front-door": 0.04, "redis": 0.01})
    assert second.processes == {"front-door": 1, "redis": 1}, "one of them has ended"


def scaled(machines: str, size: int, state: str, share: float, rps: float) -> ScaledRound:
    """A second of four machines: so many of them have used their share, the others 0.001 s."""
    name = "front-door" if machines == DOORS else "redis"
    others = {role: 0.01 for role in ROLES if role != name}
    cpu_s = others | {f"{name} {number}": share if number <= size else 0.001 for number in range(1, 5)}
    requests, refused = round(rps), round(rps) if state in ("sold out", "limit reached") else 0
    return ScaledRound(
        requests=requests, rps=rps, refused=refused, socket_errors=0, p50_ms=1, p99_ms=2, cores=1,
        throttled=1, seconds=1, accepted=requests - refused, cpu_s=cpu_s,
    )  # fmt: skip


def make_bench(rates: Mapping[tuple[str, str, float], Mapping[int, float]]) -> Bench:
    one = Spread.of([1])
    curves = [
        Scaling(
            machines=machines, state=state, share=share,
            points=make_points(
                list(by_size), [[scaled(machines, size, state, share, by_size[size])] * 3 for size in by_size]
            ),
            idle=[scaled(machines, 0, state, share, 0)] * 3,
        )
        for (machines, state, share), by_size in rates.items()
    ]  # fmt: skip
    sample = Sample(
        requests=30_000, rps=10_000, refused=30_000, socket_errors=0, p50_ms=1, p99_ms=2,
        cpu_s={"front-door 1": 0.45, "redis": 0.01, "wrk": 0.3},
    )  # fmt: skip
    names = ("engine, sold out", "nginx")
    rows = [FrontDoor(subject=name, connections=64, rps=one, samples=[sample]) for name in names]
    return Bench(
        started_at=datetime(2026, 1, 1, tzinfo=UTC), command="", commit="", machine={}, versions={},
        load_before=0, rounds=3, seconds=1, growth_seconds=1, front_door=rows, scaling=curves,
    )  # fmt: skip


RATES = {
    (DOORS, "accepting", 0.05): {1: 2_450.0, 2: 4_900.0, 4: 7_350.0},
    (DOORS, "sold out", 0.05): {1: 4_900.0, 2: 9_800.0, 4: 19_600.0},
    (DOORS, "accepting", 0.1): {1: 4_950.0, 2: 9_900.0},
    (SHARDS, "accepting within a limit", 0.05): {1: 4_900.0, 2: 9_800.0, 4: 19_600.0},
    (SHARDS, "limit reached", 0.05): {1: 9_800.0, 2: 19_600.0, 4: 39_200.0},
    (SHARDS, "accepting within a limit", 0.1): {1: 9_900.0, 2: 19_800.0},
}


def count(each: Observation) -> list[float]:
    return [each.accepted, each.refused, each.asked, each.looked]


def test_a_benchmark_is_observed_round_by_round() -> None:
    whole, *observations = observe_bench(make_bench(RATES), "bench")
    assert (whole.point, whole.seconds, count(whole)) == ("bench: engine, sold out", 3, [0, 30_000, 0, 0])
    assert whole.cpu_s == {"front-door": 0.45, "redis": 0.01}
    assert len(observations) == 3 * (sum(map(len, RATES.values())) + len(RATES))
    doors, shards = (
        [count(each) for each in observations if each.point == f"bench: {name}"]
        for name in ("2 front doors of 0.05 cores", "4 shards of 0.05 cores")
    )
    assert doors == [[4_900, 0, 0, 0]] * 3 + [[0, 9_800, 0, 0]] * 3
    assert shards == [[19_600, 0, 0, 0]] * 3 + [[0, 0, 39_200, 0]] * 3
    first, last = observations[0], observations[-4]
    assert first.processes["front-door"] == 4
    assert first.cpu_s["front-door"] == pytest.approx(0.053)
    assert ("redis" in first.cpu_s, "front-door" in last.cpu_s) == (False, False), "they were not full"
    assert last.cpu_s["redis"] == pytest.approx(0.202), "two idle ones among them"


def test_more_machines_are_predicted_by_fewer_and_never_by_as_many() -> None:
    bench = make_bench(RATES)
    found = check_model(observe_bench(bench, "bench"), bench, "bench")
    predictions = {(each.machines, each.state, each.share, each.size): each for each in found}
    assert len(predictions) == sum(len(rates) - 1 for rates in RATES.values())
    odd = predictions.pop((DOORS, "accepting", 0.05, 4))
    for each in predictions.values():
        assert each.error == pytest.approx(0, abs=0.07), "the odd one is larger, and says nothing of these"
    assert odd.measured_rps == 7_350
    assert odd.predicted_rps == pytest.approx(9_800, rel=0.02), "its own 7,350 say nothing"
    assert odd.error == pytest.approx(1 / 3, abs=0.02)
    assert odd.low_rps <= odd.predicted_rps <= odd.high_rps
    other = check_model(observe_bench(bench, "another"), bench, "bench")
    assert other[1].error < odd.error, "another benchmark with as many counts"


def test_what_a_process_takes_to_go_on_after_a_wait_is_no_cost_of_purchases() -> None:
    # 0.5 ms each of ten times a second, of both shares.
    rates = {(DOORS, "accepting", 0.05): {1: 2_200.0, 2: 4_400.0}, (DOORS, "accepting", 0.1): {1: 4_700.0}}
    found = fit_role(observe_bench(make_bench(rates), "bench")[1:], "front-door", draws=1)
    assert found["accepted"][0] == pytest.approx(20 * US, rel=0.01)
    assert found["resumed"][0] == pytest.approx(500 * US, rel=0.02)


def test_a_prediction_is_for_the_time_that_the_machines_used() -> None:
    bench = make_bench({key: RATES[key] for key in RATES if key[0] == DOORS})
    point = bench.scaling[0].points[1]
    busier = [
        replace(each, cpu_s=each.cpu_s | {"front-door 1": 0.1, "front-door 2": 0.1}) for each in point.rounds
    ]
    bench.scaling[0].points[1] = replace(point, rounds=busier)
    found, *_ = check_model(observe_bench(bench, "bench"), bench, "bench")
    assert found.predicted_rps == pytest.approx(9_900, rel=0.02), "twice its share, less what it takes idle"
    assert found.measured_rps == 4_900


def test_the_command_says_what_is_needed_what_is_full_first_and_what_is_extrapolated() -> None:
    run = str(ROOT / "reports" / "reference")
    options = ["capacity", run, "--crowd", "1000", "--crowd", "10000000"]
    said = CliRunner().invoke(main, options)
    assert said.exit_code == 0, said.output
    assert "10,000,000 shoppers in 10 s, 10,000 units:" in said.output
    assert said.output.count("full first: ") == 2
    assert "measured: the runs answered up to" in said.output
    assert "extrapolated: " in said.output
    found = json.loads(CliRunner().invoke(main, [*options, "--json"]).stdout)
    small, large = found["plans"]
    assert {need["needed"] for need in small["needs"].values()} == {1}
    assert large["needs"]["front-door"]["needed"] > 5
    value, low, high = found["costs_s"]["front-door"]["refused"]
    assert low <= value <= high
    assert DRAWS >= 1_000, "as many as an interval of 95 % needs"


def test_the_table_of_the_readme_is_what_its_command_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (ROOT / "README.md").read_text()
    [command] = re.findall(r"^    flashsim (capacity .*--markdown)$", readme, re.MULTILINE)
    monkeypatch.chdir(ROOT)
    said = CliRunner().invoke(main, shlex.split(command))
    assert said.exit_code == 0, said.output
    assert "| 10,000,000 |" in said.output
    assert said.output in readme, f"the README's table differs from what flashsim {command} writes"


def test_a_folder_without_processor_time_says_nothing_of_costs(tmp_path: Path) -> None:
    said = CliRunner().invoke(main, ["capacity", str(tmp_path), "--crowd", "9"])
    assert said.exit_code == 2
    assert str(tmp_path) in said.stderr
