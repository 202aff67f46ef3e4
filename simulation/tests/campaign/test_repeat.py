"""A series runs its scenario with one seed after the other, keeps little, and can be compared."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simulation.campaign.repeat import repeat
from simulation.cli.commands import main
from simulation.errors import RunError
from simulation.record.manifest import PRODUCTS, list_record, seal
from simulation.record.series import KEPT, read_series
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.tests.browser import open_page
from simulation.tests.run_folders import lose_orders, make_run
from simulation.verdict import load_side

pytestmark = pytest.mark.slow

SCENARIO = load_scenario("spike", seed=10)


async def run_one(scenario: Scenario, folder: Path) -> dict[str, Any]:
    """Make up a run; that of seed 12 fails."""
    spoil = lose_orders if scenario.seed == 12 else lambda state: state
    summary = make_run(folder, seed=scenario.seed, spoil=spoil)
    (folder / "report.html").write_text("a report")
    seal(folder, [*list_record(folder), *PRODUCTS])
    return summary


async def make_series(folder: Path, runs: int, *, keep: bool = False) -> None:
    await repeat(SCENARIO, runs, folder, run_one, lambda _: None, command="flashsim run spike", keep=keep)


def flashsim(*words: object) -> Any:
    return CliRunner().invoke(main, [*map(str, words)])


async def test_a_series_keeps_verdicts_and_the_record_of_what_failed(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    await make_series(folder, 4)
    series = read_series(folder)
    assert series is not None
    assert [run.seed for run in series.runs] == [10, 11, 12, 13]
    assert [run.verdict for run in series.runs] == ["pass", "pass", "fail", "pass"]
    assert len({*series.figures["accepted.response.p99"].values}) == 4
    for run in series.runs:
        left = {path.name for path in (folder / run.folder).iterdir()}
        assert ("history.parquet" in left) == (run.verdict == "fail")
        assert {"summary.json", "report.html", "manifest.json", "run.json"} <= left
        assert run.verdict == "fail" or left <= set(KEPT)
    dom = open_page(folder / "series.html", tmp_path)
    assert re.search(r'id="verdict".*3 of 4 runs passed</h1>', dom)
    assert 'href="run-3/report.html"' in dom
    assert dom.count("<svg") == 2
    before = (folder / "series.html").read_bytes()
    assert flashsim("report", folder).exit_code == 0
    assert (folder / "series.html").read_bytes() == before


async def test_the_record_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    await make_series(tmp_path / "series", 2, keep=True)
    for run in load_side(tmp_path / "series").runs:
        assert run.metrics is not None
        assert flashsim("verify", run.folder).exit_code == 0


async def test_series_are_compared_with_or_without_their_records(tmp_path: Path) -> None:
    await make_series(tmp_path / "series", 4)
    await make_series(tmp_path / "other", 4, keep=True)
    page = tmp_path / "page.html"
    command = ["compare", tmp_path / "series", tmp_path / "other", "--out", page]
    done = flashsim(
        *command, "--primary", "accepted.response.p50", "--fail-if", "accepted.response.p50 > +5%"
    )
    assert done.exit_code == 0, done.output
    assert "4 and 4 runs" in done.output
    dom = open_page(page, tmp_path)
    assert re.search(r'id="verdict".*A and B failed</h1>', dom), "the third run of each did"
    assert 'href="other/series.html"' in dom
    assert "would show" in dom


async def test_a_summary_that_was_changed_is_not_compared(tmp_path: Path) -> None:
    await make_series(tmp_path / "series", 2)
    file = tmp_path / "series" / "run-1" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"verdict": "fail"}))
    done = flashsim("compare", tmp_path / "series", tmp_path / "series", "--out", tmp_path / "page.html")
    assert done.exit_code == 2
    assert "summary.json was changed" in done.output


async def test_a_series_needs_a_folder_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(RunError, match="is not empty"):
        await make_series(tmp_path, 2)


def test_bad_use_is_said_in_a_line() -> None:
    for words, said in (
        (["--repeat", "1"], "is not in the range"),
        (["--keep-records"], "give --repeat"),
    ):
        done = flashsim("run", "spike", *words)
        assert done.exit_code == 2
        assert said in done.output


def test_the_real_engine_makes_a_series(tmp_path: Path) -> None:
    folder = tmp_path / "series"
    done = flashsim(
        "run", "spike", "--rate=300", "--duration=2", "--stock=50", "--repeat=2", "--seed=5", "--out", folder,
        "--set=driver.late_p99_ms=60000", "--set=driver.connections_may_run_out=true", "--set=thresholds=[]",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "2 pass" in done.output
    for number, seed in ((1, 5), (2, 6)):
        facts = json.loads((folder / f"run-{number}" / "run.json").read_text())
        assert facts["scenario"]["seed"] == seed
        assert f"--seed {seed}" in facts["command"]
        assert "--repeat" not in facts["command"]
    series = read_series(folder)
    assert series is not None
    assert "--repeat 2" in series.command
