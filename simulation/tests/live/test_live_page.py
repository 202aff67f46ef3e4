"""The live page says what the run does while it does it, to everyone who looks, and is gone with the run."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from click.testing import CliRunner

from engine.settings import Settings
from simulation.cli.commands import main
from simulation.errors import DriverError
from simulation.live.figures import Tracker
from simulation.live.page import MOST_EVENTS, LivePage, serve_page
from simulation.model.events import Interval
from simulation.scenario.loading import load_scenario
from simulation.tests.browser import open_tab
from simulation.tests.cli.test_cli import FLASHSIM, PATIENT, plain_environment, urls_of
from simulation.tests.live.test_live import SAMPLE, progress_at
from simulation.tests.run_folders import make_run

pytestmark = pytest.mark.slow

SPIKE = load_scenario("spike")
STALL = {"kind": "stop", "on": "front-door", "at_s": 2, "seconds": 1}
FAULTY = load_scenario("spike", {"faults": [STALL], "restocks": [{"at_s": 9, "product_id": 1, "stock": 500}]})


def play(page: LivePage, *moments_s: float, ended: Sequence[Interval] = ()) -> None:
    """Lets the run be at these moments, with 1,000 requests done in each second."""
    tracker = Tracker(SPIKE)
    for t_s in moments_s:
        page.show(tracker.read(progress_at(t_s, round(1_000 * t_s)), SAMPLE, ended, round(t_s * 1e9)))


class Listener:
    """A client of the events."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def hear(self) -> tuple[str, Any]:
        """The next event's name and data."""
        frame = (await self.answer.content.readuntil(b"\n\n")).decode()
        found = re.fullmatch(r"event: (\w+)\ndata: (.+)\n\n", frame)
        assert found, f"no event: {frame!r}"
        return found[1], json.loads(found[2])

    async def hear_end(self) -> dict[str, Any]:
        """The data of the last event, after which nothing may come."""
        while True:
            name, data = await self.hear()
            if name == "end":
                assert await self.answer.content.read() == b""
                return dict(data)


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(60)) as session:
        yield session


async def listen(session: aiohttp.ClientSession, page: LivePage) -> Listener:
    answer = await session.get(f"{page.url}events", read_bufsize=1 << 22)
    assert answer.content_type == "text/event-stream"
    return Listener(answer)


async def test_the_page_names_the_nodes_in_charge(tmp_path: Path) -> None:
    async with open_tab(tmp_path) as tab, serve_page(SPIKE) as page:
        play(page, 1.0)
        await tab.open(page.url)
        await tab.await_true("document.querySelectorAll('#numbers .value').length == 4")
        assert await tab.evaluate("document.querySelector('#nodes').hidden")
        sample = msgspec.structs.replace(SAMPLE, in_charge={"shard 0": "redis 4", "queue": "rabbitmq 2"})
        page.show(Tracker(SPIKE).read(progress_at(2.0, 2_000), sample, (), 2 * 10**9))
        said = "In charge: redis 4 of shard 0, rabbitmq 2 of queue"
        await tab.await_true(f"document.querySelector('#nodes').innerText == {said!r}")


async def test_events_say_what_is_run_and_what_it_did(session: aiohttp.ClientSession) -> None:
    async with serve_page(FAULTY) as page:
        client = await listen(session, page)
        kind, said = await client.hear()
        assert kind == "run"
        assert (said["scenario"], said["seed"], said["stock"], said["duration_s"]) == ("spike", 1, 10_000, 30)
        assert [phase[0] for phase in said["phases"]] == ["base", "peak", "tail"]
        assert said["marks"] == [
            {"kind": "stop", "on": "front-door", "start_s": 2, "end_s": 3, "units": 0},
            {"kind": "restock", "on": "of 500", "start_s": 9, "end_s": 9, "units": 500},
        ]
        rates = dict(map(tuple, said["curve"]))
        at = {t_s: rate for t_s in (2.5, 10, 29) for when, rate in rates.items() if abs(when - t_s) < 0.07}
        assert at == pytest.approx({2.5: 200, 10: 10_500, 29: 271}, rel=0.02)
        assert min(rates.values()) > 0
        assert sum(rates.values()) * 30 / len(rates) == pytest.approx(161_000, rel=0.01)

        ended = [Interval(kind="stop", on="front-door", start_s=2.0, end_s=3.1)]
        play(page, 7.0, 7.5, 8.0, ended=ended)
        for t_s in (7.0, 7.5, 8.0):
            kind, point = await client.hear()
            assert (kind, point["t_s"], point["phase"]) == ("point", t_s, "peak")
        assert (point["done"], point["planned"]) == (8_000, 200_000)
        assert (point["accepted"], point["sold_out"], point["others"]) == (800, 7_198, {"UNKNOWN": 2})
        rates_now = [point[f"{name}_rps"] for name in ("intended", "done", "accepted", "sold_out", "errors")]
        assert rates_now == [1_000, 1_000, 100, 900, 0]
        assert point["p50_ms"] == point["p99_ms"] == pytest.approx(10, rel=0.12)
        stores = [point[name] for name in ("stock", "pending", "outbox", "queue", "confirmed", "failed")]
        assert stores == [7_654, 21, 3, 0, 2_325, None]
        assert point["ended"] == [{"kind": "stop", "on": "front-door", "start_s": 2.0, "end_s": 3.1}]


