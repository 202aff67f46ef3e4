"""The index is made of the folders of the runs alone."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from simulation.cli.commands import main
from simulation.report.index import list_runs, write_index
from simulation.report.report import write_report
from simulation.report.trend import find_trends
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
    for name in ("series", "summary"):
        (reports / f"strange-{name}").mkdir()
        (reports / f"strange-{name}" / f"{name}.json").write_text('{"verdict": "pass"}')
        for page in ("report", "series"):
            (reports / f"strange-{name}" / f"{page}.html").write_text("")
    assert [entry.name for entry in list_runs(reports)] == ["good", "bad <run>"]

    for name in ("together/first", "matrix/kill-redis"):
        make_run(reports / name)
        write_report(reports / name, brief=True)
    (reports / "matrix" / "matrix.json").write_text("{}")
    assert [entry.name for entry in list_runs(reports)] == ["together/first", "good", "bad <run>"]
    (reports / "together/first/report.html").unlink()
    (reports / "together/first-and-second.html").write_text("")
    shutil.copytree("reports/reference-series/first", reports / "together" / "series")

    done = CliRunner().invoke(main, ["index", str(reports)])
    assert done.exit_code == 0
    before = (reports / "index.html").read_bytes()
    assert write_index(reports).read_bytes() == before
    dom = open_page(reports / "index.html", tmp_path)
    assert ">2 runs</h1>" in dom
    assert "1 passed" in dom
    assert "1 failed" in dom
    assert dom.count("<svg") - dom.count('<svg class="spark"') == 2
    assert 'href="bad%20%3Crun%3E/report.html"' in dom
    assert "<run>" not in dom
    assert 'href="together/series/series.html"' in dom
    assert 'href="together/first-and-second.html"' in dom
    assert "<h3>spike, 6 runs</h3>" in dom, "the runs of the series"
    assert "matrix/kill-redis" not in dom
    assert "5,000 of 5,000" in dom


def test_it_lists_campaigns_and_the_trend_of_runs_of_the_same_load(tmp_path: Path) -> None:
    summary = make_run(tmp_path / "run")
    for number in range(1, 8):
        place = tmp_path / f"run-{number}"
        place.mkdir()
        (place / "report.html").write_text("")
        # The last of them is another load.
        load = summary["load"] | {"requests": 28_400 + 100 * number if number < 5 else 90_000}
        times = {"started_at": f"2026-01-0{number}T00:00:00.000Z", "load": load, "time_to_sell_out_s": number}
        if place.name == "run-6":  # the same load, under a fault
            times |= {"load": summary["load"], "faults": [{"kind": "kill", "on": "relay"}]}
        elif place.name == "run-7":  # sent by another driver
            times |= {"load": summary["load"], "driver": "Locust"}
        (place / "summary.json").write_text(json.dumps(summary | times))
    for kind, rows in (
        ("matrix", {"cells": [{"verdict": "pass"}, {"verdict": "fail"}]}),
        ("worth", {"cases": [{"flashgrid": {"verdict": "pass"}}]}),
        ("bench", {}),
        ("interleave", {"hunts": []}),
    ):
        (tmp_path / kind).mkdir()
        result = {"started_at": "2026-01-01T00:00:00Z", **rows}
        (tmp_path / kind / f"{kind}.json").write_text(json.dumps(result))
        (tmp_path / kind / f"{kind}.{'md' if kind == 'bench' else 'html'}").write_text("")
    (tmp_path / "days").mkdir()
    (tmp_path / "days" / "interleave.json").write_text('{"date": "2026-01-02", "runs": []}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "soak.json").write_text("{}")
    page = write_index(tmp_path).read_text()
    assert (
        '<a href="matrix/matrix.html">matrix</a>, 2026-01-01: <span class="fail">1 of 2 passed</span>' in page
    )
    assert '<a href="worth/worth.html">worth</a>, 2026-01-01: <span class="pass">1 of 1 passed</span>' in page
    assert '<a href="bench/bench.md">bench</a>, 2026-01-01.' in page
    assert '<a href="interleave/interleave.html">interleave</a>, 2026-01-01.' in page
    assert '<a href="days/interleave.json">days</a>, 2026-01-02.' in page, "a record of runs without a page"
    assert "soak" not in page
    [trend] = find_trends([(entry.name, entry.summary) for entry in list_runs(tmp_path)])
    assert trend[1:4] == (4, "run-1", "run-4")
    [line] = [line for line in trend.lines if line.title == "Sold out after"]
    assert (line.first, line.last) == ("1 s", "4 s")
    assert [point.x for point in line.points] == sorted(point.x for point in line.points)
    assert [point.y for point in line.points] == sorted((point.y for point in line.points), reverse=True)
    assert "<h3>spike, 4 runs</h3>" in page


def test_a_folder_without_runs_has_an_empty_list(tmp_path: Path) -> None:
    assert ">0 runs</h1>" in write_index(tmp_path).read_text()
