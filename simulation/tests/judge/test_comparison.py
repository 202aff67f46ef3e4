"""A comparison tells a change from chance, names a stall, and fails a pipeline when it should."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from simulation.cli.commands import main
from simulation.errors import RunError
from simulation.judge.comparison import compare, count_tests, judge_change
from simulation.judge.differences import find_differences
from simulation.judge.figures import FIGURES, Run, Side, read_metric
from simulation.judge.numbers.reads import measure_reads
from simulation.judge.stalls import find_stalls
from simulation.report.comparison import describe_stall
from simulation.report.words import percent
from simulation.scenario.condition import parse_change
from simulation.scenario.loading import load_scenario
from simulation.tests.browser import open_page
from simulation.tests.histories import history_of, read_stock
from simulation.tests.run_folders import make_run
from simulation.verdict import load_run, load_side

pytestmark = pytest.mark.slow

P50 = "accepted.response.p50"
REPORTS = Path(__file__).parents[3] / "reports"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("runs")
    looks = {"first": (1, 1.0), "same": (2, 1.0), "slow": (3, 1.3)}
    for name, (seed, slowness) in looks.items():
        make_run(base / name, seed=seed, slowness=slowness)
    return {name: base / name for name in looks}


@pytest.fixture(scope="module")
def runs(folders: dict[str, Path]) -> dict[str, Run]:
    return {name: load_run(folder) for name, folder in folders.items()}


def test_a_run_against_itself_has_not_changed(runs: dict[str, Run]) -> None:
    rows = compare({metric: [[runs["first"].measure(metric)]] * 2 for metric in FIGURES})
    assert all(change is not None and not change.delta.value for row in rows for change in row.changes)
    assert find_stalls(runs["first"], runs["first"]) == []


def test_one_run_each_says_nothing_of_chance(runs: dict[str, Run]) -> None:
    rows = compare(
        {metric: [[runs[name].measure(metric)] for name in ("first", "slow")] for metric in FIGURES}
    )
    assert count_tests(rows) == 0
    (change,) = next(row for row in rows if row.metric == P50).changes
    assert change is not None
    assert change.percent is not None
    assert change.percent.low is None
    assert change.percent.value == pytest.approx(30, abs=10)


def test_what_a_summary_lacks_or_has_is_what_the_record_gives(runs: dict[str, Run]) -> None:
    run = runs["first"]
    for metric in (
        *FIGURES,
        "all.share",
        "error.share",
        "fulfilment.confirmed",
        "load.late_p99",
        "remaining",
    ):
        assert read_metric(run.summary, metric) == pytest.approx(run.measure(metric), abs=1e-3), metric
    for metric in ("rejected.response.p99", "knee.rps", "front_door.rss_max_mib", "accepted.response.p95"):
        assert read_metric(run.summary, metric) is None


def test_slower_reads_are_a_change(runs: dict[str, Run]) -> None:
    metrics = runs["first"].metrics
    assert metrics is not None
    reads = history_of([read_stock(number, number * 1_000_000, 3, 1) for number in range(100)])
    slow = reads.assign(done_ns=reads["done_ns"] + 900_000_000)
    looked = [replace(metrics, reads=each) for each in (reads, slow)]
    metric = "stock_reads.response.p99"
    (row,) = compare({name: [[each.measure(name)] for each in looked] for name in FIGURES if "reads" in name})
    (change,) = row.changes
    assert (row.metric, row.title) == (metric, "Reads of stock, response p99")
    assert change is not None
    assert change.delta.value == pytest.approx(900)
    summary = {"reads": measure_reads(slow, 5_000), "latency_ms": {}, "load": {"requests": 100}}
    assert read_metric(summary, metric) == looked[1].measure(metric) == pytest.approx(900)
    assert looked[1].measure(metric, (0.2, 0.3)) is None


def test_runs_of_the_same_engine_have_no_stall(runs: dict[str, Run]) -> None:
    assert find_stalls(runs["first"], runs["same"]) == []
    assert find_stalls(runs["first"], runs["slow"]) == [], "slower throughout is no stall"


def test_the_reference_against_the_stall_names_it(tmp_path: Path) -> None:
    page = tmp_path / "comparison.html"
    command = ["compare", str(REPORTS / "reference"), str(REPORTS / "reference-stall"), "--out", str(page)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert re.search(
        r"From 9 to 10 s, B stalled: 90% of the answers took up to 913 ms, ×707 of A's", done.output
    )
    assert "no answer came for 1.00 s" in done.output
    assert "one run each" in done.output
    dom = open_page(page, tmp_path)
    assert re.search(r'id="verdict".*B stalled</h1>', dom)
    assert "faults.0" in dom
    backwards = CliRunner().invoke(main, ["compare", *command[2:0:-1], *command[3:]], catch_exceptions=False)
    assert "From 9 to 10 s, A stalled" in backwards.output


def stop(history: pd.DataFrame, share: float, start_s: float, end_s: float) -> pd.DataFrame:
    """Whatever falls due in the span is answered at its end, for this share of the requests."""
    caught = history["intended_ns"].between(start_s * 1e9, end_s * 1e9) & (history["op"] % 100 < 100 * share)
    return history.assign(done_ns=history["done_ns"].mask(caught, int(end_s * 1e9)))


def lose(history: pd.DataFrame, start_s: float, end_s: float) -> pd.DataFrame:
    caught = history["intended_ns"].between(start_s * 1e9, end_s * 1e9)
    return history.assign(
        done_ns=history["done_ns"].mask(caught), outcome=history["outcome"].mask(caught, "UNKNOWN")
    )


def refuse(history: pd.DataFrame, start_s: float, end_s: float) -> pd.DataFrame:
    caught = history["intended_ns"].between(start_s * 1e9, end_s * 1e9)
    return history.assign(outcome=history["outcome"].mask(caught, "UNAVAILABLE"))


@pytest.mark.parametrize(
    ("spoil", "what", "span"),
    [
        (lambda history: stop(history, 1, 7.0, 7.5), "response", (7, 8)),
        (lambda history: stop(history, 0.3, 3.1, 3.9), "response", (3, 4)),
        (lambda history: stop(history, 1, 4.0, 9.0), "response", (4, 9)),
        (lambda history: stop(history, 1, 4.0, 11.9), "response", (4, 12)),
        (lambda history: lose(history, 8.0, 9.0), "response", (8, 9)),
        (lambda history: lose(history, 8.0, 9.0), "unserved", (8, 9)),
        (lambda history: refuse(history, 5.0, 7.0), "unserved", (5, 7)),
    ],
    ids=[
        "half a second",
        "a third of the requests",
        "five seconds",
        "most of it",
        "lost",
        "none answered",
        "503",
    ],
)
def test_a_stall_of_any_kind_is_found_where_it_was(
    runs: dict[str, Run],
    spoil: Callable[[pd.DataFrame], pd.DataFrame],
    what: str,
    span: tuple[float, float],
) -> None:
    metrics = runs["same"].metrics
    assert metrics is not None
    spoilt = replace(runs["same"], metrics=replace(metrics, history=spoil(metrics.history)))
    for worse, pair in enumerate([(spoilt, runs["first"]), (runs["first"], spoilt)]):
        found = find_stalls(*pair)
        assert found is not None
        (stall,) = [stall for stall in found if stall.what == what]
        assert (stall.start_s, stall.end_s, stall.worse) == (*span, worse)
        assert f"{'AB'[worse]}" in describe_stall(stall, "B")


def test_a_late_ledger_is_found(runs: dict[str, Run]) -> None:
    metrics = runs["same"].metrics
    assert metrics is not None
    orders = metrics.state.orders
    assert orders is not None
    late = orders["accepted_us"] - orders["accepted_us"].min() < 1_500_000
    slow = orders.assign(settled_us=orders["settled_us"] + 2_000_000 * late)
    spoilt = replace(runs["same"], metrics=replace(metrics, state=replace(metrics.state, orders=slow)))
    found = find_stalls(runs["first"], spoilt)
    assert found is not None
    assert [(stall.what, stall.start_s) for stall in found] == [("delay", 0)]


def test_all_that_differs_between_the_scenarios_is_listed(runs: dict[str, Run]) -> None:
    changes = {
        "driver.connections": 64,
        "engine.fulfilment_wait_ms": 10,
        "faults": [{"at_s": 9, "seconds": 1, "kind": "stop", "on": "redis"}],
        "arrivals.1.rate_rps": 5_000,
        "population.keyed_share": 0.5,
    }
    first = replace(runs["first"], scenario=load_scenario("spike"))
    other = replace(runs["same"], scenario=load_scenario("spike", changes))
    found = dict(find_differences([Side("a", "a", "", [first]), Side("b", "b", "", [other])]))
    assert found == {
        "arrivals.1.rate_rps": ["10,500", "5,000"],
        "population.keyed_share": ["0", "0.5"],
        "driver.connections": ["4,000", "64"],
        "engine.fulfilment_wait_ms": ["–", "10"],
        "faults.0": ["–", "at_s 9, kind stop, on redis, seconds 1"],
    }


def test_a_run_of_a_series_that_was_set_up_otherwise_is_listed(runs: dict[str, Run]) -> None:
    calm = replace(runs["first"], scenario=load_scenario("spike"))
    storm = replace(calm, scenario=load_scenario("spike", {"arrivals.1.rate_rps": 30_000}))
    sides = [Side("a", "a", "", [calm, calm]), Side("b", "b", "", [calm, calm, storm])]
    found = dict(find_differences(sides))
    assert found["arrivals.1.rate_rps"] == ["10,500", "10,500 / 30,000"]
    assert found.keys() == {"arrivals.1.rate_rps", "seeds"}


def test_a_run_of_a_series_whose_set_up_was_changed_is_refused(tmp_path: Path) -> None:
    series = tmp_path / "series"
    shutil.copytree(REPORTS / "reference-series" / "first", series)
    assert len(load_side(series).runs) == 6
    facts = series / "run-3" / "run.json"
    facts.write_text(facts.read_text().replace('"seed": 3', '"seed": 4'))
    with pytest.raises(RunError, match=r"run-3: run.json was changed"):
        load_side(series)


def test_units_that_one_run_oversold_are_said_first(folders: dict[str, Path], tmp_path: Path) -> None:
    twice, page = tmp_path / "twice", tmp_path / "page.html"
    shutil.copytree(folders["same"], twice)
    orders = pd.read_parquet(twice / "final" / "orders.parquet")
    again = orders.iloc[:200].assign(order_id=[f"again {number}" for number in range(200)])
    pd.concat([orders, again]).to_parquet(twice / "final" / "orders.parquet", index=False)
    command = ["compare", str(folders["first"]), str(twice), "--out", str(page)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert re.search(
        r"^B oversold 200 units and failed: \d+ of \d+ rules broken: .*no oversell", done.output, re.M
    )
    assert ">B oversold</h1>" in page.read_text()


def test_a_rule_that_one_run_broke_is_said_first(folders: dict[str, Path], tmp_path: Path) -> None:
    lost, page = tmp_path / "lost", tmp_path / "page.html"
    shutil.copytree(folders["same"], lost)
    orders = pd.read_parquet(lost / "final" / "orders.parquet")
    orders.iloc[1:].to_parquet(lost / "final" / "orders.parquet", index=False)
    command = ["compare", str(lost), str(folders["first"]), "--out", str(page)]
    done = CliRunner().invoke(main, command, catch_exceptions=False)
    assert re.search(r"^A failed: .*accepted is settled", done.output, re.M)
    assert ">A failed</h1>" in page.read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (6.12, "+6.1%"),
        (-99.96, "-100.0%"),
        (0.0, "+0.0%"),
        (899.9, "+899.9%"),
        (900, "×10"),
        (32_676.7, "×328"),
    ],
)
def test_a_change_from_tenfold_on_is_said_as_a_factor(change: float, said: str) -> None:
    assert percent(change) == said


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        (f"{P50} > +10%", True),
        (f"{P50} > +60%", False),
        (f"{P50} > 0.1", True),
        (f"{P50} > 100", False),
        ("oversold > 0", False),
        ("rejected.response.p99 > +10%", None),
    ],
)
def test_a_change_of_single_runs_is_judged(runs: dict[str, Run], text: str, broken: bool | None) -> None:
    condition = parse_change(text)
    values = [[runs[name].measure(condition.metric)] for name in ("first", "slow")]
    assert judge_change(condition, compare({condition.metric: values})) is broken


def test_the_command_fails_when_told_to_and_writes_a_page(folders: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "out" / "comparison.html"
    command = ["compare", *map(str, folders.values()), "--out", str(page)]
    done = CliRunner().invoke(main, [*command, "--fail-if", f"{P50} > +10%", "--fail-if", "oversold > 0"])
    assert done.exit_code == 1
    assert f"fail if {P50} > +10%" in done.output
    dom = open_page(page, tmp_path)
    assert dom.count("<svg") == 6
    assert re.search(r'id="verdict".*One run each</h1>', dom)
    assert all(f">{name}</a>" in dom for name in folders)
    assert CliRunner().invoke(main, [*command, "--fail-if", f"{P50} > +60%"]).exit_code == 0
    assert CliRunner().invoke(main, [*command, "--fail-if", "rejected.response.p50 > +1%"]).exit_code == 2


def test_bad_use_is_said_in_a_line(folders: dict[str, Path], tmp_path: Path) -> None:
    first = str(folders["first"])
    for words, said in (
        ([first], "give 2 to 8 runs"),
        ([first, first, "--fail-if", "speed > 3%"], "--fail-if: there is no metric"),
        ([first, first, "--primary", "speed"], "--primary: there is no metric"),
        ([first, str(tmp_path)], "is not the folder of a run"),
    ):
        done = CliRunner().invoke(main, ["compare", *words, "--out", str(tmp_path / "page.html")])
        assert done.exit_code == 2
        assert said in done.output


@pytest.mark.parametrize(
    ("other", "word", "fails"), [("again", "No difference shown", 0), ("slower", "Slower", 1)]
)
def test_recorded_series_of_the_engine_tell_it_from_a_slower_one(
    tmp_path: Path, other: str, word: str, fails: int
) -> None:
    page, delay, series = tmp_path / "page.html", "fulfilment.lag_p50", REPORTS / "reference-series"
    command = ["compare", str(series / "first"), str(series / other), "--out", str(page)]
    done = CliRunner().invoke(main, [*command, "--primary", delay, "--fail-if", f"{delay} > +10%"])
    assert done.exit_code == fails, done.output
    assert f">{word}</h1>" in page.read_text()
    assert "engine.fulfilment_wait_ms" in page.read_text() or other == "again"
