"""The live page of a run: a web page on loopback that draws the run as it happens.

GET /        the page, which loads nothing from anywhere
GET /events  server-sent events (WHATWG HTML, 9.2), the data of each one line of JSON:
             run     the scenario, as `introduce` has it
             point   simulation.live.figures.Figures: to a new client all so far, then about four a second
             judging the load and the drain are over
             end     how the run ended: verdict, words, headline and the path of the report
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from aiohttp import web

from engine.errors import FlashgridError
from simulation.errors import RunError, SimulationError
from simulation.live.figures import Figures
from simulation.report.page import fill_page
from simulation.report.report import headline
from simulation.scenario.arrivals import peak_rps
from simulation.scenario.schema import Scenario

HOST: Final = "127.0.0.1"
MOST_EVENTS: Final = 4_096
"""Longest history that is kept: above it every second event is forgotten."""
STOP_S: Final = 1.0
"""Longest wait, at the end, for the clients to take what is left for them."""
SKETCH_POINTS: Final = 240


class LivePage:
    """The events of a run, which each client reads at its own pace.

    When some are forgotten, every client is sent everything again from `run` on.
    """

    url = ""
    """Where the page is served, if it is."""

    def __init__(self, scenario: Scenario) -> None:
        self._events: list[bytes] = []
        self._is_over = False
        self._news = asyncio.Event()
        self.tell("run", introduce(scenario))

    def show(self, figures: Figures) -> None:
        """Tell the run's latest figures."""
        self.tell("point", figures._asdict())
        if len(self._events) > MOST_EVENTS:
            self._events = self._events[:-1:2] + self._events[-1:]

    def end(self, summary: dict[str, Any], report: Path) -> None:
        """Tell the verdict, and where the report is."""
        load = summary["load"]
        reason = "" if load["valid"] else f" The load is not valid: {load['reason']}."
        ending = {
            "verdict": summary["verdict"],
            "words": summary["verdict_in_words"] + reason,
            "headline": headline(summary),
            "report": str(report.absolute()),
        }
        self.tell("end", ending)

    def close(self, why: str = "it was stopped") -> None:
        """Let the clients go. If there is no verdict, tell them `why`."""
        if not self._is_over:
            words = f"The run has no verdict: {why}."
            self.tell("end", {"verdict": None, "words": words, "headline": [], "report": None})

    async def answer_page(self, _: web.Request) -> web.Response:
        """Answer GET /."""
        headers = {
            "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline';"
            " script-src 'unsafe-inline'; img-src data:; connect-src 'self'",
            "Cache-Control": "no-store",
        }
        return web.Response(text=fill_page("live.html"), content_type="text/html", headers=headers)

    async def answer_events(self, request: web.Request) -> web.StreamResponse:
        """Answer GET /events, until the run is over."""
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        response = web.StreamResponse(headers=headers)
        with suppress(ConnectionError):  # the client went away
            await response.prepare(request)
            events, heard, is_over = self._events, 0, False
            while not is_over:
                news, is_over = self._news, self._is_over
                if events is not self._events:  # some were forgotten
                    events, heard = self._events, 0
                unheard, heard = events[heard:], len(events)
                await response.write(b"".join(unheard))
                if not is_over:
                    await news.wait()
        return response

    def tell(self, event: str, data: dict[str, Any]) -> None:
        """Tell all clients, now and later, of an event."""
        self._events.append(b"event: %b\ndata: %b\n\n" % (event.encode(), msgspec.json.encode(data)))
        self._is_over = event == "end"
        self._news.set()
        self._news = asyncio.Event()


@asynccontextmanager
async def serve_page(scenario: Scenario, port: int | None = 0) -> AsyncIterator[LivePage]:
    """Serve the page of a run of the scenario on loopback until the end of the block.

    Port 0 is a free one; without a port the page exists but is not served. Raises RunError if the port is
    taken.
    """
    page = LivePage(scenario)
    if port is None:
        yield page
        return
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


def introduce(scenario: Scenario) -> dict[str, Any]:
    """Return what the page says of a scenario before anything has happened; times from the run's start."""
    marks: list[dict[str, Any]] = [
        {"kind": fault.kind, "on": fault.on, "start_s": fault.at_s, "end_s": fault.end_s, "units": 0}
        for fault in scenario.timeline()
    ] + [
        {
            "kind": "restock",
            "on": f"of {each.stock:,}",
            "start_s": each.at_s,
            "end_s": each.at_s,
            "units": each.stock,
        }
        for each in scenario.restocks
    ]
    return {
        "scenario": scenario.name,
        "text": scenario.text,
        "seed": scenario.seed,
        "products": len(scenario.sales),
        "stock": sum(sale.stock for sale in scenario.sales),
        "duration_s": scenario.duration_s(),
        "phases": scenario.phases(),
        "peak_rps": peak_rps(scenario.arrivals),
        "curve": sketch_curve(scenario),
        "marks": sorted(marks, key=lambda mark: mark["start_s"]),
    }


def sketch_curve(scenario: Scenario) -> list[tuple[float, float]]:
    """Return the expected requests a second in SKETCH_POINTS equal steps, each at its middle."""
    seconds, counts = [0.0], [0.0]
    for segment, (_, start_s, end_s) in zip(scenario.arrivals, scenario.phases(), strict=True):
        expected, before = segment.expected(), counts[-1]
        passed = np.linspace(0.0, expected, 513 if expected else 0)
        seconds += [*(start_s + segment.invert(passed)), end_s]
        counts += [*(before + passed), before + expected]
    edges_s = np.linspace(0.0, seconds[-1], SKETCH_POINTS + 1)
    rates = np.diff(np.interp(edges_s, seconds, counts)) / np.diff(edges_s)
    middles_s = (edges_s[:-1] + edges_s[1:]) / 2
    return list(zip(middles_s.round(3).tolist(), rates.round(1).tolist(), strict=True))
