"""Machines that are held to a share of a core: they are throttled, measured, and let go."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.local.process import Machine, ProcessId
from engine.local.redis import launch_server
from engine.tests.services import skip_or_fail
from engine.tests.test_server import eventually
from simulation.bench.options import Options, Subject
from simulation.bench.page import read_bench
from simulation.bench.results import ScaledRound
from simulation.bench.run import run_bench
from simulation.bench.samples import Spread
from simulation.bench.scaling import control_groups
from simulation.bench.scaling.control_groups import PERIOD_US, PREFIX, find_folder, throttle
from simulation.bench.scaling.copies import _run_cluster, compare
from simulation.bench.scaling.measure import MOST_CORES, find_doubt, make_points
from simulation.bench.scaling.sites import serve_doors, serve_shards
from simulation.errors import BenchError
from simulation.target.services import Services
from simulation.tests.bench.installed import needs_wrk

pytestmark = pytest.mark.slow

FOREVER = (sys.executable, "-c", "while True: pass")
HELD = """
import asyncio, subprocess, sys
from simulation.bench.scaling.control_groups import throttle
from simulation.signals import run_until_signal

async def hold():
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with throttle(0.05, {"busy": [busy.pid]}):
            print("held", flush=True)
            await asyncio.sleep(600)
    finally:
        busy.kill()

