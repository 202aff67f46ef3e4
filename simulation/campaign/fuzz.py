"""The fuzzer: a scenario's sale under a barrage of hostile requests, judged as usual and by what they did.

The hostile clients are a process of their own (simulation.fuzz.process). They buy, where they happen to, from
a sale of their own, the decoy, so that the judged sale knows all of its buyers; and a sale that nobody asks
for but inside another request, the canary, shows whether a smuggled request was carried out.
"""

import asyncio
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec
import psutil
from rich.console import Console

from engine.settings import read_settings
from simulation.drive.driver import DriveResult, drive
from simulation.drive.hostile.abuse import KINDS
from simulation.drive.hostile.http import CANARY, DECOY, PRODUCTS_BELOW
from simulation.drive.hostile.process import Job
from simulation.drive.plan import Plan
from simulation.drive.progress import Progress
from simulation.errors import DriverError, ScenarioError
from simulation.live.terminal import LiveView
from simulation.model.hostile import FILE, Barrage, Siege, Stock
from simulation.model.state import FinalState
from simulation.record.facts import ENGINE_LOG
from simulation.run import run
from simulation.scenario.schema import DriverOptions, SaleOffer, Scenario
from simulation.target.engine_process import private_services
from simulation.target.final_state import read_final_state
from simulation.target.opening import open_sales
from simulation.target.services import Services

CLIENTS: Final = 128
SLACK_S: Final = 10.0
"""What a full machine may add to the time after which a connection must have been ended."""
DECOY_UNITS: Final = 1_000_000_000
CANARY_UNITS: Final = 1_000
POLL_S: Final = 0.1
_HELD: Final = (psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT)


async def run_siege(
    scenario: Scenario,
    requests: int,
    seed: int,
    folder: Path,
    say: Callable[[str], None],
    command: str,
    console: Console,
    services: Services | None = None,
) -> None:
    """Runs the scenario under so many hostile requests, and writes the record of both into `folder`.

    It runs on `services`, or on private ones where none are given. Raises ScenarioError for a sale that
    hostile requests might buy from, and what `run` raises.
    """
    if any(sale.product_id >= PRODUCTS_BELOW for sale in scenario.sales):
        raise ScenarioError(f"hostile requests name products from {PRODUCTS_BELOW:,} on: sell one below")
    async with contextlib.AsyncExitStack() as cleanup:
        if services is None:
            say("starting private services")
            services = await cleanup.enter_async_context(private_services(say))
        besieger = Besieger(scenario, requests, seed, folder, services, say)
        with LiveView(scenario, console) as view:
            await run(
                scenario,
                folder,
                say,
                watch=view.update,
                services=services,
                command=command,
                driver=besieger.drive,
            )


