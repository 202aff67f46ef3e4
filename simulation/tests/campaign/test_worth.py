"""What the design is worth rests on runs: the page says what they gave, and the README what the page says."""

import re
import shlex
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest
from click.testing import CliRunner

from simulation.campaign.worth import (
    CASES,
    NO_FAULT,
    Case,
    Rate,
    Worth,
    count_answers,
    make_outcome,
    plan_case,
    write_worth,
)
from simulation.cli.commands import main
from simulation.cli.running import _load, run
from simulation.record.manifest import find_contradictions
from simulation.target.foreign.engine import FLASHGRID_ENGINE, find_engine
from simulation.tests.run_folders import make_run
from simulation.tests.test_project import ROOT
from simulation.verdict import judge_run

REFERENCE = ROOT / "reports" / "reference-worth"


def summary(**changes: Any) -> dict[str, Any]:
    checks = [
        {"name": "units are conserved", "state": "broken", "violations": 5},
        {"name": "nothing is stranded", "state": "broken", "violations": 2},
        {"name": "no oversell", "state": "held", "violations": 0},
    ]
    return {
        "verdict": "fail",
        "verdict_in_words": "2 of 3 rules broken.",
        "checks": checks,
        "outcomes": {"accepted": 40},
        "stock": {"sold": 39, "oversold": 1},
        "fulfilment": {"rejected": 3},
        "retries": {"keyed_bought_again": 4, "unkeyed_bought_again": 6},
    } | changes


def test_an_outcome_counts_what_the_rules_found() -> None:
    found = make_outcome(summary(), "textbook", "kill-textbook", 3, 2)
    assert (found.lost, found.oversold, found.stranded, found.again) == (5, 4, 2, 10)
    assert found.broken == ["nothing is stranded", "units are conserved"]
    clean = make_outcome(summary(checks=[], stock={"sold": None, "oversold": None}), "textbook", "", 1, 1)
    assert (clean.lost, clean.oversold, clean.stranded, clean.broken) == (0, 3, 0, [])


def test_a_rate_counts_the_decided_within_the_window() -> None:
    done_ns = pd.Series([500_000_000, 1_500_000_000, 2_000_000_000, 3_000_000_000, None], dtype="Int64")
    outcome = ["ACCEPTED", "ACCEPTED", "SOLD_OUT", "UNKNOWN", "ACCEPTED"]
    assert count_answers(pd.DataFrame({"outcome": outcome, "done_ns": done_ns})) == round(2 / 3, 1)


@pytest.mark.parametrize("name", CASES)
def test_every_case_is_the_same_crowd_for_both_engines(name: str) -> None:
    plan = plan_case(name, 200, seed=4)
    scenario = plan.load()
    for engine in (FLASHGRID_ENGINE, find_engine("textbook", None)):
        context = run.make_context("run", shlex.split(plan.write_command(engine))[2:])
        assert _load(context.params.pop("scenario"), {}, context.params) == scenario
        assert context.params["engine"] == (None if engine is FLASHGRID_ENGINE else "textbook")
    assert scenario.seed == 4
    assert (scenario.name == "spike") == (name == NO_FAULT)
    assert len(scenario.faults) == (name != NO_FAULT)
    assert scenario.population.keyed_share == (1.0 if name == "retries with keys" else 0.0)


def test_the_page_shows_both_engines_side_by_side(tmp_path: Path) -> None:
    bad = make_outcome(summary(), "textbook", "kill-textbook", 1, 1)
    good = make_outcome(summary(verdict="pass", checks=[]), "flashgrid", "kill-flashgrid", 1, 1)
    worth = Worth(command="flashsim worth", rate_rps=200)
    worth.cases.append(Case(name="front door killed", textbook=bad, flashgrid=good))
    worth.rates.append(Rate(state="accepting", offered_rps=9_000, textbook_rps=100, flashgrid_rps=2_000))
    write_worth(worth, tmp_path)
    text = (tmp_path / "worth.md").read_text()
    assert (
        "| front door killed | textbook | [fail](kill-textbook/report.html) | 40 | 39 | 5 | 4 | 2 | 10 |"
        in text
    )
    assert "| front door killed | flashgrid | [pass](kill-flashgrid/report.html) |" in text
    assert "| accepting | 9,000 | 100 | 2,000 | 20.0 |" in text
    assert "Flashgrid passes 1 of 1 cases" in (tmp_path / "worth.html").read_text()


@pytest.mark.slow
def test_its_page_and_reports_are_drawn_again_from_the_records(tmp_path: Path) -> None:
    worth = Worth(command="flashsim worth", rate_rps=200)
    names = ("textbook", "flashgrid")
    runs = {name: make_outcome(make_run(tmp_path / name), name, name, 1, 1) for name in names}
    worth.cases.append(Case(name=NO_FAULT, **runs))
    (tmp_path / "worth.json").write_bytes(msgspec.json.encode(worth))
    done = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert (done.exit_code, done.stdout) == (0, f"report: {tmp_path / 'worth.html'}\n")
    links = re.findall('href="([^"]+)"', (tmp_path / "worth.html").read_text())
    assert links == ["textbook/report.html", "flashgrid/report.html"]
    assert all(">Pass</h1>" in (tmp_path / link).read_text() for link in links)


def read_reference() -> Worth:
    return msgspec.json.decode((REFERENCE / "worth.json").read_bytes(), type=Worth)


@pytest.mark.slow
def test_the_committed_page_says_what_the_committed_runs_gave() -> None:
    for case in read_reference().cases:
        for said in (case.textbook, case.flashgrid):
            judged = judge_run(REFERENCE / said.folder)
            assert make_outcome(judged, said.engine, said.folder, said.seed, said.tries) == said
            assert find_contradictions(REFERENCE / said.folder, judged) == []


def test_the_readme_shows_the_committed_page() -> None:
    text = (ROOT / "README.md").read_text()
    worth = read_reference()
    for case in worth.cases:
        for each in (case.textbook, case.flashgrid):
            row = f"| {case.name} | {each.engine} | {each.verdict} | {each.lost:,} | {each.oversold:,} |"
            row += f" {each.stranded:,} | {each.again:,} |"
            assert row in text
    for rate in worth.rates:
        row = f"| {rate.state} | {rate.textbook_rps:,.0f} | {rate.flashgrid_rps:,.0f} |"
        assert row in text
