"""The report says what the record says, loads nothing, and is made whatever the record lacks."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulation.judge.numbers.disturbance import find_omission
from simulation.judge.numbers.fairness import measure_order
from simulation.judge.numbers.latency import measure_latency
from simulation.judge.numbers.reads import measure_reads
from simulation.judge.numbers.requests import measure_retries
from simulation.model.hostile import KindCount
from simulation.record.history import read_history
from simulation.report.plots.latency import draw_knee
from simulation.report.plots.responsive import Plot
from simulation.report.report import render_page, tabulate_hostile, write_report
from simulation.report.words import FAULTS, count, describe, ms
from simulation.scenario.fault import CLUSTER_TARGETS, COMMAND, TARGETS
from simulation.scenario.schema import DriverOptions
from simulation.tests.browser import open_page
from simulation.tests.histories import history_of, read_order, read_stock
from simulation.tests.judge.test_disturbance import stand_still
from simulation.tests.run_folders import lose_orders, make_run

pytestmark = pytest.mark.slow

PLOTS = {
    "latency", "heat", "percentiles", "throughput", "stock", "delay", "processes",
    "moment", "errors", "flight", "lag",
}  # fmt: skip


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("passed")
    make_run(folder)
    write_report(folder)
    return folder


def test_the_page_holds_verdict_checks_numbers_and_plots(passed: Path) -> None:
    page = (passed / "report.html").read_text()
    assert ">Pass</h1>" in page
    checks = json.loads((passed / "summary.json").read_text())["checks"]
    held = sum(check["state"] == "held" for check in checks)
    assert f"{held} rules tested and held, {len(checks) - held} not exercised." in page
    assert page.count('class="mark pass"') == held + 4
    assert page.count('class="mark idle"') == page.count("Not exercised by this run") == len(checks) - held
    assert ", 5,000 chances to fail" in page
    assert "<code>accepted.response.p99 &lt; 1000</code>" in page
    assert "5,000 sold of 5,000 in stock" in page
    assert "flashsim run spike --seed 1" in page
    assert {name for name in PLOTS if f'<section id="{name}">' in page} == PLOTS
    assert {file.stem for file in (passed / "plots").glob("*.png")} == PLOTS


def test_the_page_holds_the_scenario_and_what_went_wrong(passed: Path) -> None:
    page = (passed / "report.html").read_text()
    asked = page[page.index('<section id="scenario">') :]
    assert re.search(r"<th>1</th>\s*<td>5,000</td>\s*<td>none</td>\s*<td>1</td>", asked)
    assert re.search(r"<th>peak</th>\s*<td>constant</td>\s*<td>4 s</td>\s*<td>5,000/s</td>", asked)
    assert '<dd class="muted"><span>processes</span> 1</dd>' in asked
    assert "<dd><span>may_give_up</span> yes</dd>" in asked
    history = read_history(passed / "history.parquet")
    lost = history[history["outcome"] == "UNKNOWN"]
    wrong = page[page.index('<section id="errors">') :]
    assert re.search(rf"<th>none</th>\s*<td>UNKNOWN</td>\s*<td>no answer</td>\s*<td>{len(lost)}</td>", wrong)
    assert f"<td>op {lost['op'].iloc[0]}</td>" in wrong


def test_a_percentile_of_too_few_requests_says_so(passed: Path, tmp_path: Path) -> None:
    few = "° Too few samples to be trusted"
    page = (passed / "report.html").read_text()
    assert page.count('class="weak"') == 2  # p99.9 of 5,000 purchases, response and service
    assert few in page
    make_run(tmp_path, stock=12_000)
    page = write_report(tmp_path).read_text()
    assert 'class="weak"' not in page
    assert few not in page


def test_faults_are_listed_with_what_they_did_and_how_long_the_engine_took(tmp_path: Path) -> None:
    summary = make_run(tmp_path)
    fault = {"kind": "drop_replies", "on": "redis", "start_s": 3.0, "end_s": 4.0, "healed_s": 0.3}
    lasting = {"kind": "stop", "on": "relay", "start_s": 5.0, "end_s": 6.0, "healed_s": None}
    (tmp_path / "summary.json").write_text(json.dumps(summary | {"faults": [fault, lasting]}))
    page = write_report(tmp_path).read_text()
    rows = re.findall(r"<tr><th>\d</th>.*?</tr>", page, re.DOTALL)
    assert ["drop replies redis" in rows[0], "3.00 s" in rows[0], "in 0.3 s" in rows[0]] == [True] * 3
    assert "never" in rows[1]
    plots = page.count('class="panel last"') - 2  # all but percentiles and delay have an axis of time
    assert page.count('<text class="wide-only"') >= page.count(">1 drop replies redis<") == plots
    assert len(re.findall(r'<text class="narrow"[^>]*>1</text>', page)) == plots


def test_front_doors_and_nodes_in_charge_are_listed(tmp_path: Path) -> None:
    def fail_over(timeline: pd.DataFrame) -> pd.DataFrame:
        half = len(timeline) // 2
        return timeline.assign(**{"node shard 0": ["redis 1"] * half + ["redis 5"] * (len(timeline) - half)})

    assert 'id="nodes"' not in render_page(make_run(tmp_path / "single"), {})
    summary = make_run(tmp_path / "several", machine=fail_over)
    page = write_report(tmp_path / "several", brief=True).read_text()
    rows = [(each["node"], each["start_s"], round(each["end_s"], 1)) for each in summary["in_charge"]]
    assert rows == [("redis 1", 0.0, 6.2), ("redis 5", 6.4, 12.6)]
    assert "<tr><th>shard 0</th><td>redis 5</td><td>6.4 s</td><td>12.6 s</td></tr>" in page
    assert 'id="doors"' not in page
    counts = {
        "requests": 7_001,
        "accepted": 4_001,
        "sold_out": 3_000,
        "rejected": 0,
        "error": 0,
        "unknown": 0,
    }
    # An older record does not say how many were reset.
    page = render_page(summary | {"front_doors": [counts, counts | {"resets": 12}]}, {})
    assert (
        "<tr><th>1</th><td>7,001</td><td>4,001</td><td>3,000</td><td>0</td><td>0</td><td>0</td><td>–</td></tr>"
        in page
    )
    assert (
        "<tr><th>2</th><td>7,001</td><td>4,001</td><td>3,000</td><td>0</td><td>0</td><td>0</td><td>12</td></tr>"
        in page
    )


def test_every_kind_of_fault_has_words() -> None:
    assert FAULTS.keys() == TARGETS.keys() | CLUSTER_TARGETS.keys() | {COMMAND}


def test_what_service_time_hides_is_told_in_a_sentence(tmp_path: Path) -> None:
    summary = make_run(tmp_path)
    history = stand_still(read_history(tmp_path / "history.parquet"), held=5)
    refused = measure_latency(history[history["outcome"] == "SOLD_OUT"], 5_000)
    summary["latency_ms"]["sold_out"] = refused
    plots = {"percentiles": Plot(0, [])}
    assert 'id="omission"' not in render_page(summary, plots)
    page = render_page(summary, plots, omission=find_omission(history, summary, DriverOptions(connections=5)))
    assert "× service p99: the engine stood still for 1 s, from 7.00 s on, and 1," in page
    assert f"and reported {ms(refused['service']['p99'])}." in page
    assert "part of the wait may be its own" not in page
    late = summary | {"load": summary["load"] | {"valid": False, "reason": "late"}}
    page = render_page(late, plots, omission=find_omission(history, summary, DriverOptions(connections=5)))
    assert "nothing was answered for 1 s" in page
    assert "part of the wait may be its own" in page
    page = render_page(
        summary, plots, omission=find_omission(history, summary, DriverOptions(connections=5_000))
    )
    assert "the driver itself was late" in page
    assert "engine stood still" not in page


def test_a_percentile_in_doubt_and_a_machine_that_lost_time_are_marked(tmp_path: Path) -> None:
    def slow_down(timeline: pd.DataFrame) -> pd.DataFrame:
        return timeline.assign(stolen_percent=[0.0, 21.0] * (len(timeline) // 2))

    summary = make_run(tmp_path / "quiet")
    assert summary["meanwhile"]["disturbed"] is False
    assert set(summary["marks"].values()) == {"driver-limited"}
    assert "accepted.response.p999" not in summary["marks"]
    page = render_page(summary, {"percentiles": Plot(0, [])})
    assert page.count(" †<") == len(summary["marks"]) + sum(
        f"all.response.{stat}" in phase["marks"] for phase in summary["phases"] for stat in ("p50", "p99")
    )
    assert "processor time was stolen" not in page

    lost = make_run(tmp_path / "lost", machine=slow_down)
    assert lost["meanwhile"]["stolen_percent"] == pytest.approx(10.5, abs=0.5)
    assert lost["marks"]["accepted.response.p999"] == "processor time stolen"
    held = {each["name"]: each["detail"] for each in lost["thresholds"] if each["holds"]}
    assert "processor time stolen" in held["accepted.response.p99 < 1000"]
    for text in (render_page(lost, {}), describe(lost)):
        assert "processor time was stolen" in text
    assert "†, p999 " in describe(lost)
    assert "  in doubt  † " in describe(summary)


def test_what_a_run_measured_besides_has_a_panel_of_its_own(tmp_path: Path) -> None:
    summary = make_run(tmp_path)
    panels = ("fairness", "restocks", "retries", "reads", "hostile")
    bare = render_page(summary | dict.fromkeys(["fairness", "restocks", "retries", "reads"]), {})
    assert not any(f'id="{panel}"' in bare for panel in panels)

    history = read_history(tmp_path / "history.parquet")
    bots: dict[str, float] = {
        f"{who}_{what}": 3 for who in ("people", "bots") for what in ("heads", "requests", "units")
    }
    bots |= {f"bots_{what}_share": 0.5 for what in ("head", "request", "unit")}
    fairness = measure_order(history) | bots | {"people_units_per_head": 1, "bots_units_per_head": 1}
    restock = {"product_id": 7, "at_s": 5.0, "stock": 800, "sold": 790, "sold_out_after_s": None}
    looks = history_of(
        [read_order(1, "a", 0, "CONFIRMED"), *[read_stock(op, 0, 3, 3) for op in range(1_234)]]
    )
    page = render_page(
        summary
        | {"fairness": fairness, "restocks": [restock], "reads": measure_reads(looks, 5_000)}
        | {"retries": measure_retries(history.assign(attempt=1), None)},
        {},
        hostile=tabulate_hostile(
            {"huge body": KindCount(9, {"413": 8, "500": 1}), "slow": KindCount(2, {"left": 2})}
        ),
    )
    assert all(f'id="{panel}"' in page for panel in panels)
    assert "3 people, 3 bots" in page
    assert "of 5,000 winners" in page
    assert "28,400 retries" in page
    assert "<dt>Orders looked at</dt><dd>1</dd>" in page
    assert "<dt>Seen to their end</dt><dd>1</dd>" in page
    assert re.search(r">Stock</th>\s*<td>1,234</td>\s*<td>1,234</td>\s*<td>0</td>", page)
    assert ">11 hostile requests<" in page
    assert '<th>huge body</th><td>9</td><td>8</td><td class="fail">1</td>' in page


def test_a_terminal_is_told_of_reads_apart(tmp_path: Path) -> None:
    summary = make_run(tmp_path)
    assert " reads " not in describe(summary)
    looks = [read_order(1, "a", 0, "PENDING"), read_order(2, "a", 0, None), read_stock(3, 0, 3, 3)]
    said = describe(summary | {"reads": measure_reads(history_of(looks), 5_000)}).splitlines()
    assert said[:5] == describe(summary).splitlines()[:5]
    assert any("order: 2 of 1, 0 seen to their end, 1 not found: p50" in line for line in said)
    assert any("stock: 1: p50" in line for line in said)


def test_a_ramp_is_drawn_with_its_knee() -> None:
    rates, p99_ms = np.linspace(1e3, 9e3, 9), np.array([2.0] * 6 + [20, 90, 400])
    canvas = draw_knee(rates, p99_ms, {"rps": 6e3, "plateau_p99_ms": 2.0})
    assert canvas is not None
    assert [text.get_text() for text in canvas.panels[0].texts] == ["knee at 6,000/s offered"]
    steady = draw_knee(rates, p99_ms, {"rps": None, "plateau_p99_ms": 2.0})
    assert steady is not None
    assert not steady.panels[0].texts
    assert draw_knee(rates[:0], p99_ms[:0], {}) is None


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
    drawings = re.findall(r"<figure.*?</figure>", page, re.DOTALL)
    assert len(drawings) == len(PLOTS)
    assert {colour for svg in drawings for colour in re.findall(r"#[0-9a-f]{6}\b", svg)} <= {"#000000"}
    assert all("var(--muted)" in svg for svg in drawings)
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_a_brief_report_has_its_main_plots_once(passed: Path, tmp_path: Path) -> None:
    make_run(tmp_path)
    page = write_report(tmp_path, brief=True).read_text()
    assert page.count("<figure") == 5
    assert not (tmp_path / "plots").exists()
    assert len(page) < len((passed / "report.html").read_text()) / 2
    assert ">Pass</h1>" in page


def test_a_broken_run_shows_what_is_broken_before_what_holds(tmp_path: Path) -> None:
    make_run(tmp_path, spoil=lose_orders)
    page = write_report(tmp_path).read_text()
    assert ">Fail</h1>" in page
    assert "3 are not in the ledger" in page
    marks = re.findall(r'class="mark (\w+)"', page[page.index('id="checks"') :])
    places = [["fail", "unknown", "pass", "idle"].index(mark) for mark in marks]
    assert places == sorted(places)
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
    page = render_page(summary | {"command": "<script>alert(1)</script>"}, {})
    assert "<script>" not in page


def test_numbers_are_written_for_people() -> None:
    assert count(1234567.4) == "1,234,567"
    assert [ms(value) for value in (None, 0.42, 12.345, 1234.5)] == ["–", "420 µs", "12.3 ms", "1.23 s"]


def test_a_browser_shows_it(passed: Path, tmp_path: Path) -> None:
    dom = open_page(passed / "report.html", tmp_path)
    assert re.search(r'id="verdict".*Pass</h1>', dom)
    assert dom.count("<figure") == len(PLOTS)
    assert "29.8 ms" in dom