async def test_a_client_that_comes_late_hears_all_so_far(session: aiohttp.ClientSession) -> None:
    async with serve_page(SPIKE) as page:
        play(page, 1.0, 2.0, 3.0)
        page.tell("judging", {})
        client = await listen(session, page)
        heard = [await client.hear() for _ in range(5)]
        assert [kind for kind, _ in heard] == ["run", "point", "point", "point", "judging"]
        assert [point["t_s"] for _, point in heard[1:4]] == [1.0, 2.0, 3.0]


async def test_a_long_run_is_thinned_but_keeps_its_ends(session: aiohttp.ClientSession) -> None:
    async with serve_page(SPIKE) as page:
        play(page, *(tick / 4 for tick in range(MOST_EVENTS)))
        page.tell("judging", {})
        client = await listen(session, page)
        assert (await client.hear())[0] == "run"
        moments = []
        while (event := await client.hear())[0] == "point":
            moments.append(event[1]["t_s"])
        assert MOST_EVENTS / 2 <= len(moments) <= MOST_EVENTS
        assert moments[-1] == (MOST_EVENTS - 1) / 4
        assert moments[0] <= 0.25
        assert moments == sorted(moments)


async def test_a_client_that_falls_behind_hears_everything_again(
    session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with serve_page(SPIKE) as page:
        slow = await listen(session, page)
        assert (await slow.hear())[0] == "run"
        # It is not awaited between these, so that the page's history is thinned before it hears more.
        play(page, *(tick / 4 for tick in range(2 * MOST_EVENTS)))
        page.end(make_run(tmp_path), tmp_path / "report.html")
        assert (await slow.hear())[0] == "run"
        moments = []
        while (event := await slow.hear())[0] == "point":
            moments.append(event[1]["t_s"])
        assert event[0] == "end"
        assert moments == sorted(moments)
        assert len(moments) <= MOST_EVENTS
        assert moments[-1] == (2 * MOST_EVENTS - 1) / 4


async def test_the_last_event_is_the_verdict(session: aiohttp.ClientSession, tmp_path: Path) -> None:
    summary = make_run(tmp_path)
    async with serve_page(SPIKE) as page:
        client = await listen(session, page)
        page.end(summary, tmp_path / "report.html")
    ending = await client.hear_end()
    assert (ending["verdict"], ending["words"]) == ("pass", summary["verdict_in_words"])
    assert ending["report"] == str(tmp_path / "report.html")
    assert ending["headline"][0] == ending["headline"][0] | {"value": "0", "name": "units oversold"}


async def test_a_run_that_breaks_off_says_why(session: aiohttp.ClientSession) -> None:
    async def break_off() -> None:
        async with serve_page(SPIKE) as page:
            clients.append(await listen(session, page))
            raise DriverError("driver process 0 ended with code 1")

    clients: list[Listener] = []
    with pytest.raises(DriverError):
        await break_off()
    ending = await clients[0].hear_end()
    assert ending["verdict"] is None
    assert "driver process 0 ended with code 1" in ending["words"]


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["run", f"--live-port={port}"], catch_exceptions=False)
    assert result.exit_code == 2
    said = f"flashsim: the live page can't be served at 127.0.0.1:{port}: address already in use\n"
    assert result.stderr == said
    assert list(tmp_path.iterdir()) == []


async def test_a_browser_follows_a_run_to_its_verdict(settings: Settings, tmp_path: Path) -> None:
    arguments = [
        "run", "spike", "--live", "--rate=800", "--duration=5", "--stock=300", "--out=run",
        "--set=faults=[{kind='stop',on='relay',at_s=1,seconds=0.5}]", *PATIENT, *urls_of(settings),
    ]  # fmt: skip
    async with open_tab(tmp_path) as tab:
        process = await asyncio.create_subprocess_exec(
            *FLASHSIM,
            *arguments,
            cwd=tmp_path,
            env=plain_environment(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr
        try:
            said = (await process.stderr.readline()).decode()
            found = re.fullmatch(r"flashsim: live page: (http://127\.0\.0\.1:\d+/)\n", said)
            assert found, said + (await process.stderr.read()).decode()
            await tab.open(found[1])

            await tab.await_true("document.title.startsWith('peak')")
            await tab.await_true("document.querySelectorAll('#charts polyline').length > 6")
            await tab.await_true("/^[1-9]/.test(document.querySelector('#numbers .value').textContent)")
            shown = await tab.evaluate("document.body.innerText")
            assert "\nLive\n" in shown
            assert re.search(r"[\d,]+ of [\d,]+ requests answered", shown)
            strip = await tab.evaluate("document.querySelector('#strip').textContent")
            assert strip == "basepeaktailstop relay"
            assert await tab.evaluate("document.documentElement.scrollWidth") == 390
            assert await tab.evaluate("document.querySelector('#charts svg').clientWidth") == 350

            await tab.await_true("document.title.startsWith('pass')")
            log = (await process.stderr.read()).decode()
            assert await process.wait() == 0, log
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        shown = await tab.evaluate("document.body.innerText")
        report = str(tmp_path / "run" / "report.html")
        for words in ("Pass", "Ended", "units oversold", "300 accepted", report):
            assert words in " ".join(shown.split())
        assert await tab.evaluate("document.querySelectorAll('#charts polyline').length") > 6
        assert tab.errors == []
        assert set(tab.urls) == {found[1], f"{found[1]}events"}
    host, port = found[1].removeprefix("http://").rstrip("/").split(":")
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
