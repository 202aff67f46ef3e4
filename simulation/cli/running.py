"""Commands that look at scenarios and run them."""

from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any, Final, NoReturn

import click

from simulation.cli.shared import (
    Amount,
    carry_out,
    end_by,
    end_series,
    name_folder,
    repeat_command,
    say,
)
from simulation.errors import ScenarioError
from simulation.scenario.loading import list_scenarios, load_scenario, parse_toml
from simulation.scenario.schema import Scenario
from simulation.signals import run_until_signal

_SCENARIO_OPTIONS: Final = [
    click.Option(["--rate"], type=float, metavar="RPS", help="Scale the arrival curve to this peak rate."),
    click.Option(["--duration"], type=float, metavar="S", help="Scale the arrival curve to this length."),
    click.Option(["--stock"], type=int, metavar="UNITS", help="Stock of the first sale."),
    click.Option(["--seed"], type=int, help="Seed of the plan."),
    click.Option(
        ["--set", "changes"],
        multiple=True,
        metavar="KEY=VALUE",
        help="Change a key of the scenario, for example population.users=1000 or sales.0.limit=2;"
        " population.reads=false leaves that table out; repeatable.",
    ),
]
_RUN_OPTIONS: Final = [
    click.Option(
        ["--target", "targets"], metavar="URL", multiple=True,
        help="Engine that runs already [default: the run starts one]; several front doors with commas"
        " between, or each by an option of its own.",
    ),
    click.Option(
        ["--engine"], metavar="NAME|FILE",
        help="Another engine than Flashgrid, as a TOML file describes it: HTTP contract, tables, processes;"
        " simulation/target/foreign/library has examples, such as textbook.",
    ),
    click.Option(
        ["--witness"], type=click.Choice(["flashgrid", "sql", "http"]),
        help="Who tells what the engine holds at the end: Flashgrid's stores, SQL of the description, or the"
        " engine over HTTP [default: that of the description, else flashgrid].",
    ),
    *_SCENARIO_OPTIONS,
    click.Option(
        ["--out"], type=click.Path(path_type=Path, file_okay=False),
        help="Folder to write into [default: reports/TIME-SCENARIO].",
    ),
    click.Option(
        ["--live"], is_flag=True, help="Serve a page on this machine that shows the run as it goes."
    ),
    click.Option(
        ["--live-port"], type=click.IntRange(0, 65_535), metavar="N",
        help="The same, on this port [default: a free one].",
    ),
    click.Option(["--redis-url"], help="Redis of the engine."),
    click.Option(["--amqp-url"], help="RabbitMQ of the engine."),
    click.Option(["--postgres-url"], help="PostgreSQL of the engine."),
    click.Option(
        ["--json", "as_json"], is_flag=True,
        help="Write the summary as JSON to standard output, and nothing else.",
    ),
    click.Option(
        ["--admin-token"], envvar="FLASHGRID_ADMIN_TOKEN", help="Lets the run open its sales at --target."
    ),
]  # fmt: skip


@click.command("list")
def list_command() -> None:
    """List the scenarios."""
    for name in list_scenarios():
        scenario = load_scenario(name)
        click.echo(f"{name:12} {scenario.duration_s():4.0f} s  {scenario.text}")


@click.command(short_help="Draw a scenario before it is run.", params=[*_SCENARIO_OPTIONS])
@click.argument("scenario", default="spike")
def show(scenario: str, **options: Any) -> None:
    """Show the arrival curve of SCENARIO, what it sells, and what it asks for."""
    from simulation.report.preview import preview

    click.echo(preview(_load(scenario, {}, options)))


