"""Hostile requests come from a seed and leave the judged sale alone; a server that fails them is found."""

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest

from simulation.campaign.fuzz import HostileDrive
from simulation.drive.hostile.client import Job, play_all
from simulation.drive.hostile.kinds import KINDS, draw
from simulation.drive.hostile.request import DECOY, SMUGGLED
from simulation.errors import ScenarioError
from simulation.judge.hostile import GROWTH_MIB, judge_hostile
from simulation.model.hostile import ClientReport, HostileRecord, KindCount, Stock
from simulation.record.facts import read_hostile
from simulation.run import run
from simulation.scenario.loading import load_scenario
from simulation.target.services import Services
from simulation.tests.faults.test_single_faults import PATIENT, services
from simulation.verdict import judge_run

__all__ = ["services"]

REQUESTS = 2_000
SOLD = Stock(units=100, remaining=90, sold=10, orders=10, confirmed=10, promised=8, kept=8)
UNTOUCHED = Stock(units=100, remaining=100, sold=0, orders=0, confirmed=0, promised=0, kept=0)
RECORD = HostileRecord(
    seed=1,
    requests=5,
    driven_s=4.0,
    bound_s=9.0,
    clients=ClientReport(kinds={"bad json": KindCount(5, {"400": 5})}, longest_s=3.0),
    processes_before={"front-door 0": 7},
    processes_after={"front-door 0": 7},
    connections_left=0,
    tracebacks=0,
    decoy=SOLD,
    smuggled=UNTOUCHED,
)
TIMELINE = pd.DataFrame({"t_s": range(10), "rss_mib front-door 1": [50, 60, 70, *[75.0] * 7]})

Conduct = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def test_a_seed_gives_the_same_clients() -> None:
    first, second = ([draw(seed, number) for number in range(300)] for seed in (1, 1))
    assert first == second
    assert first != [draw(2, number) for number in range(300)]


def test_every_kind_is_drawn_and_none_buys_from_the_judged_sale() -> None:
    drawn = [draw(1, number) for number in range(12_000)]
    assert {kind for kind, _ in drawn} == KINDS.keys()
    known = (str(DECOY).encode(), str(SMUGGLED).encode())
    for kind, hostile in drawn:
        text = b"".join(hostile.pieces)
        if kind == "spelling":
            # Its chunks may cut a name or a number.
            text = re.sub(rb"\r\n[0-9A-F]{1,2}\r\n", b"", text)
        if kind == "mutation":
            digits = text.partition(b'"productId":')[2][:19]
            assert not digits.rstrip(b"}").isdigit() or len(digits) > 12
        elif kind != "half open":
            assert b'"productId":' not in text or any(product in text for product in known)


async def test_a_sale_beside_hostile_clients_keeps_every_promise(services: Services, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    scenario = load_scenario("hostile", PATIENT | {"engine.dev": True}, rate_rps=300, duration_s=3, stock=500)
    hostile = HostileDrive(scenario, REQUESTS, 2, folder, services, lambda _: None)
    await run(scenario, folder, lambda _: None, services=services, driver=hostile.drive)
    summary = judge_run(folder)
    assert [check for check in summary["checks"] if not check["holds"]] == []
    assert summary["verdict"] == "pass"
    record = read_hostile(folder)
    assert record is not None
    assert sum(kind.sent for kind in record.clients.kinds.values()) == REQUESTS
    assert len(record.processes_before) >= 4
    assert record.decoy is not None
    assert record.decoy.promised > 0


def test_a_sale_that_hostile_requests_could_buy_from_is_refused(tmp_path: Path) -> None:
    scenario = load_scenario("hostile", {"sales.0.product_id": DECOY})
    with pytest.raises(ScenarioError, match="sell one below"):
        HostileDrive(scenario, 1, 1, tmp_path, Services(redis_url="", postgres_url=""), lambda _: None)


async def say_500(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65_536)
    writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
    await close(writer)


async def say_400(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65_536)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await close(writer)


async def say_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65_536)
    writer.write(b"segmentation fault\r\n\r\n")
    await close(writer)


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(65_536)
    await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        while await reader.read(65_536):
            pass
        await asyncio.sleep(3)


@pytest.mark.parametrize(
    ("conduct", "fault"),
    [
        (say_500, "status 500"),
        (say_400, "status 400"),
        (say_nonsense, "unreadable"),
        (say_nothing, "no answer"),
        (stay, "kept for"),
    ],
)
async def test_a_server_that_treats_them_badly_is_found_with_the_bytes(conduct: Conduct, fault: str) -> None:
    server = await asyncio.start_server(conduct, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    report = await play_all(Job("127.0.0.1", port, 1, 60, 60, 0.5))
    server.close()
    faults = [finding for finding in report.findings if fault in finding.fault]
    assert faults
    assert report.faults >= len(report.findings)
    assert all(finding.sent for finding in faults if finding.kind == "bad json")


async def test_a_server_that_is_down_is_found() -> None:
    report = await play_all(Job("127.0.0.1", 9, 1, 5, 5, 1.0))
    assert {finding.fault.partition(":")[0] for finding in report.findings} == {"can't connect"}


def test_a_record_of_good_conduct_has_no_broken_check() -> None:
    assert [check for check in judge_hostile(RECORD, TIMELINE) if not check.holds] == []
    stored = msgspec.json.encode(RECORD)
    assert msgspec.json.decode(stored, type=HostileRecord) == RECORD
    assert {"barrage", "decoy", "canary"} < msgspec.json.decode(stored).keys(), "as older records have them"


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({"clients": ClientReport(faults=1)}, "hostile requests are answered"),
        ({"processes_after": {"front-door 0": 8}}, "no process dies of them"),
        ({"processes_after": {}}, "no process dies of them"),
        ({"tracebacks": 1}, "no process dies of them"),
        ({"connections_left": 1}, "slow clients are dropped"),
        ({"clients": ClientReport(longest_s=9.1)}, "slow clients are dropped"),
        ({"smuggled": msgspec.structs.replace(UNTOUCHED, remaining=99)}, "nothing smuggled is bought"),
        ({"smuggled": msgspec.structs.replace(UNTOUCHED, orders=1)}, "nothing smuggled is bought"),
        ({"decoy": msgspec.structs.replace(SOLD, remaining=89)}, "hostile purchases add up"),
        ({"decoy": msgspec.structs.replace(SOLD, sold=11)}, "hostile purchases add up"),
        ({"decoy": msgspec.structs.replace(SOLD, kept=7)}, "hostile purchases add up"),
    ],
)
def test_each_check_can_break(change: dict[str, Any], broken: str) -> None:
    checks = judge_hostile(msgspec.structs.replace(RECORD, **change), TIMELINE)
    assert [check.name for check in checks if check.holds is False] == [broken]


def test_a_front_door_that_grows_is_found() -> None:
    grown = TIMELINE.assign(**{"rss_mib front-door 2": [*[10.0] * 5, *[12 + GROWTH_MIB] * 5]})
    assert [check.name for check in judge_hostile(RECORD, grown) if check.holds is False] == [
        "the front door's memory is bounded"
    ]


def test_a_store_that_could_not_be_read_gives_no_verdict() -> None:
    unread = msgspec.structs.replace(RECORD, decoy=None, smuggled=None)
    assert [check.name for check in judge_hostile(unread, TIMELINE[["t_s"]]) if check.holds is None] == [
        "the front door's memory is bounded",
        "hostile purchases add up",
        "nothing smuggled is bought",
    ]
