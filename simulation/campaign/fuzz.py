"""The fuzzer: a scenario's sale beside hostile requests, judged as usual and by what they did.

The hostile clients are a process of their own (simulation.drive.hostile.process). A hostile request that is
valid by chance buys from a decoy sale, so that the judged sale knows all of its buyers. A sale that only a
smuggled request would buy from shows whether one was carried out.
"""

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
import psutil

from engine.local.process import wait_until
from engine.settings import read_settings
from simulation.drive.child import run_together, start_child
from simulation.drive.driver import DriveResult, LoadSpec, drive
from simulation.drive.hostile.client import Job
from simulation.drive.hostile.request import DECOY, PRODUCTS_BELOW, SMUGGLED
from simulation.errors import ScenarioError
from simulation.model.hostile import FILE, ClientReport, HostileRecord, Stock
from simulation.model.state import FinalState
from simulation.record.facts import ENGINE_LOG, write_json
from simulation.run import Say
from simulation.scenario.schema import SaleOffer, Scenario
from simulation.target.final_state import read_final_state
from simulation.target.opening import open_sales
from simulation.target.services import Services

CLIENTS: Final = 128
"""Hostile clients at the same time."""


class HostileDrive:
    """Drives a load as `drive` does, with hostile clients beside it, and records what they did."""

    def __init__(
        self, scenario: Scenario, requests: int, seed: int, folder: Path, services: Services, say: Say
    ) -> None:
        """Raise ScenarioError if hostile requests might buy from the scenario's sales."""
        if any(sale.product_id >= PRODUCTS_BELOW for sale in scenario.sales):
            raise ScenarioError(f"hostile requests name products from {PRODUCTS_BELOW:,} on: sell one below")
        settings = read_settings({}, **scenario.engine)
        self._scenario, self._folder, self._services, self._say = scenario, folder, services, say
        self._requests, self._seed = requests, seed
        self._shards = scenario.topology.shards
        # A head, a body, the rest of a body that was refused, and once more a head; a busy machine adds 10 s.
        self._bound_s = 2 * settings.keepalive_s + settings.client_timeout_ms / 1000 + 1 + 10

    async def drive(self, load: LoadSpec) -> DriveResult:
        """Send the load and the hostile requests; return when both are done and every connection has ended.

        Raises DriverError.
        """
        # The decoy never sells out.
        offers = [
            SaleOffer(product_id=DECOY, stock=1_000_000_000),
            SaleOffer(product_id=SMUGGLED, stock=1_000),
        ]
        decoy, smuggled = await open_sales(load.urls, offers, None)
        port = urlsplit(load.urls[0]).port or 80
        before = find_processes()
        driven: DriveResult
        (driven, driven_s), seen = await run_together(self._drive_load(load), self._play_clients(port))
        await wait_until(lambda: count_connections(port) == 0, self._bound_s)
        left = count_connections(port)
        after = find_processes()
        state = await read_final_state(
            self._services,
            self._shards,
            sale_ids=[decoy.sale_id, smuggled.sale_id],
            drain_timeout_s=self._scenario.drain_s,
        )
        log = (self._folder / ENGINE_LOG).read_text(errors="replace")
        record = HostileRecord(
            seed=self._seed,
            requests=self._requests,
            driven_s=round(driven_s, 3),
            bound_s=self._bound_s,
            clients=seen,
            processes_before=before,
            processes_after=after,
            connections_left=left,
            tracebacks=log.count("Traceback (most recent"),
            decoy=count_stock(state, decoy.sale_id, seen.order_ids),
            smuggled=count_stock(state, smuggled.sale_id, []),
        )
        record.clients.order_ids = []
        write_json(record, self._folder / FILE)
        return driven

    async def _drive_load(self, load: LoadSpec) -> tuple[DriveResult, float]:
        """Send the load; return what was seen of it, and when it was over, in s from the run's start."""
        driven = await drive(load)
        self._say("the load is over; waiting for the hostile requests to end as well")
        return driven, (time.monotonic_ns() - driven.t0_ns) / 1e9

    async def _play_clients(self, port: int) -> ClientReport:
        """Play all hostile clients. Raises DriverError if their process dies."""
        with tempfile.NamedTemporaryFile(prefix="flashsim-") as result:
            job = Job("127.0.0.1", port, self._seed, self._requests, CLIENTS, self._bound_s, result.name)
            async with start_child("simulation.drive.hostile.process", "the hostile clients", job) as process:
                await process.await_end()
            return msgspec.json.decode(result.read(), type=ClientReport)


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
    held = (psutil.CONN_ESTABLISHED, psutil.CONN_CLOSE_WAIT)
    return sum(each.status in held and each.pid is not None for each in sockets)


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