@click.command(short_help="Run a scenario, judge it, write its report.", params=[*_RUN_OPTIONS])
@click.argument("scenario", default="spike")
@click.option("--workers", type=int, metavar="N", help="Front-door processes of the run's own engine.")
@click.option(
    "--repeat", type=click.IntRange(2, 1_000), metavar="N",
    help="Make a series of N runs, with one seed after the other, to see what varies by chance.",
)  # fmt: skip
@click.option(
    "--keep-records", is_flag=True,
    help="Keep the whole record of each run of a series [default: of those that do not pass].",
)  # fmt: skip
def run(scenario: str, workers: int | None, repeat: int | None, keep_records: bool, **options: Any) -> None:
    """Run SCENARIO (a name, or a TOML file; default: spike), judge it and write its report.

    The run starts an engine of its own on private services, and leaves nothing behind but its folder. With
    --target it uses an engine that runs already, and reads the final state from that engine's services: those
    given here, else those of FLASHGRID_REDIS_URL and the like, else those that .flashgrid says run on this
    machine. Without them the verdict is unknown. With service URLs and no --target, the run's own engine uses
    these.

    With --engine the run tests another engine, which it starts if its description says how.

    With --repeat it makes a series: a folder for each run, and a page of all of them. The exit code is that
    of the worst run.
    """
    changes = {} if workers is None else {"engine.workers": workers}
    if changes and options["targets"]:
        raise click.UsageError("--workers is for the run's own engine, not for one at --target")
    if keep_records and repeat is None:
        raise click.UsageError("--keep-records is for a series: give --repeat")
    loaded = _load(scenario, changes, options)
    if repeat is None:
        _run_and_end(loaded, loaded.name, options)
    from simulation.campaign.repeat import repeat as repeat_runs

    folder, carry = _prepare(loaded, f"{loaded.name}-series", options)

    async def run_one(seeded: Scenario, place: Path) -> dict[str, Any]:
        command = repeat_command(seed=seeded.seed, repeat=None, keep_records=None)
        return await carry(seeded, place, command=command)

    work = repeat_runs(loaded, repeat, folder, run_one, say, command=repeat_command(), keep=keep_records)
    end_series(run_until_signal(work), folder, options["as_json"])


@click.command(short_help="The same, with the load sent by Locust.", params=[*_RUN_OPTIONS])
@click.argument("scenario", default="spike")
@click.option(
    "--processes", type=click.IntRange(1, 64), metavar="N",
    help="Processes that send; from 2 on a master with N workers [default: the scenario's driver.processes].",
)  # fmt: skip
@click.option(
    "--client", type=click.Choice(["own", "fasthttp"]), default="own", show_default=True,
    help="What sends in Locust's processes: the driver of flashsim run, or Locust's own client, slower and"
    " independent.",
)  # fmt: skip
@click.option("--web", is_flag=True, help="Serve Locust's own page on this machine while the load lasts.")
@click.option(
    "--workers", type=click.IntRange(1, 64), metavar="N",
    help="Be the master of N workers that are started elsewhere, with --worker.",
)  # fmt: skip
@click.option(
    "--bind", default="127.0.0.1", show_default=True, metavar="HOST", help="Where the master waits."
)
@click.option("--worker", is_flag=True, help="Send the share of a master, which knows scenario and engine.")
@click.option(
    "--master-host", default="127.0.0.1", show_default=True, metavar="HOST", help="The worker's master."
)
@click.option(
    "--port", type=click.IntRange(1, 65_535), default=5557, show_default=True, help="The master's port."
)
@click.option(
    "--wait", type=Amount(1, 3_600), default=60, show_default=True, metavar="S",
    help="Longest wait of a master for its workers, and of a worker for its master.",
)  # fmt: skip
def locust(
    scenario: str,
    processes: int | None,
    client: str,
    web: bool,
    workers: int | None,
    bind: str,
    worker: bool,
    master_host: str,
    port: int,
    wait: float,
    **options: Any,
) -> None:
    """Run SCENARIO like `flashsim run`, but let Locust send its requests.

    Use it for a second opinion by another driver (with --client fasthttp Locust's own client sends, reads and
    times every byte), for Locust's page, and for loads that take more than one machine: start
    `flashsim locust --workers N --bind HOST --target URL` on one machine, and
    `flashsim locust --worker --master-host HOST` on the others. Plan, open loop and record are the same. A
    process of Locust sends a few thousand requests/s, the driver of `flashsim run` many more; a load with too
    much lag is not valid.
    """
    from simulation.drive.locust.driver import drive_locust, work

    if workers and (worker or processes):
        raise click.UsageError("--workers waits for other workers: give no --worker and no --processes")
    if worker:
        say(f"working for the master at {master_host}:{port}")
        run_until_signal(work(master_host, port, wait))
        return
    count = workers or processes
    loaded = _load(scenario, {} if count is None else {"driver.processes": count}, options)
    if workers and any(sale.starts_in_s is not None for sale in loaded.sales):
        raise ScenarioError("a sale that opens at a set time can't wait for workers: use --processes")
    driver = partial(
        drive_locust,
        say=say,
        awaits_workers=workers is not None,
        bind=bind,
        port=port if workers else 0,
        web=web,
        wait_s=wait,
        client=client,
    )
    _run_and_end(loaded, f"{loaded.name}-locust", options, driver=driver)


