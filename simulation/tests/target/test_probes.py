"""What the probes promise: the stores' numbers as they are, a gap where one can't be read, and no harm."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import aio_pika
import pytest

from engine.bus.topology import declare_topology
from engine.gate.gate import Gate
from engine.ledger.ledger import Ledger
from engine.local.stack import Stack
from engine.model.purchase import Outcome
from engine.model.sale import Sale, SaleTerms
from engine.settings import Settings
from engine.tests.interruption import interrupt_at_every_step
from simulation.target import process_meter
from simulation.target.machine import MachineMeter
from simulation.target.probes import Probe, Sample
from simulation.target.process_meter import ProcessMeter, Usage
from simulation.target.services import Services
from simulation.target.stores import Store
from simulation.target.witness.flashgrid import FlashgridWitness

TERMS = SaleTerms(product_id=7, stock=10, quantity=2)
START = datetime(2026, 1, 1, tzinfo=UTC)
NOWHERE = "127.0.0.1:9"


def open_stores(services: Services, sales: list[Sale]) -> list[Store]:
    return FlashgridWitness(services, 1).open_stores(sales)


def services_of(settings: Settings) -> Services:
    assert settings.redis_url
    assert settings.postgres_url
    return Services(
        redis_url=settings.redis_url, postgres_url=settings.postgres_url, amqp_url=settings.amqp_url
    )


async def sampled(probe: Probe, condition: Callable[[Sample], bool]) -> Sample:
    """The first sample that meets the condition."""
    async with asyncio.timeout(30):
        while not (probe.latest and condition(probe.latest)):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    return probe.latest


@asynccontextmanager
async def sale_on(settings: Settings) -> AsyncIterator[tuple[Sale, Gate, Ledger]]:
    assert settings.postgres_url
    ledger = await Ledger.connect(settings.postgres_url)
    gate = Gate(settings)
    try:
        await ledger.migrate()
        sale = await ledger.open_sale(TERMS)
        await gate.open_sale(sale)
        yield sale, gate, ledger
    finally:
        await gate.close()
        await ledger.close()


async def test_it_reads_gate_outbox_and_ledger(settings_without_bus: Settings) -> None:
    settings = settings_without_bus
    async with (
        sale_on(settings) as (sale, gate, _),
        Probe(open_stores(services_of(settings), [sale]), ProcessMeter({})) as probe,
    ):
        before = await sampled(probe, lambda sample: sample.ledger_confirmed is not None)
        assert (before.stock_remaining, before.pending_orders, before.outbox_entries) == (10, 0, 0)
        assert before.outbox_wait_ms == 0
        for user in (1, 2, 3):
            assert (await gate.reserve(user, TERMS.product_id, None))[0] is Outcome.ACCEPTED
        after = await sampled(probe, lambda sample: sample.pending_orders == 3)
        assert (after.stock_remaining, after.outbox_entries) == (4, 3)
        assert (after.ledger_confirmed, after.ledger_failed) == (0, 0)
        wait_ms = after.outbox_wait_ms or 0
        await sampled(probe, lambda sample: (sample.outbox_wait_ms or 0) > wait_ms)


async def test_its_last_sample_is_of_the_end(settings_without_bus: Settings) -> None:
    settings = settings_without_bus
    async with sale_on(settings) as (sale, gate, _):
        async with Probe(open_stores(services_of(settings), [sale]), ProcessMeter({})) as probe:
            await sampled(probe, lambda sample: sample.pending_orders == 0)
            assert (await gate.reserve(1, TERMS.product_id, None))[0] is Outcome.ACCEPTED
        assert probe.latest
        assert probe.latest.pending_orders == 1


async def test_what_cannot_be_read_is_a_gap_and_the_rest_goes_on(settings_without_bus: Settings) -> None:
    async with sale_on(settings_without_bus) as (sale, _, _):
        broken = Services(
            redis_url=f"redis://{NOWHERE}/0",
            postgres_url=settings_without_bus.postgres_url or "",
            amqp_url=f"amqp://{NOWHERE}/",
        )
        async with Probe(open_stores(broken, [sale]), ProcessMeter({})) as probe:
            sample = await sampled(
                probe, lambda sample: sample.ledger_confirmed == 0 and len(probe.samples) > 1
            )
    assert (sample.stock_remaining, sample.outbox_entries, sample.queue_messages) == (None, None, None)
    timeline = probe.timeline(0, START)
    assert timeline["stock_remaining"].isna().all()
    assert "<NA>" not in timeline.to_csv()


async def test_it_reads_the_queue_as_soon_as_there_is_one(settings: Settings) -> None:
    async with (
        sale_on(settings) as (sale, _, _),
        Probe(open_stores(services_of(settings), [sale]), ProcessMeter({})) as probe,
    ):
        first = await sampled(probe, lambda sample: sample.stock_remaining is not None)
        assert first.queue_messages is None
        async with await aio_pika.connect(settings.amqp_url) as connection, connection.channel() as channel:
            await declare_topology(channel)
        await sampled(probe, lambda sample: sample.queue_messages == 0)


async def test_it_leaves_no_connection_whenever_it_is_interrupted(settings_without_bus: Settings) -> None:
    async def watch() -> None:
        async with Probe(open_stores(services_of(settings_without_bus), []), ProcessMeter({})) as probe:
            await sampled(probe, lambda _: True)

    async with sale_on(settings_without_bus):
        pass  # the gate's own connections come and go
    assert await interrupt_at_every_step(watch) == set()


def test_the_meter_names_services_with_all_their_processes(stack: Stack) -> None:
    meter = ProcessMeter({"postgres": stack.pid("postgres"), "redis": stack.pid("redis")})
    usage = meter.read()
    assert set(usage) == {"flashsim", "postgres", "redis"}
    assert usage["redis"].cpu_percent == 0.0, "there is nothing to compare the first reading with"
    assert min(used.rss_mib for used in usage.values()) > 1


@pytest.mark.slow
def test_the_meter_passes_over_a_service_that_is_gone() -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    assert set(ProcessMeter({"redis": ended.pid}).read()) == {"flashsim"}


@contextmanager
def driver_lookalike() -> Iterator["subprocess.Popen[bytes]"]:
    command = [sys.executable, "-c", "import sys; sys.stdin.read()", "simulation.drive.process"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        yield process


@pytest.mark.slow
def test_a_process_that_is_started_again_goes_on_under_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_meter, "SCAN_S", 0)
    meter = ProcessMeter({})
    with driver_lookalike() as first:
        assert set(meter.read()) == {"flashsim", "driver 1"}
        with driver_lookalike():
            assert set(meter.read()) == {"flashsim", "driver 1", "driver 2"}
            first.kill()
            first.wait()
            assert set(meter.read()) == {"flashsim", "driver 2"}
            with driver_lookalike():
                assert set(meter.read()) == {"flashsim", "driver 1", "driver 2"}


@contextmanager
def engine_lookalike(folder: Path, *stages: str) -> Iterator["subprocess.Popen[str]"]:
    """A process whose children look like these stages of an engine."""
    module = folder / "engine" / "stages" / "process.py"
    module.parent.mkdir(parents=True, exist_ok=True)
    module.write_text("import sys; sys.stdin.read()")
    commands = [[sys.executable, "-m", "engine.stages.process", stage] for stage in stages]
    start = f"import subprocess, sys; [subprocess.Popen(command) for command in {commands!r}]"
    server = f"{start}; print(flush=True); sys.stdin.read()"
    command, pipe = [sys.executable, "-c", server], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, cwd=folder, text=True) as process:
        assert process.stdout
        process.stdout.readline()
        yield process


@pytest.mark.slow
def test_the_processes_of_each_engine_have_its_number(tmp_path: Path) -> None:
    with engine_lookalike(tmp_path, "front-door", "front-door", "relay") as second:
        with engine_lookalike(tmp_path, "front-door", "relay") as first:
            pids = [first.pid, second.pid]
            meter = ProcessMeter({}, lambda: pids)
            of_second = {"server 2", "front-door 2", "front-door 2.1", "relay 2"}
            of_both = {"flashsim", "server 1", "front-door 1", "relay 1"} | of_second
            assert set(meter.read()) == of_both
        assert set(meter.read_cpu_s()) - {"server 1"} == {"flashsim"} | of_second
        with engine_lookalike(tmp_path, "front-door", "relay") as again:
            pids[0] = again.pid
            assert set(meter.read_cpu_s()) == of_both


def test_the_timeline_begins_with_the_load(settings_without_bus: Settings) -> None:
    probe = Probe(open_stores(services_of(settings_without_bus), []), ProcessMeter({}))
    start_ns = round(START.timestamp()) * 1_000_000_000
    usage = {"relay": Usage(cpu_percent=12.5, rss_mib=40.0)}
    probe.samples = [
        Sample(at_ns=900_000_000, clock_ns=start_ns - 100_000_000, stock_remaining=9),
        Sample(at_ns=1_200_000_000, clock_ns=start_ns + 200_000_000, stock_remaining=8),
        Sample(
            at_ns=1_400_000_000,
            clock_ns=start_ns + 700_000_000,
            processes=usage,
            machine={"stolen_percent": 21.0},
        ),
    ]
    timeline = probe.timeline(1_000_000_000, START)
    assert timeline["t_s"].tolist() == [0.2, 0.4]
    assert timeline["stock_remaining"].isna().tolist() == [False, True]
    assert timeline["cpu_percent relay"].iloc[1] == 12.5
    assert timeline["stolen_percent"].iloc[1] == 21.0
    assert timeline["clock_shift_ms"].tolist() == [0.0, 300.0]
    assert probe.timeline(2_000_000_000, START).empty


def test_the_machine_is_read_from_one_sample_to_the_next(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    stat, pressure = tmp_path / "stat", tmp_path / "pressure" / "cpu"
    stat.write_text("cpu  100 0 50 800 10 0 0 40 7 7\ncpu0 1 2 3\n")
    pressure.write_text("some avg10=5.74 avg60=5.62 avg300=17.94 total=1000\nfull avg10=0.00 total=77\n")
    meter = MachineMeter(tmp_path)
    assert meter.read() == {}, "nothing happened before"
    stat.write_text("cpu  130 0 60 830 10 0 0 70 9 9\ncpu0 1 2 3\n")
    pressure.write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1000\nfull total=99\n")
    assert meter.read() == {"stolen_percent": 30.0, "cpu_pressure_percent": 0.0}
    stat.unlink()
    pressure.write_text("unsupported")
    assert meter.read() == {}
    assert MachineMeter(tmp_path / "elsewhere").read() == {}
