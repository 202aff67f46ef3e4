"""Exports say what the summary says, in forms that other programs read."""

import csv
import json
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as Xml

import jsonschema
import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from hdrh.histogram import HdrHistogram

from simulation.cli.commands import main
from simulation.record.summary import check_summary
from simulation.report.exports.junit import write_junit
from simulation.report.exports.schemas import FILES, write_schema
from simulation.scenario.loading import list_scenarios, load_scenario
from simulation.tests.run_folders import lose_orders, make_run
from simulation.verdict import load_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("export")
    make_run(place, spoil=lose_orders)
    return place


def export(folder: Path, form: str, *options: str) -> str:
    result = CliRunner().invoke(main, ["export", str(folder), "--format", form, *options])
    assert result.exit_code == 0, result.stderr
    return result.stdout


def test_junit_has_a_case_for_each_rule_and_threshold(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    [suite] = Xml.fromstring(export(folder, "junit"))
    cases = suite.findall("testcase")
    checks = summary["checks"] + summary["thresholds"]
    assert [case.get("name") for case in cases] == [check["name"] for check in checks]
    states = {"broken": "failure", "not judged": "error", "not exercised": "skipped", "held": "system-out"}
    assert [[each.tag for each in case] for case in cases] == [[states[check["state"]]] for check in checks]
    failed = suite.find("testcase[@name='accepted is settled']/failure")
    assert failed is not None
    assert "3 are not in the ledger" in failed.get("message", "")
    assert failed.text is not None
    assert "order 00000000-0000-7000-8000-000000000000" in failed.text
    for number, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert suite.get(number) == str(len(suite.findall(f"testcase/{tag}")))
    assert suite.get("tests") == str(len(checks))
    run = load_run(folder)
    run.summary["checks"][0]["detail"] = 'order "\x00\x1b\ufffe\uffff\ud800<é🛒>&]]>"'
    [suite] = Xml.fromstring(write_junit([run]))
    said = suite.findtext("testcase/system-out")
    assert said == 'order "?????<é🛒>&]]>"'


@pytest.mark.parametrize("times", ["accepted.response", "sold_out.service", "all.response"])
def test_hgrm_is_read_back_with_the_same_percentiles(folder: Path, times: str) -> None:
    outcome, _, kind = times.partition(".")
    metrics = load_run(folder).metrics
    assert metrics is not None
    _, took_ms = metrics.sample_times(outcome, kind)
    # HdrHistogram's own reading of its format: values, and how many requests took at most so long.
    again, before = HdrHistogram(1, 3_600_000_000, 3), 0
    lines = [line.split() for line in export(folder, "hgrm", "--times", times).splitlines()[2:]]
    for value, _, total, *_ in (line for line in lines if not line[0].startswith("#")):
        again.record_value(round(float(value) * 1000), int(total) - before)
        before = int(total)
    assert before == len(took_ms)
    direct = HdrHistogram(1, 3_600_000_000, 3)
    for value in took_ms:
        direct.record_value(round(value * 1000))
    for percentile in (50, 75, 90, 99, 99.9, 100):
        found, expected = (each.get_value_at_percentile(percentile) for each in (again, direct))
        # The lines lie a hundredth of what is left above them apart; values have three digits.
        assert found == pytest.approx(expected, rel=0.005), percentile
        assert found == pytest.approx(1000 * np.percentile(took_ms, percentile), rel=0.02), percentile


def test_hgrm_is_what_hdrhistogram_itself_writes_of_the_same_times(folder: Path) -> None:
    metrics = load_run(folder).metrics
    assert metrics is not None
    direct = HdrHistogram(1, 3_600_000_000, 3)
    for value in metrics.sample_times("accepted", "response")[1]:
        direct.record_value(round(value * 1000))
    theirs = BytesIO()
    direct.output_percentile_distribution(theirs, 1000, 100)
    ours = export(folder, "hgrm").splitlines()
    lines = zip(ours, theirs.getvalue().decode().splitlines(), strict=True)
    [(mine, other)] = [pair for pair in lines if pair[0] != pair[1]]
    # The package leaves the deviation in the unit of the values; HdrHistogram divides it as the mean.
    start, _, deviation = other.partition("StdDeviation   = ")
    assert mine == f"{start}StdDeviation   = {float(deviation.strip(' ]')) / 1000:12.3f}]"
    assert mine.startswith(f"#[Mean    = {direct.get_mean_value() / 1000:12.3f}, ")


def test_hgrm_of_nothing_is_an_error(folder: Path) -> None:
    wrong = {"rejected.response": "there are no times", "accepted.count": "is not OUTCOME.response"}
    for times, said in wrong.items():
        result = CliRunner().invoke(main, ["export", str(folder), "--format", "hgrm", "--times", times])
        assert (result.exit_code, said in result.stderr) == (2, True)


def test_csv_has_a_line_for_each_request(folder: Path, tmp_path: Path) -> None:
    export(folder, "csv", "--out", str(tmp_path / "history.csv"))
    with (tmp_path / "history.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    summary = json.loads((folder / "summary.json").read_text())
    assert len(rows) == summary["load"]["requests"]
    assert sum(row["outcome"] == "ACCEPTED" for row in rows) == summary["outcomes"]["accepted"]
    assert {row["done_ns"] for row in rows if row["outcome"] == "UNKNOWN"} == {""}


def test_json_is_the_summary(folder: Path) -> None:
    assert json.loads(export(folder, "json")) == json.loads((folder / "summary.json").read_text())
    verified = CliRunner().invoke(main, ["verify", str(folder), "--json"])
    assert verified.exit_code == 1
    assert json.loads(verified.stdout)["summary"]["verdict"] == "fail"


def test_a_comparison_is_told_as_json(folder: Path, tmp_path: Path) -> None:
    options = ["--json", "--fail-if", "oversold > 0", "--out", f"{tmp_path}/c.html"]
    done = CliRunner().invoke(main, ["compare", str(folder), str(folder), *options])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["fail_if"]) == (0, {"oversold > 0": False})
    [row] = [row for row in told["rows"] if row["metric"] == "accepted.response.p99"]
    assert row["values"][0] == row["values"][1]
    nowhere = CliRunner().invoke(main, ["compare", str(folder), str(folder), "--out", "/proc/c.html"])
    assert (nowhere.exit_code, "/proc/c.html: " in nowhere.stderr) == (2, True)


@pytest.mark.parametrize("name", FILES)
def test_the_schemas_in_the_repository_are_those_of_the_types(name: str) -> None:
    assert FILES[name].read_bytes() == write_schema(name), f"flashsim schema {name} > {FILES[name]}"


def test_a_summary_has_the_form_of_its_schema(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    check_summary(summary)
    schema = json.loads(write_schema("summary"))
    jsonschema.validate(summary, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(summary | {"verdict": "maybe"}, schema)
    with pytest.raises(msgspec.ValidationError):
        check_summary(summary | {"new": 1})


def test_every_scenario_of_the_library_has_the_form_of_its_schema() -> None:
    schema = json.loads(write_schema("scenario"))
    for name in list_scenarios():
        jsonschema.validate(json.loads(msgspec.json.encode(load_scenario(name))), schema)
