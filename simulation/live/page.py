"""The live page of a run: a web page on loopback that draws the run as it happens.

GET /        the page, which loads nothing from anywhere
GET /events  server-sent events (WHATWG HTML, 9.2), the data of each one line of JSON:
             run     what is run: Introduction
             points  a list of view.live.Figures, oldest first: to a new client all so far, and then
                     one about four times a second
             judging the load and the drain are over
             end     how the run ended: Ending
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from aiohttp import web

from engine.errors import FlashgridError
from simulation.errors import RunError, SimulationError
from simulation.live.terminal import Figures
from simulation.report.page import fill_page
from simulation.report.report import headline
from simulation.scenario.arrivals import peak_rps
from simulation.scenario.schema import Scenario

HOST: Final = "127.0.0.1"
MOST_POINTS: Final = 4_096
"""Longest history that a client is sent: above it every second point is forgotten."""
MOST_WAITING: Final = 32
"""Events that a client may be behind."""
STOP_S: Final = 1.0
"""Longest wait, at the end, for the clients to take what is left for them."""
SKETCH_POINTS: Final = 240
_POLICY: Final = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:;"
    " connect-src 'self'"
)


class Mark(msgspec.Struct, frozen=True):
    """Something that is to be done under the load, in seconds from the run's start."""

    kind: str
    """The fault's, or restock."""
    on: str
    """What the fault is done to."""
    start_s: float
    end_s: float
    units: int = 0
    """Of a restock."""


class Introduction(msgspec.Struct, frozen=True, kw_only=True):
    """What a client must know to make sense of the points."""

    scenario: str
    text: str
    seed: int
    products: int
    stock: int
    """Units on sale at the start, of all products."""
    duration_s: float
    """Length of the arrival curve."""
    phases: list[tuple[str, float, float]]
    """Name, start and end, in seconds from the run's start."""
    peak_rps: float
    curve: list[tuple[float, float]]
    """The arrival curve: seconds from the run's start and requests a second."""
    marks: list[Mark]


class Ending(msgspec.Struct, frozen=True, kw_only=True):
    """How the run ended."""

    verdict: str | None
    """pass, fail or unknown; None where the run ended before it could be judged."""
    words: str
    headline: list[dict[str, str]] = []
    """The numbers that matter, as the report shows them: value, name, detail and state."""
    report: str | None = None
    """The path of the report."""


class LivePage:
    """What the page's clients hear. An event is encoded once, for all of them.

    A client that falls too far behind is cut off; it comes back by itself, and then hears everything again.
    """

    url: str

    def __init__(self, scenario: Scenario) -> None:
        self._run = _frame("run", msgspec.json.encode(introduce(scenario)))
        self._points: list[bytes] = []
        self._latest: list[bytes] = []
        """What a new client hears after the points."""
        self._clients: set[asyncio.Queue[bytes | None]] = set()

    @property
    def clients(self) -> int:
        """How many are listening."""
        return len(self._clients)

    def show(self, figures: Figures) -> None:
        """The run's latest figures."""
        fields = figures._asdict().items()
        point = msgspec.json.encode({k: round(v, 3) if isinstance(v, float) else v for k, v in fields})
        self._points.append(point)
        if len(self._points) > MOST_POINTS:
            del self._points[1:-1:2]
        self._publish(_frame("points", b"[%b]" % point))

    def judge(self) -> None:
        """The run is over and is being judged."""
        self._latest = [_frame("judging", b"{}")]
        self._publish(self._latest[0])

    def end(self, summary: dict[str, Any], report: Path) -> None:
        """The run has a verdict, and its report is written."""
        load = summary["load"]
        words = [summary["verdict_in_words"]]
        words += [] if load["valid"] else [f"The load is not valid: {load['reason']}."]
        self._end(
            Ending(
                verdict=summary["verdict"],
                words=" ".join(words),
                headline=headline(summary),
                report=str(report.absolute()),
            )
        )

    def close(self, why: str = "it was stopped") -> None:
        """Lets the clients go; says `why` there is no verdict, if there is none."""
        if not any(frame.startswith(b"event: end\n") for frame in self._latest):
            self._end(Ending(verdict=None, words=f"The run has no verdict: {why}."))
        for client in self._clients:
            _cut_off(client)
        self._clients.clear()

    async def answer_page(self, _: web.Request) -> web.Response:
        """GET /"""
        headers = {"Content-Security-Policy": _POLICY, "Cache-Control": "no-store"}
        return web.Response(text=fill_page("live.html"), content_type="text/html", headers=headers)

    async def answer_events(self, request: web.Request) -> web.StreamResponse:
        """GET /events"""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=headers)
        client: asyncio.Queue[bytes | None] = asyncio.Queue(MOST_WAITING)
        so_far = [self._run, _frame("points", b"[%b]" % b",".join(self._points)), *self._latest]
        self._clients.add(client)
        try:
            await response.prepare(request)
            await response.write(b"".join(so_far))
            while (event := await client.get()) is not None:
                await response.write(event)
        except ConnectionError:  # it went away
            pass
        finally:
            self._clients.discard(client)
        return response

    def _end(self, ending: Ending) -> None:
        self._latest = [_frame("end", msgspec.json.encode(ending))]
        self._publish(self._latest[0])

    def _publish(self, event: bytes) -> None:
        for client in tuple(self._clients):
            if client.full():
                self._clients.discard(client)
                while not client.empty():
                    client.get_nowait()
                _cut_off(client)
            else:
                client.put_nowait(event)


