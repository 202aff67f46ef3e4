"""Nobody can change the record of a run, or what was made of it, without `flashsim verify` telling where."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner

from simulation.cli.commands import main
from simulation.model.history import DTYPES
from simulation.record.history import read_history, write_history
from simulation.record.manifest import MANIFEST, list_record, seal
from simulation.record.state import read_state, write_state
from simulation.tests.run_folders import make_run
from simulation.verdict import judge_run

pytestmark = pytest.mark.slow

Rows = Callable[[pd.DataFrame], pd.DataFrame]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sealed")
    make_run(folder, stock=500)
    (folder / "summary.json").write_text(json.dumps(judge_run(folder)))
    seal(folder, [*list_record(folder), "summary.json"])
    return folder


@pytest.fixture
def run_folder(sealed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sealed, tmp_path / "run")


def verify(folder: Path) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["verify", str(folder)])
    return done.exit_code, done.output


def change_orders(folder: Path, change: Rows) -> None:
    state = read_state(folder)
    assert state.orders is not None
    write_state(replace(state, orders=change(state.orders)), folder)


def with_cell(frame: pd.DataFrame, row: int, column: str, value: Any) -> pd.DataFrame:
    frame = frame.copy()
    frame.loc[row, column] = value
    return frame


def add_order(orders: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([orders, orders.iloc[[7]].assign(order_id="forged", user_id=7)], ignore_index=True)


def id_of(folder: Path, row: int) -> str:
    orders = read_state(folder).orders
    assert orders is not None
    return str(orders.loc[row, "order_id"])


def test_a_run_as_it_was_written_is_verified(run_folder: Path) -> None:
    code, said = verify(run_folder)
    assert (code, "CHANGED" in said) == (0, False)
    assert "held           record is untouched: 7 files are as they were written" in said


@pytest.mark.parametrize(
    ("change", "broken", "place"),
    [
        (lambda orders: orders.drop(index=7).reset_index(drop=True), "accepted is settled", "order {id}"),
        (lambda orders: with_cell(orders, 7, "status", "FAILED"), "no oversell", "sale 1"),
        (lambda orders: with_cell(orders, 7, "user_id", 1), "accepted is settled", "order {id}"),
        (lambda orders: with_cell(orders, 7, "quantity", 2), "units are conserved", "sale 1"),
        (add_order, "no phantom orders", "order forged"),
    ],
    ids=["order removed", "status flipped", "buyer changed", "units changed", "order added"],
)
def test_changed_orders_are_told(run_folder: Path, change: Rows, broken: str, place: str) -> None:
    place = place.format(id=id_of(run_folder, 7))
    change_orders(run_folder, change)
    code, said = verify(run_folder)
    assert code == 1
    assert "BROKEN         record is untouched: final/orders.parquet was changed" in said
    # Also one who forges the manifest is caught: the files contradict each other.
    [line] = [line for line in said.splitlines() if line.startswith(f"BROKEN         {broken}:")]
    assert f"({place})" in line


def test_an_accepted_answer_turned_into_sold_out_is_told(run_folder: Path) -> None:
    history = read_history(run_folder / "history.parquet")
    row = int(history.index[history["outcome"] == "ACCEPTED"][7])
    op, order_id = history.loc[row, ["op", "order_id"]].astype(str)
    words = history.astype({"outcome": "str", "result": "str"})
    words.loc[row, ["status", "outcome", "result", "order_id"]] = [429, "SOLD_OUT", "fail", None]
    history = words.astype(DTYPES)
    write_history(history, run_folder / "history.parquet")
    code, said = verify(run_folder)
    assert code == 1
    assert "BROKEN         record is untouched: history.parquet was changed" in said
    assert f"explained by nothing (order {order_id})" in said
    assert f"came while units were left (op {op})" in said


def test_a_unit_too_many_in_the_sale_is_told(run_folder: Path) -> None:
    state = read_state(run_folder)
    assert state.sales is not None
    write_state(replace(state, sales=state.sales.assign(sold=501)), run_folder)
    code, said = verify(run_folder)
    assert code == 1
    assert "1 units too many (sale 1)" in said
    assert "final/sales.parquet was changed" in said


def test_a_file_that_was_taken_away_or_added_is_told(run_folder: Path) -> None:
    (run_folder / "timeline.csv").unlink()
    (run_folder / "faults.json").write_text("[]")
    code, said = verify(run_folder)
    assert code == 1
    assert "timeline.csv is missing, faults.json was added" in said


@pytest.mark.parametrize("forged", [False, True], ids=["plain", "manifest forged"])
def test_an_edited_summary_is_told(run_folder: Path, forged: bool) -> None:
    summary = json.loads((run_folder / "summary.json").read_text())
    real = summary["latency_ms"]["accepted"]["response"]["p99"]
    summary["latency_ms"]["accepted"]["response"]["p99"] = 1.5
    summary["checks"][0]["violations"] = 3
    summary["verdict"] = "unknown"
    (run_folder / "summary.json").write_text(json.dumps(summary))
    if forged:
        seal(run_folder, ["summary.json"])
    code, said = verify(run_folder)
    assert code == 1
    assert ("CHANGED: summary.json was changed" in said) is not forged
    assert f"summary.json says latency_ms.accepted.response.p99 1.5, the record {real}" in said
    assert "summary.json says checks.terms are as asked.violations 3, the record 0" in said
    assert "summary.json says verdict 'unknown', the record 'pass'" in said


def test_a_run_without_a_manifest_is_judged_and_says_so(run_folder: Path) -> None:
    (run_folder / MANIFEST).unlink()
    code, said = verify(run_folder)
    assert (code, "there is no manifest.json" in said, "record is untouched" in said) == (0, True, False)


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [
        ("timeline.csv", "t_s", None, "its timeline.csv has nan as t_s in row 1"),
        ("timeline.csv", "t_s", "inf", "its timeline.csv has inf as t_s in row 1"),
        ("timeline.csv", "t_s", "1e300", "its timeline.csv has 1e+300 as t_s in row 1"),
        ("timeline.csv", "ledger_confirmed", "many", "can't read its timeline.csv: "),
        ("timeline.csv", "ledger_confirmed", "inf", "its timeline.csv has inf as ledger_confirmed in row 1"),
        ("final/orders.parquet", "order_id", None, "orders.parquet has an order_id that is no text"),
        ("final/orders.parquet", "order_id", "", "orders.parquet has no column order_id"),
        ("final/orders.parquet", "sale_id", "", "orders.parquet has no column sale_id"),
    ],
)
def test_a_table_that_can_not_be_judged_is_an_error(
    run_folder: Path, name: str, column: str, value: Any, said: str
) -> None:
    """An empty value stands for a column that is missing."""

    def change(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.drop(columns=column) if value == "" else with_cell(rows, 1, column, value)

    file = run_folder / name
    if file.suffix == ".csv":
        change(pd.read_csv(file).astype("object")).to_csv(file, index=False)
    else:
        change(pd.read_parquet(file)).to_parquet(file, index=False)
    code, output = verify(run_folder)
    assert code == 2
    assert said in output
    assert len(output.strip().splitlines()) == 1


def test_a_manifest_that_is_none_is_an_error(run_folder: Path) -> None:
    (run_folder / MANIFEST).write_text("[")
    code, said = verify(run_folder)
    assert (code, "can't read its manifest.json" in said) == (2, True)
