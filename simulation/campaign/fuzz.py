"""The fuzzer: a scenario's load with hostile requests beside it, judged as usual and by what these did.

The hostile clients are a process of their own (simulation.drive.hostile.process). If they buy, they buy from
a sale of their own, the decoy, so that the judged sale knows all its buyers. Another sale, the canary, is
named only inside other requests: it shows whether a smuggled request was carried out.
"""

import asyncio
import contextlib
import sys
import time
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import urlsplit

import msgspec
import psutil

from engine.settings import read_settings
from simulation.drive.driver import DriveResult, drive
from simulation.drive.hostile.http import CANARY, DECOY, PRODUCTS_BELOW
from simulation.drive.hostile.process import Job
from simulation.drive.plan import Plan
from simulation.errors import DriverError, ScenarioError
from simulation.model.hostile import FILE, Barrage, Siege, Stock
from simulation.model.state import FinalState
from simulation.record.facts import ENGINE_LOG, write_json
from simulation.run import Say
from simulation.scenario.schema import DriverOptions, SaleOffer, Scenario
from simulation.target.final_state import read_final_state
from simulation.target.opening import open_sales
from simulation.target.services import Services

CLIENTS: Final = 128
SLACK_S: Final = 10.0
"""What a busy machine may add to the time after which a connection must have ended."""
DECOY_UNITS: Final = 1_000_000_000
CANARY_UNITS: Final = 1_000
POLL_S: Final = 0.1
_HELD: Final = (psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT)


class HostileLoad:
    """Drives a load as `drive` does, with hostile requests beside it, and records what they did."""

    def __init__(
        self, scenario: Scenario, requests: int, seed: int, folder: Path, services: Services, say: Say
    ) -> None:
        """Raise ScenarioError if hostile requests might buy from the scenario's sales."""
        if any(sale.product_id >= PRODUCTS_BELOW for sale in scenario.sales):
            raise ScenarioError(f"hostile requests name products from {PRODUCTS_BELOW:,} on: sell one below")
        settings = read_settings({}, **scenario.engine)
        self._scenario, self._folder, self._services, self._say = scenario, folder, services, say
        self._requests, self._seed = requests, seed
        self._shards = settings.gate_shards
        # A head, a body, the rest of a body that was refused, and once more a head.
        self._bound_s = 2 * settings.keepalive_s + settings.client_timeout_ms / 1000 + 1 + SLACK_S

    async def drive(self, plan: Plan, url: str, options: DriverOptions, **more: Any) -> DriveResult:
        """Send the plan and the hostile requests; return when all are done and every connection has ended.

        `more` is what `drive` takes besides.
        """
        offers = [
            SaleOffer(product_id=DECOY, stock=DECOY_UNITS),
            SaleOffer(product_id=CANARY, stock=CANARY_UNITS),
        ]
        decoy, canary = await open_sales(url, offers, None)
        port = urlsplit(url).port or 80
        before = find_processes()
        barrage = asyncio.create_task(self._bombard(port))
        try:
            driven = await drive(plan, url, options, **more)
            driven_s = (time.monotonic_ns() - driven.t0_ns) / 1e9
            if not barrage.done():
                self._say("the load is over; waiting for the rest of the hostile requests")
            seen = await barrage
        finally:
            barrage.cancel()
            await asyncio.gather(barrage, return_exceptions=True)
        left = await self._await_no_connection(port)
        after = find_processes()
        state = await read_final_state(
            self._services,
            self._shards,
            sale_ids=[decoy.sale_id, canary.sale_id],
            drain_timeout_s=self._scenario.drain_s,
        )
        log = (self._folder / ENGINE_LOG).read_text(errors="replace")
        siege = Siege(
            seed=self._seed,
            requests=self._requests,
            driven_s=round(driven_s, 3),
            bound_s=self._bound_s,
            barrage=seen,
            processes_before=before,
            processes_after=after,
            connections_left=left,
            tracebacks=log.count("Traceback (most recent"),
            decoy=count_stock(state, decoy.sale_id, seen.order_ids),
            canary=count_stock(state, canary.sale_id, []),
        )
        siege.barrage.order_ids = []
        write_json(siege, self._folder / FILE)
        return driven

    async def _bombard(self, port: int) -> Barrage:
        """Play all hostile clients. Raises DriverError if their process dies."""
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
        """Wait until the front door has ended every connection; return how many are left after the bound."""
        deadline = time.monotonic() + self._bound_s
        while (left := count_connections(port)) and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return left


def find_processes() -> dict[str, int]:
    """Return the pid of the run's own server and of each of its stages, by name and number."""
    found: dict[str, int] = {}
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if "engine.stages.process" in command:
                found["server"] = process.ppid()
                stage = command[command.index("engine.stages.process") + 1]
                found[f"{stage} {len(found)}"] = process.pid
    return found


def count_connections(port: int) -> int:
    """Count the connections that a process on this machine accepted on a port and has not ended."""
    sockets = [each for each in psutil.net_connections("tcp4") if each.laddr and each.laddr.port == port]
    return sum(each.status in _HELD and each.pid is not None for each in sockets)


def count_stock(state: FinalState, sale_id: int, promised: list[str]) -> Stock | None:
    """Return what became of a sale's units, and how many of the promised orders the ledger has settled."""
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