@asynccontextmanager
async def serve_page(scenario: Scenario, port: int = 0) -> AsyncIterator[LivePage]:
    """Serves the page of a run of the scenario on loopback until the end of the block; port 0 is a free one.

    Raises RunError if the port can't be had.
    """
    page = LivePage(scenario)
    app = web.Application()
    app.add_routes([web.get("/", page.answer_page), web.get("/events", page.answer_events)])
    runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=STOP_S)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            why = os.strerror(error.errno or 0).lower()
            raise RunError(f"the live page can't be served at {HOST}:{port}: {why}") from None
        page.url = f"http://{HOST}:{runner.addresses[0][1]}/"
        yield page
    except (FlashgridError, SimulationError) as error:
        page.close(str(error))
        raise
    finally:
        page.close()
        await runner.cleanup()


def introduce(scenario: Scenario) -> Introduction:
    """What the page says of a scenario before anything has happened."""
    faults = [Mark(fault.kind, fault.on, fault.at_s, fault.end_s) for fault in scenario.timeline()]
    restocks = [
        Mark("restock", f"of {restock.stock:,}", restock.at_s, restock.at_s, restock.stock)
        for restock in scenario.restocks
    ]
    return Introduction(
        scenario=scenario.name,
        text=scenario.text,
        seed=scenario.seed,
        products=len(scenario.sales),
        stock=sum(sale.stock for sale in scenario.sales),
        duration_s=scenario.duration_s(),
        phases=scenario.phases(),
        peak_rps=peak_rps(scenario.arrivals),
        curve=sketch_curve(scenario),
        marks=sorted(faults + restocks, key=lambda mark: mark.start_s),
    )


def sketch_curve(scenario: Scenario) -> list[tuple[float, float]]:
    """The expected requests a second in SKETCH_POINTS equal steps, each at its middle."""
    seconds, counts = [np.zeros(1)], [np.zeros(1)]
    start_s = before = 0.0
    for segment in scenario.arrivals:
        expected = segment.expected()
        if expected:
            passed = np.linspace(0.0, expected, 513)
            seconds.append(start_s + segment.invert(passed))
            counts.append(before + passed)
        start_s, before = start_s + segment.seconds, before + expected
        seconds.append(np.array([start_s]))
        counts.append(np.array([before]))
    edges_s = np.linspace(0.0, start_s, SKETCH_POINTS + 1)
    reached = np.interp(edges_s, np.concatenate(seconds), np.concatenate(counts))
    rates = np.diff(reached) / np.diff(edges_s)
    middles_s = (edges_s[:-1] + edges_s[1:]) / 2
    return list(zip(middles_s.round(3).tolist(), rates.round(1).tolist(), strict=True))


def _frame(event: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (event.encode(), data)


def _cut_off(client: asyncio.Queue[bytes | None]) -> None:
    if client.full():
        client.get_nowait()
    client.put_nowait(None)