def parse_override(text: str) -> tuple[str, Any]:
    """Return key and value of `key=value`; a value that is not TOML is a plain string.

    Raises ScenarioError where key or `=` is missing, or the value is of no use.
    """
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ScenarioError(f"--set {text}: must be key=value, for example sales.0.stock=500")
    try:
        value.encode()
        return key.strip(), parse_toml(f"value = {value}")["value"]
    except (TOMLDecodeError, KeyError):
        return key.strip(), value.strip()
    except UnicodeEncodeError:
        raise ScenarioError(f"--set {key}: its value is no text in UTF-8") from None
    except ValueError as error:
        raise ScenarioError(f"--set {key}: {error}") from None


def _load(scenario: str, overrides: dict[str, Any], options: dict[str, Any]) -> Scenario:
    """Return the scenario as the options of a run change it."""
    return load_scenario(
        scenario,
        dict(map(parse_override, options["changes"])) | overrides,
        rate_rps=options["rate"],
        duration_s=options["duration"],
        stock=options["stock"],
        seed=options["seed"],
    )


def _run_and_end(scenario: Scenario, name: str, options: dict[str, Any], **driver: Any) -> NoReturn:
    """Run a scenario as the options say, judge it, write its report, and end with its exit code."""
    folder, carry = _prepare(scenario, name, options)
    end_by(run_until_signal(carry(scenario, folder, **driver)), folder, options["as_json"])


def _prepare(
    scenario: Scenario, name: str, options: dict[str, Any]
) -> tuple[Path, Callable[..., Coroutine[Any, Any, dict[str, Any]]]]:
    """Return the folder to write into, and `carry_out` with what the options say."""
    from simulation.run import find_target
    from simulation.target.foreign.engine import find_engine
    from simulation.target.services import check_services
    from simulation.target.witness.witness import NoWitness

    urls = (options["redis_url"], options["amqp_url"], options["postgres_url"])
    engine = find_engine(
        scenario.target.engine if options["engine"] is None else options["engine"],
        options["witness"] or scenario.target.witness,
        urls,
    )
    doors = ",".join(options["targets"]) or scenario.target.url or engine.url or ""
    addresses = tuple(each for door in doors.split(",") if (each := door.strip()))
    services = check_services(*urls) if engine.witness == "flashgrid" or not addresses else None
    target = find_target(addresses, options["admin_token"], services, scenario, engine) if addresses else None
    if target and isinstance(target.witness, NoWitness):
        say("the target's services are not known, so the verdict will be unknown: give --redis-url and so on")
    live_port = 0 if options["live"] and options["live_port"] is None else options["live_port"]
    folder = options["out"] or name_folder(name)
    return folder, partial(
        carry_out,
        live_port=live_port,
        quiet=options["as_json"],
        target=target,
        services=services,
        engine=engine,
    )
