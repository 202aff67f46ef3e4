"""The report says what the record says, looks after itself, and is there whatever the record lacks."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from simulation.report import count, ms, render_page, write_report
from simulation.tests.browser import open_page
from simulation.tests.run_folders import lose_orders, make_run

PLOTS = {"latency", "heat", "percentiles", "throughput", "stock", "lag", "processes"}


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passed")
    make_run(folder)
    write_report(folder)
    return folder


def test_the_page_holds_verdict_checks_numbers_and_plots(passed: Path) -> None:
    page = (passed / "report.html").read_text()
    assert ">Pass</h1>" in page
    assert "All 13 rules hold" in page
    assert page.count('class="mark pass"') == 13 + 4
    assert "<code>accepted.response.p99 &lt; 1000</code>" in page
    assert "5,000 sold of 5,000 in stock" in page
    assert "flashsim run spike --seed 1" in page
    assert {name for name in PLOTS if f'<section id="{name}">' in page} == PLOTS
    assert {file.stem for file in (passed / "plots").glob("*.png")} == PLOTS


def test_a_percentile_of_too_few_requests_says_so(passed: Path, tmp_path: Path) -> None:
    few = "° Too few samples to be trusted"
    page = (passed / "report.html").read_text()
    assert page.count('class="weak"') == 2  # p99.9 of 5,000 purchases, response and service
    assert few in page
    make_run(tmp_path, stock=12_000)
    page = write_report(tmp_path).read_text()
    assert 'class="weak"' not in page
    assert few not in page


def test_the_page_loads_nothing_from_outside(passed: Path) -> None:
    page = (passed / "report.html").read_text()
    loading = re.findall(r"(?:src|href)\s*=\s*[\"'](?!#)[^\"']*|@import|<script|<link|url\((?!#)[^)]*", page)
    assert loading == []


def test_the_same_record_makes_the_same_page(passed: Path) -> None:
    before = (passed / "report.html").read_bytes()
    write_report(passed)
    assert (passed / "report.html").read_bytes() == before


def test_plots_take_their_colours_from_the_page(passed: Path) -> None:
    page = (passed / "report.html").read_text()
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == 2 * len(PLOTS)
    assert {colour for svg in drawings for colour in re.findall(r"#[0-9a-f]{6}\b", svg)} <= {"#000000"}
    assert all("var(--ink)" in svg for svg in drawings)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_broken_run_shows_what_is_broken_before_what_holds(tmp_path: Path) -> None:
    make_run(tmp_path, spoil=lose_orders)
    page = write_report(tmp_path).read_text()
    assert ">Fail</h1>" in page
    assert "3 are not in the ledger" in page
    marks = re.findall(r'class="mark (\w+)"', page[page.index('id="checks"') :])
    assert marks == sorted(marks)
    assert marks[0] == "fail"


def test_a_record_with_gaps_still_makes_a_page(tmp_path: Path) -> None:
    make_run(
        tmp_path,
        spoil=lambda state: replace(state, orders=None, sales=None, gate=None, unread={"ledger": "down"}),
        timeline=False,
    )
    page = write_report(tmp_path).read_text()
    assert ">Unknown</h1>" in page
    assert "The ledger could not be read: down" in page
    assert "could not be judged" in page
    assert '<section id="stock">' not in page
    assert '<section id="latency">' in page


def test_words_of_the_record_are_escaped(tmp_path: Path) -> None:
    summary = make_run(tmp_path)
    page = render_page(summary | {"command": "<script>alert(1)</script>"}, [])
    assert "<script>" not in page


def test_numbers_are_written_for_people() -> None:
    assert count(1234567.4) == "1,234,567"
    assert [ms(value) for value in (None, 0.42, 12.345, 1234.5)] == ["–", "420 µs", "12.3 ms", "1.23 s"]


def test_a_browser_shows_it(passed: Path, tmp_path: Path) -> None:
    dom = open_page(passed / "report.html", tmp_path)
    assert re.search(r'id="verdict".*Pass</h1>', dom)
    assert dom.count("<svg") == 2 * len(PLOTS)
    assert "29.8 ms" in dom