run_until_signal(hold())
"""


@pytest.fixture
def groups() -> Path:
    """The folder of the real groups."""
    try:
        return find_folder()
    except BenchError as error:
        skip_or_fail(str(error))
        raise


def list_groups(above: Path, pid: int | None = None) -> list[Path]:
    return sorted(above.glob(f"{PREFIX}{pid or os.getpid()}-*"))


@contextmanager
def busy() -> Iterator[int]:
    with subprocess.Popen(FOREVER) as process:
        try:
            yield process.pid
        finally:
            process.kill()


async def test_a_process_is_held_to_its_share_and_let_go(groups: Path) -> None:
    with busy() as pid:
        with throttle(0.05, {"busy": [pid]}) as found:
            [folder] = list_groups(groups)
            assert (folder / "cgroup.procs").read_text().split() == [str(pid)]
            await eventually(lambda: found["busy"].read_periods().throttled > 2)
        assert list_groups(groups) == []
        assert str(pid) in (groups / "cgroup.procs").read_text().split(), "it runs on as before"


def test_groups_are_removed_whatever_happens(groups: Path) -> None:
    with busy() as pid:
        with (
            pytest.raises(BenchError, match="No such process"),
            throttle(0.05, {"a": [pid], "b": [2**22 + 1]}),
        ):
            pass
        assert list_groups(groups) == []

        def interrupt() -> None:
            with throttle(0.05, {"a": [pid]}):
                assert list_groups(groups)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupt()
        assert list_groups(groups) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_groups_are_removed_after_an_interrupt(groups: Path, number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HELD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as held:
        assert held.stdout
        assert held.stdout.readline() == b"held\n"
        assert len(list_groups(groups, held.pid)) == 1
        held.send_signal(number)
        held.wait()
    assert list_groups(groups, held.pid) == []


def test_what_a_killed_one_left_is_removed_by_the_next(groups: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HELD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as held:
        assert held.stdout
        held.stdout.readline()
        [left] = list_groups(groups, held.pid)
        [orphan] = (left / "cgroup.procs").read_text().split()
        held.kill()
        held.wait()
    try:
        assert left.exists()
        with throttle(0.05, {}):
            assert not left.exists()
    finally:
        os.kill(int(orphan), signal.SIGKILL)


def test_the_folder_of_the_processor_is_found_by_its_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts, folder = tmp_path / "mounts", tmp_path / "groups"
    folder.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    mounts.write_text(
        f"cgroup {tmp_path}/sets cgroup rw,cpuset 0 0\ncgroup2 {folder} cgroup2 rw 0 0\n"
        f"cgroup {tmp_path} cgroup rw,cpu,cpuacct 0 0\n"
    )
    assert find_folder(mounts) == tmp_path
    (folder / "cgroup.controllers").write_text("cpuset cpu io\n")
    assert find_folder(mounts) == folder
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    with pytest.raises(BenchError, match="need root"):
        find_folder(mounts)
    mounts.write_text(f"proc {tmp_path} proc rw 0 0\n")
    with pytest.raises(BenchError, match="not mounted here"):
        find_folder(mounts)


def test_a_group_of_version_2_has_its_share_in_one_file(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu\n")
    group = control_groups._make(tmp_path, 0.05)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu"
    assert (group.folder / "cpu.max").read_text() == f"{PERIOD_US // 20} {PERIOD_US}"


async def test_without_root_growth_is_skipped_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    told: list[str] = []
    options = Options(subjects=frozenset({Subject.GROWTH}))
    await run_bench(options, tmp_path / "run", told.append, "flashsim bench --only growth")
    assert "which need root and /sys/fs/cgroup" in (tmp_path / "run" / "bench.md").read_text()
    assert "; skipped: growth" in (tmp_path / "run" / "bench.md").read_text()
    assert len(told) == 1


@needs_wrk
async def test_front_doors_are_loaded_and_throttled_one_by_one(groups: Path, services: Services) -> None:
    async with serve_doors(services, 2) as site:
        assert len(list_groups(groups)) == 2
        await site.prepare("accepting", 1, 32)
        accepted = await site.measure(1, 32, 1)
        await site.prepare("sold out", 2, 32)
        refused, idle = [await site.measure(doors, 32, 1) for doors in (2, 0)]
    assert list_groups(groups) == []
    for found in (accepted, refused, idle):
        assert found.fault == ""
        assert {"front-door 1", "front-door 2", "redis", "relay", "fulfilment"} <= found.cpu_s.keys()
    assert (accepted.refused, refused.accepted) == (0, 0)
    # wrk leaves out what was under way at its end.
    assert accepted.requests <= accepted.accepted <= accepted.requests + 32
    assert refused.requests <= refused.refused <= refused.requests + 64
    assert idle.requests == 0
    assert min(accepted.throttled, refused.throttled) > 0
    assert idle.throttled == 0


@needs_wrk
async def test_shards_share_the_purchases_and_are_throttled(groups: Path, services: Services) -> None:
    async with serve_shards(services, 2) as site:
        assert len(list_groups(groups)) == 2
        site.hold_to(0.01)
        await site.prepare("accepting within a limit", 1, 512)
        accepted = await site.measure(1, 512, 1)
        await site.prepare("limit reached", 1, 512)
        refused = await site.measure(1, 512, 1)
    assert list_groups(groups) == []
    for found in (accepted, refused):
        assert found.fault == ""
        assert {"front-door 1", "redis 1", "redis 2"} <= found.cpu_s.keys()
        assert found.throttled > 0
        spent_s = [found.cpu_s[f"redis {number}"] for number in (1, 2)]
        assert min(spent_s) > max(spent_s) / 4, "half of the purchases each"


@needs_wrk
async def test_the_price_of_copies_is_taken_in_turn_from_one_cluster(tmp_path: Path) -> None:
    told: list[str] = []
    options = Options(rounds=1, seconds=1, subjects=frozenset({Subject.COPIES}))
    await run_bench(options, tmp_path / "run", told.append, "flashsim bench --only copies")
    rows = read_bench(tmp_path / "run").copies
    assert [(row.what, row.waiting) for row in rows] == [
        ("lane", 64), ("lane", 256), ("accept path", 64), ("accept path", 256),
    ]  # fmt: skip
    assert all(min(row.one.median, row.two.median) > 0 for row in rows)
    order = [line.partition(", ")[2].partition(":")[0] for line in told if line.startswith("round ")]
    assert order[:2] == ["lane, 64 at a time, copies 1", "lane, 64 at a time, copies 2"]
    assert len(order) == 8
    assert "| accept path | 256 |" in (tmp_path / "run" / "bench.md").read_text()


async def test_nodes_that_become_no_cluster_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def launch_alone(folder: Path, port: int, machine: Machine) -> ProcessId:
        """A server that knows nothing of clusters."""
        (place := folder / f"node-{port}").mkdir()
        return launch_server(place, port, {}, machine)

    monkeypatch.setattr("engine.local.cluster.redis.launch_node", launch_alone)
    monkeypatch.setattr("simulation.bench.scaling.copies.START_S", 2)
    with pytest.raises(BenchError, match="the Redis Cluster does not start: "):
        async with asyncio.timeout(10), _run_cluster(tmp_path):
            pass


def test_what_two_copies_cost_is_taken_round_by_round() -> None:
    found = compare("lane", 64, Spread.of([100, 80, 60, 50, 40, 20]), Spread.of([50, 60, 30, 25, 20, 10]))
    assert found.ratio.values == [0.5, 0.75, 0.5, 0.5, 0.5, 0.5]
    assert (found.ratio.median, found.ratio.interval()) == (0.5, (0.5, 0.75))


def scaled(rps: float, **changes: Any) -> ScaledRound:
    found = {
        "requests": 100, "rps": rps, "refused": 0, "socket_errors": 0, "p50_ms": 1.0, "p99_ms": 2.0,
        "cores": 1.0, "throttled": 1.0, "seconds": 1.0,
    }  # fmt: skip
    return ScaledRound(**found | changes)


def test_efficiency_is_taken_round_by_round_against_linear_growth() -> None:
    one, two, eight = make_points(
        [1, 2, 8], [[scaled(100), scaled(80)], [scaled(200), scaled(120)], [scaled(400), scaled(640)]]
    )
    assert one.efficiency.values == [1, 1]
    assert two.efficiency.values == [1, 0.75]
    assert eight.efficiency.values == [0.5, 1]
    assert [point.doubt for point in (one, two, eight)] == ["", "", ""]
    two, four = make_points([2, 4], [[scaled(100)], [scaled(150)]])
    assert (two.efficiency.median, four.efficiency.median) == (1, 0.75)


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({}, ""),
        ({"cores": MOST_CORES - 0.01}, ""),
        ({"cores": MOST_CORES}, "used 1.50 cores"),
        ({"throttled": 0.5}, "used its share in 50% of the time"),
        ({"fault": "1 of 9 were refused", "cores": 2.0}, "1 of 9 were refused"),
    ],
)
def test_a_round_counts_if_machines_were_the_bound_and_nothing_else(
    changes: dict[str, Any], doubt: str
) -> None:
    found = scaled(100, **changes)
    assert find_doubt(found) == doubt or (doubt and doubt in find_doubt(found))
    [point] = make_points([1], [[scaled(100), found]])
    assert bool(point.doubt) == bool(doubt)
    assert not doubt or point.doubt.startswith("1 of 2 rounds: ")
