"""A history comes back from its file as it was."""

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulation.errors import RunError
from simulation.model.history import DTYPES, KINDS, fill_in, make_history, take_buys, take_reads
from simulation.model.outcome import ENDS, OUTCOMES, RESULTS, SIGHTS
from simulation.record.history import SCHEMA, read_history, write_history

times = st.just(-1) | st.integers(0, 2**62)
rows = st.fixed_dictionaries(
    {
        "driver": st.integers(0, 64),
        "user_id": st.integers(1, 2**63 - 1),
        "product_id": st.integers(1, 2**63 - 1),
        "key": st.none() | st.text(st.characters(codec="ascii"), max_size=8),
        "intended_ns": st.integers(0, 2**62),
        "sent_ns": times,
        "done_ns": times,
        "status": st.integers(0, 599),
        "outcome": st.sampled_from([*OUTCOMES, *SIGHTS]),
        "result": st.sampled_from(RESULTS),
        "order_id": st.none() | st.uuids().map(str),
        "attempt": st.integers(0, 1_000),
        "first_op": st.integers(0, 2**62),
        "kind": st.sampled_from(KINDS),
        "order_status": st.none() | st.sampled_from(["PENDING", "CONFIRMED"]),
        **dict.fromkeys(("initial", "remaining", "sold"), st.none() | st.integers(-(10**15), 10**15)),
        "end": st.sampled_from(ENDS),
        "unsure_ns": st.integers(0, 2**62),
    }
)


def history_of(found: list[dict[str, Any]]) -> pd.DataFrame:
    names = [name for name in DTYPES if name in (found or [DTYPES])[0] and name != "op"]
    return make_history({"op": range(len(found))} | {name: [row[name] for row in found] for name in names})


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows, max_size=5))
def test_it_comes_back_as_it_was(tmp_path: Path, found: list[dict[str, Any]]) -> None:
    history = history_of(found)
    wanted = [str(pd.api.types.pandas_dtype(dtype)) for dtype in DTYPES.values()]
    assert [str(dtype) for dtype in history.dtypes] == wanted
    write_history(history, tmp_path / "history.parquet")
    assert pq.read_schema(tmp_path / "history.parquet").remove_metadata() == SCHEMA
    pd.testing.assert_frame_equal(read_history(tmp_path / "history.parquet"), history)


def test_nanoseconds_are_not_rounded(tmp_path: Path) -> None:
    odd = 2**53 + 1
    row: dict[str, Any] = {
        "driver": 0,
        "user_id": 1,
        "product_id": 1,
        "key": None,
        "status": 0,
        "order_id": None,
        "attempt": 0,
        "first_op": odd,
        "end": "timeout",
        "unsure_ns": odd,
    }
    row |= {"intended_ns": odd, "sent_ns": odd, "done_ns": -1, "outcome": "UNKNOWN", "result": "unknown"}
    write_history(history_of([row]), tmp_path / "history.parquet")
    history = read_history(tmp_path / "history.parquet")
    assert history["sent_ns"].iloc[0] == odd
    assert history["first_op"].iloc[0] == history["unsure_ns"].iloc[0] == odd
    assert history["done_ns"].isna().all()


def two_requests(**columns: Any) -> dict[str, Any]:
    found: dict[str, Any] = {name: [1, 1] for name in DTYPES} | {"outcome": ["UNKNOWN"] * 2}
    found |= {"result": ["unknown"] * 2, "key": [None] * 2, "order_id": [None] * 2}
    return found | fill_in({"op": [0, 1]}) | {"op": [0, 1]} | columns


def test_it_is_sorted_by_op() -> None:
    columns = two_requests(op=[1, 0], user_id=[10, 20])
    assert make_history(columns)["user_id"].tolist() == [20, 10]


@pytest.mark.parametrize(
    "lacking",
    [
        ["end", "unsure_ns"],
        ["kind", "order_status", "initial", "remaining", "sold"],
        [*fill_in({"op": [0, 1]})],
    ],
)
def test_in_an_older_file_every_request_is_a_purchase_and_a_first_try(
    tmp_path: Path, lacking: list[str]
) -> None:
    history = make_history(two_requests())
    write_history(history, tmp_path / "history.parquet")
    table = pq.read_table(tmp_path / "history.parquet").drop_columns(lacking)
    pq.write_table(table, tmp_path / "history.parquet")
    pd.testing.assert_frame_equal(read_history(tmp_path / "history.parquet"), history)


def test_purchases_and_reads_are_told_apart() -> None:
    history = make_history(two_requests(kind=["buy", "stock"]))
    assert (take_buys(history)["op"].tolist(), take_reads(history)["op"].tolist()) == ([0], [1])


def test_in_a_file_from_before_ends_were_told_they_are_derived_as_far_as_can_be(tmp_path: Path) -> None:
    columns = {
        "op": range(4), "driver": 0, "user_id": 1, "product_id": 1, "key": None, "intended_ns": 0,
        "sent_ns": [5, 5, -1, -1], "done_ns": [9, -1, 9, -1], "status": [429, 0, 0, 0],
        "outcome": ["SOLD_OUT", "UNKNOWN", "UNAVAILABLE", "UNAVAILABLE"],
        "result": ["fail", "unknown", "fail", "fail"], "order_id": None,
    }  # fmt: skip
    write_history(make_history(columns), tmp_path / "new.parquet")
    old = pq.read_table(tmp_path / "new.parquet").drop_columns(["end", "unsure_ns"])
    pq.write_table(old, tmp_path / "old.parquet")
    history = read_history(tmp_path / "old.parquet")
    assert history["end"].astype("object").where(history["end"].notna(), None).tolist() == [
        "answered", None, "refused", "never sent",
    ]  # fmt: skip
    assert history["unsure_ns"].tolist() == [0] * 4


def test_a_file_that_is_no_history_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "history.parquet"
    with pytest.raises(RunError, match="is not a history"):
        read_history(path)
    path.write_bytes(b"not parquet")
    with pytest.raises(RunError, match="is not a history"):
        read_history(path)
    pd.DataFrame({"op": [1]}).to_parquet(path)
    with pytest.raises(RunError, match="is not a history"):
        read_history(path)
