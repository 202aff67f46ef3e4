"""The mix of purchases and looks: what is planned, who runs before whom, and which rounds count."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulation.bench.measures import mix
from simulation.bench.measures.disk import time_writes
from simulation.bench.measures.mix import AS_THEY_ARE, REAL_TIME, Rates, measure_mix, plan_mix
from simulation.bench.rounds import Rounds
from simulation.bench.subjects import FRONT_DOOR, Engine
from simulation.model.history import BUY, STOCK, make_history

pytestmark = pytest.mark.slow

RATES = Rates(buys=100, looks=500)
SCHEDULED = os.SCHED_RR | os.SCHED_RESET_ON_FORK


def may_run_first() -> bool:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        try:
            os.sched_setscheduler(child.pid, SCHEDULED, os.sched_param(1))
        except PermissionError:
            return False
        finally:
            child.kill()
    return True


def count(accepting: bool) -> dict[int, int]:
    plan = plan_mix(RATES, 20, accepting)
    assert (np.diff(plan.intended_ns) >= 0).all()
    kinds, sizes = np.unique(plan.kind, return_counts=True)
    return dict(zip(kinds.tolist(), sizes.tolist(), strict=True))


def test_each_buyer_looks_at_the_order_and_the_others_at_the_stock() -> None:
    sold_out, accepting = count(False), count(True)
    assert sold_out[BUY] == accepting[BUY] == pytest.approx(2_000, rel=0.1)
    assert sold_out[STOCK] == pytest.approx(10_000, rel=0.1)
    assert accepting[STOCK] == pytest.approx(8_000, rel=0.1)
    assert plan_mix(RATES, 1, False).reads is None
    plan = plan_mix(RATES, 1, True)
    assert plan.reads
    assert plan.reads.most == 1
    assert plan.poll_ns is not None
    assert ((plan.poll_ns > 0) == (plan.kind == BUY)).all()


@pytest.mark.skipif(not may_run_first(), reason="no real-time priority here")
async def test_door_driver_and_redis_run_first_as_long_as_they_are_measured(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = engine.gate_pids()
    assert set(pids) == {"redis", FRONT_DOOR}
    given: list[tuple[str, int, int]] = []
    set_scheduler = os.sched_setscheduler

    def follow(pid: int, policy: int, param: Any) -> None:
        names = {pid: name for name, pid in pids.items()}
        given.append((names.get(pid, "driver"), policy, param.sched_priority))
        set_scheduler(pid, policy, param)

    monkeypatch.setattr(os, "sched_setscheduler", follow)
    notes: list[str] = []
    mixed, disk_ms, costs = await measure_mix(engine, RATES, Rounds(1, 1, lambda _: None), notes.append)
    assert notes == []
    first = {(name, priority) for name, policy, priority in given if policy == SCHEDULED}
    assert first == set(mix.PRIORITIES.items())
    assert {os.sched_getscheduler(pid) for pid in pids.values()} == {os.SCHED_OTHER}
    rows = [(row.state, row.priorities, row.kind) for row in mixed]
    assert rows == [
        (state, priorities, kind)
        for state, kinds in {"sold out": ["buy", "stock"], "accepting": ["buy", "stock", "order"]}.items()
        for priorities in (AS_THEY_ARE, REAL_TIME)
        for kind in kinds
    ]
    assert [row.lost for row in mixed] == [0] * len(mixed)
    assert {row.offered_rps for row in mixed if row.kind == "stock"} == {400, 500}
    assert [row.over_disk_ms is None for row in mixed if row.kind == "buy"][:2] == [True, True]
    assert disk_ms
    assert len(disk_ms.values) == 2, "once beside each load that accepts"
    by_subject = {cost.subject: cost.us for cost in costs}
    assert by_subject["mix, accepting, real-time"]["fulfilment"].median > 0
    assert all(us["load"].median > 0 for us in by_subject.values())


async def test_where_real_time_is_not_allowed_the_mix_is_measured_without(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(mix, "_set_priority", refuse)
    notes: list[str] = []
    mixed, _, _ = await measure_mix(engine, RATES, Rounds(1, 1, lambda _: None), notes.append)
    assert {row.priorities for row in mixed} == {AS_THEY_ARE}
    [note] = notes
    assert "not allowed here" in note


def found(waited_ms: float, stolen: float, disk_p99_ms: float | None) -> mix._Round:
    at_ns = np.arange(100) * 10_000_000
    columns: dict[str, Any] = {
        "op": range(100), "driver": 0, "user_id": 1, "product_id": 1, "key": None, "intended_ns": at_ns,
        "sent_ns": at_ns, "done_ns": at_ns + round(waited_ms * 1e6), "status": 200, "outcome": "ACCEPTED",
        "result": "ok", "order_id": None, "attempt": 0, "first_op": range(100), "order_status": None,
        "kind": pd.Categorical(["buy", "stock", "order", "buy"] * 25, categories=["buy", "stock", "order"]),
        "initial": None, "remaining": None, "sold": None, "end": None, "unsure_ns": 0,
    }  # fmt: skip
    machine = {"stolen_percent": stolen, "cpu_pressure_percent": 1.0, "io_pressure_percent": 1.0}
    return mix._Round(make_history(columns), machine, {}, disk_p99_ms)


def test_only_calm_rounds_tell_of_the_engine_and_the_disk_is_taken_off() -> None:
    results = [found(9, 0.5, 4), found(80, 2.5, 4), found(11, 1.9, 8)]
    buy, stock, order = mix._describe("accepting", REAL_TIME, RATES, results)
    assert buy.ms["p99"].values == pytest.approx([9, 80, 11])
    assert buy.calm_p99_ms
    assert buy.calm_p99_ms.values == pytest.approx([9, 11])
    assert buy.over_disk_ms
    assert buy.over_disk_ms.values == pytest.approx([5, 3])
    assert stock.over_disk_ms is order.over_disk_ms is None, "who looks does not wait for the disk"
    assert buy.lost == 0
    assert stock.lost == 75, "a look is shown, not accepted"
    [disturbed, *_] = mix._describe("accepting", REAL_TIME, RATES, results[1:2])
    assert disturbed.calm_p99_ms is None


def test_the_machine_is_shown_as_it_was_on_average_over_the_load() -> None:
    watch = mix.Watch(3, False)
    assert set(watch.machine().values()) == {0.0}, "nothing could be read"
    watch._spans = [
        (2.0, {"stolen_percent": 1.0, "io_pressure_percent": 105.0}),
        (1.0, {"stolen_percent": 4.0}),
    ]
    machine = watch.machine()
    assert machine == pytest.approx(
        {"stolen_percent": 2.0, "cpu_pressure_percent": 0.0, "io_pressure_percent": 70.0}
    )
    watch._spans = [(1.0, {"cpu_pressure_percent": 104.0})]
    assert watch.machine()["cpu_pressure_percent"] == 100.0


def test_two_other_logs_are_written_beside_the_one_that_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    assert 0 <= time_writes(0.05)[0] < 50
    assert len(set(synced)) == 1
    synced.clear()
    time_writes(0.2, 2)
    assert len(set(synced)) == 3
