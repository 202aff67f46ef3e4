"""A comparison tells a change from chance, and fails a pipeline when it should."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulation.cli.commands import main
from simulation.judge.comparison import Run, compare, count_changes, judge_change
from simulation.report.words import percent
from simulation.scenario.condition import parse_change
from simulation.tests.browser import open_page
from simulation.tests.run_folders import make_run
from simulation.verdict import load_run

pytestmark = pytest.mark.slow

P50 = "accepted.response.p50"


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


def test_a_slower_engine_is_surely_slower_by_what_it_is(runs: dict[str, Run]) -> None:
    (row,) = compare([runs["first"], runs["slow"]], [P50])
    change = row.changes[0]
    assert change is not None
    assert change.low is not None
    assert change.high is not None
    assert change.sure
    assert change.low < 30 < change.high
    assert change.percent == pytest.approx(30, abs=10)


def test_another_seed_of_the_same_engine_is_not_called_slower(runs: dict[str, Run]) -> None:
    (row,) = compare([runs["first"], runs["same"]], [P50])
    assert row.changes[0] is not None
    assert not row.changes[0].sure


def test_a_run_against_itself_has_not_changed(runs: dict[str, Run]) -> None:
    rows = compare([runs["first"], runs["first"]])
    assert all(change is not None and not change.delta for row in rows for change in row.changes)
    assert count_changes(rows, 1)[:2] == (0, 0)


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


def test_the_same_runs_give_the_same_intervals(runs: dict[str, Run]) -> None:
    pair = [runs["first"], runs["slow"]]
    assert compare(pair, [P50]) == compare(pair, [P50])


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
def test_a_change_is_judged(runs: dict[str, Run], text: str, broken: bool | None) -> None:
    condition = parse_change(text)
    rows = compare([runs["first"], runs["slow"]], [condition.metric])
    assert judge_change(condition, rows) is broken


def test_the_command_fails_when_told_to_and_writes_a_page(folders: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "out" / "comparison.html"
    command = ["compare", *map(str, folders.values()), "--out", str(page)]
    done = CliRunner().invoke(main, [*command, "--fail-if", f"{P50} > +10%", "--fail-if", "oversold > 0"])
    assert done.exit_code == 1
    assert f"fail if {P50} > +10%" in done.output
    dom = open_page(page, tmp_path)
    assert dom.count("<svg") == 8
    assert re.search(r'id="verdict".*Slower</h1>', dom)
    assert all(f">{name}</a>" in dom for name in folders)
    assert CliRunner().invoke(main, [*command, "--fail-if", f"{P50} > +60%"]).exit_code == 0
    assert CliRunner().invoke(main, [*command, "--fail-if", "rejected.response.p50 > +1%"]).exit_code == 2


def test_bad_use_is_said_in_a_line(folders: dict[str, Path], tmp_path: Path) -> None:
    first = str(folders["first"])
    for words, said in (
        ([first], "give 2 to 8 runs"),
        ([first, first, "--fail-if", "speed > 3%"], "there is no metric"),
        ([first, str(tmp_path)], "is not the folder of a run"),
    ):
        done = CliRunner().invoke(main, ["compare", *words, "--out", str(tmp_path / "page.html")])
        assert done.exit_code == 2
        assert said in done.output
