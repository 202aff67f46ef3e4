"""The index is made of the folders of the runs alone."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulation.cli.commands import main
from simulation.report.index import list_runs, write_index
from simulation.report.report import write_report
from simulation.tests.browser import open_page
from simulation.tests.run_folders import lose_orders, make_run

pytestmark = pytest.mark.slow


def test_it_lists_every_run_and_nothing_else(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    make_run(reports / "good")
    make_run(reports / "bad <run>", spoil=lose_orders)
    for name in ("good", "bad <run>"):
        write_report(reports / name)
    make_run(reports / "unfinished")
    (reports / "bench").mkdir()
    (reports / "bench" / "summary.json").write_text(json.dumps({"rounds": 3}))
    (reports / "broken").mkdir()
    (reports / "broken" / "summary.json").write_text("{")
    (reports / "broken" / "report.html").write_text("")
    assert [entry.name for entry in list_runs(reports)] == ["good", "bad <run>"]

    done = CliRunner().invoke(main, ["index", str(reports)])
    assert done.exit_code == 0
    before = (reports / "index.html").read_bytes()
    assert write_index(reports).read_bytes() == before
    dom = open_page(reports / "index.html", tmp_path)
    assert ">2 runs</h1>" in dom
    assert "1 passed" in dom
    assert "1 failed" in dom
    assert dom.count("<svg") == 2
    assert 'href="bad%20%3Crun%3E/report.html"' in dom
    assert "<run>" not in dom
    assert "5,000 of 5,000" in dom


def test_a_folder_without_runs_has_an_empty_list(tmp_path: Path) -> None:
    assert ">0 runs</h1>" in write_index(tmp_path).read_text()