class Besieger:
    """Drives a load as `drive` does, with the barrage beside it, and writes down what that did."""

    def __init__(
        self,
        scenario: Scenario,
        requests: int,
        seed: int,
        folder: Path,
        services: Services,
        say: Callable[[str], None],
    ) -> None:
        settings = read_settings({}, **scenario.engine)
        self._scenario, self._folder, self._services, self._say = scenario, folder, services, say
        self._requests, self._seed = requests, seed
        self._shards = settings.gate_shards
        # A head, a body, the rest of a body that was refused, and once more a head.
        self._bound_s = 2 * settings.keepalive_s + settings.client_timeout_ms / 1000 + 1 + SLACK_S

    async def drive(
        self,
        plan: Plan,
        url: str,
        options: DriverOptions,
        *,
        t0_ns: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        stop: asyncio.Event | None = None,
    ) -> DriveResult:
        """Sends the plan and the barrage, and returns when both are through and every connection is ended."""
        offers = [
            SaleOffer(product_id=DECOY, stock=DECOY_UNITS),
            SaleOffer(product_id=CANARY, stock=CANARY_UNITS),
        ]
        decoy, canary = await open_sales(url, offers, None)
        port = urlsplit(url).port or 80
        before = find_engine(port)
        barrage = asyncio.create_task(self._bombard(port))
        try:
            driven = await drive(plan, url, options, t0_ns=t0_ns, on_progress=on_progress, stop=stop)
            driven_s = (time.monotonic_ns() - driven.t0_ns) / 1e9
            if not barrage.done():
                self._say("the sale is over; waiting for the rest of the hostile requests")
            seen = await barrage
        finally:
            barrage.cancel()
            await asyncio.gather(barrage, return_exceptions=True)
        left = await self._await_no_connection(port)
        after = find_engine(port)
        state = await read_final_state(
            self._services,
            self._shards,
            sale_ids=[decoy.sale_id, canary.sale_id],
            drain_timeout_s=self._scenario.drain_s,
        )
        siege = Siege(
            seed=self._seed,
            requests=self._requests,
            driven_s=round(driven_s, 3),
            bound_s=self._bound_s,
            barrage=seen,
            processes_before=before,
            processes_after=after,
            connections_left=left,
            tracebacks=(self._folder / ENGINE_LOG)
            .read_text(errors="replace")
            .count("Traceback (most recent"),
            decoy=count_stock(state, decoy.sale_id, seen.order_ids),
            canary=count_stock(state, canary.sale_id, []),
        )
        siege.barrage.order_ids = []
        (self._folder / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(siege)) + b"\n")
        return driven

    async def _bombard(self, port: int) -> Barrage:
        """Plays all hostile clients. Raises DriverError where their process dies."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "simulation.drive.hostile.process",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 30,
        )  # fmt: skip
        try:
            job = Job("127.0.0.1", port, self._seed, self._requests, CLIENTS, self._bound_s)
            stdin = cast(asyncio.StreamWriter, process.stdin)
            stdin.write(msgspec.json.encode(job) + b"\n")
            line = await cast(asyncio.StreamReader, process.stdout).readline()
            if not line:
                raise DriverError(f"the fuzzer's process ended with code {await process.wait()}")
            return msgspec.json.decode(line, type=Barrage)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    async def _await_no_connection(self, port: int) -> int:
        """Waits until the front door has ended every connection; how many are left when the time is over."""
        deadline = time.monotonic() + self._bound_s
        while (left := count_connections(port)) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return left


def find_engine(port: int) -> dict[str, int]:
    """The processes of the engine that listens on a port: pid by name and place; empty where none does."""
    pids = [each.pid for each in find_connections(port) if each.status == psutil.CONN_LISTEN and each.pid]
    if not pids:
        return {}
    # The front doors share the socket of the server, whose children they are.
    listening = psutil.Process(pids[0])
    server = (
        cast(psutil.Process, listening.parent())
        if "engine.stages.process" in listening.cmdline()
        else listening
    )
    found = {"server": server.pid}
    for number, child in enumerate(server.children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = child.cmdline()
            if "engine.stages.process" in command:
                found[f"{command[command.index('engine.stages.process') + 1]} {number}"] = child.pid
    return found


def count_connections(port: int) -> int:
    """Connections that a process on this machine accepted on a port and has not ended."""
    return sum(each.status in _HELD and each.pid is not None for each in find_connections(port))


def find_connections(port: int) -> list[Any]:
    """Sockets of this machine, by any process, whose own port it is."""
    return [each for each in psutil.net_connections("tcp4") if each.laddr and each.laddr.port == port]


def count_stock(state: FinalState, sale_id: int, promised: list[str]) -> Stock | None:
    """What became of a sale's units, and how many of the promised orders the ledger has settled."""
    if state.gate is None or state.sales is None or state.orders is None:
        return None
    sale = state.sales[state.sales["sale_id"] == sale_id].iloc[0]
    at_gate = state.gate[state.gate["sale_id"] == sale_id]
    orders = state.orders[state.orders["sale_id"] == sale_id]
    settled = orders[orders["status"] != "PENDING"]
    return Stock(
        units=int(sale["stock"]),
        remaining=int(at_gate["remaining"].sum()),
        sold=int(sale["sold"]),
        orders=len(orders),
        confirmed=int((orders["status"] == "CONFIRMED").sum()),
        promised=len(set(promised)),
        kept=len(set(promised) & set(settled["order_id"])),
    )


def describe_barrage(siege: Siege) -> str:
    """A line for each kind: how many were sent and what came back."""
    lines = []
    for kind in sorted(siege.barrage.kinds, key=list(KINDS).index):
        tally = siege.barrage.kinds[kind]
        answers = sorted(tally.answers.items(), key=lambda answer: -answer[1])
        lines.append(f"  {kind:22} {tally.sent:>8,}  " + ", ".join(f"{n:,} {word}" for word, n in answers))
    return "\n".join(lines)
