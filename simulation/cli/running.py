"""Commands that look at scenarios and run them."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from simulation.cli.shared import end_by, list_anew, name_folder, repeat_command, run_until_signal, say
from simulation.errors import ScenarioError
from simulation.scenario.loading import list_scenarios, load_scenario, parse_override
from simulation.scenario.schema import Scenario

if TYPE_CHECKING:
    from simulation.drive.driver import Drive

F = TypeVar("F", bound=Callable[..., Any])


@click.command("list")
def list_command() -> None:
    """List the scenarios."""
    for name in list_scenarios():
        scenario = load_scenario(name)
        click.echo(f"{name:12} {scenario.duration_s():4.0f} s  {scenario.text}")


@click.command()
@click.argument("scenario", default="spike")
@click.option("--rate", type=float, metavar="RPS", help="Scale the arrival curve to this peak rate.")
@click.option("--duration", type=float, metavar="S", help="Scale the arrival curve to this length.")
@click.option(
    "--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this file as well."
)
def show(scenario: str, rate: float | None, duration: float | None, png: Path | None) -> None:
    """Show the arrival curve of SCENARIO, what it sells, and what it asks for."""
    from simulation.report.preview import draw_preview, preview

    loaded = load_scenario(scenario, rate_rps=rate, duration_s=duration)
    click.echo(preview(loaded))
    if png is not None:
        draw_preview(loaded, png)


_RUN_OPTIONS: Final = (
    click.option(
        "--target", metavar="URL", help="Engine that runs already [default: starts one of its own]."
    ),
    click.option("--rate", type=float, metavar="RPS", help="Scale the arrival curve to this peak rate."),
    click.option("--duration", type=float, metavar="S", help="Scale the arrival curve to this length."),
    click.option("--stock", type=int, metavar="UNITS", help="Stock of the first sale."),
    click.option("--seed", type=int, help="Seed of the plan."),
    click.option(
        "--out", type=click.Path(path_type=Path), help="The run's folder [default: reports/TIME-SCENARIO]."
    ),
    click.option(
        "--set", "changes", multiple=True, metavar="KEY=VALUE",
        help="Change a key of the scenario, for example population.users=1000 or sales.0.limit=2;"
        " repeatable.",
    ),
    click.option(
        "--live", is_flag=True, help="Serve a page on this machine that draws the run as it happens."
    ),
    click.option(
        "--live-port", type=click.IntRange(0, 65_535), metavar="N",
        help="The same, on this port [default: a free one].",
    ),
    click.option("--redis-url", help="Redis of the engine."),
    click.option("--amqp-url", help="RabbitMQ of the engine."),
    click.option("--postgres-url", help="PostgreSQL of the engine."),
    click.option(
        "--admin-token", envvar="FLASHGRID_ADMIN_TOKEN", help="Lets the run open its sales at --target."
    ),
)  # fmt: skip


def run_options(command: F) -> F:
    """Gives a command the options of a run."""
    for option in reversed(_RUN_OPTIONS):
        command = option(command)
    return command


@click.command()
@click.argument("scenario", default="spike")
@run_options
@click.option("--workers", type=int, metavar="N", help="Front-door processes of the run's own engine.")
def run(scenario: str, workers: int | None, **options: Any) -> None:
    """Run SCENARIO (a name, or a TOML file; default: spike), judge it and write its report.

    The run starts an engine of its own on private services, and leaves nothing behind but its folder. With
    --target it uses one that runs already, and reads the final state from that engine's services: those given
    here, else those of FLASHGRID_REDIS_URL and the like, else those that .flashgrid says run on this machine.
    Without them the verdict is unknown. With service URLs and no --target, the run's own engine uses these.
    """
    changes = {} if workers is None else {"engine.workers": workers}
    if changes and options["target"]:
        raise click.UsageError("--workers is for the run's own engine, not for one at --target")
    _carry_out(_load(scenario, changes, **options), **options)


@click.command()
@click.argument("scenario", default="spike")
@run_options
@click.option(
    "--processes", type=click.IntRange(1, 64), metavar="N",
    help="Processes that send; from 2 on a master with N workers [default: the scenario's driver.processes].",
)  # fmt: skip
@click.option("--web", is_flag=True, help="Serve Locust's own page on this machine while the load lasts.")
@click.option(
    "--web-port", type=click.IntRange(0, 65_535), metavar="PORT",
    help="Port of that page; 0 is a free one [default: 8089].",
)  # fmt: skip
@click.option("--master", is_flag=True, help="Wait for workers that are started elsewhere, with --worker.")
@click.option("--workers", type=click.IntRange(1, 64), metavar="N", help="How many the master waits for.")
@click.option(
    "--bind", default="127.0.0.1", show_default=True, metavar="HOST", help="Where the master waits."
)
@click.option(
    "--worker", is_flag=True, help="Send what a master deals; it knows the scenario and the engine."
)
@click.option(
    "--master-host", default="127.0.0.1", show_default=True, metavar="HOST", help="Where a worker finds it."
)
@click.option(
    "--port", type=click.IntRange(1, 65_535), default=5557, show_default=True, help="The master's port."
)
@click.option(
    "--wait", type=click.FloatRange(1, 3_600), default=60, show_default=True, metavar="S",
    help="Longest wait of a master for its workers, and of a worker for its master.",
)  # fmt: skip
def locust(
    scenario: str,
    processes: int | None,
    web: bool,
    web_port: int | None,
    master: bool,
    workers: int | None,
    bind: str,
    worker: bool,
    master_host: str,
    port: int,
    wait: float,
    **options: Any,
) -> None:
    """Run SCENARIO like `flashsim run`, but let Locust send its requests.

    For a second opinion by a driver that is not Flashgrid's, for Locust's page, and for loads that take more
    than one machine: start `flashsim locust --master --workers N --bind HOST --target URL` on one, and
    `flashsim locust --worker --master-host HOST` on the others. It is the same plan, open loop and record. A
    process of Locust keeps up with a few thousand requests/s, the driver of `flashsim run` with many more; a
    load that is late is judged invalid, as ever.
    """
    from simulation.drive.locust.driver import Locust, work
    from simulation.drive.locust.job import LOOPBACK

    if worker and master:
        raise click.UsageError("give either --master or --worker")
    if worker:
        say(f"working for the master at {master_host}:{port}")
        run_until_signal(work(master_host, port, wait))
        say("the load is over")
        return
    if master != (workers is not None):
        raise click.UsageError("--master needs --workers N, and the other way round")
    if master and processes is not None:
        raise click.UsageError("--processes starts workers here, --master waits for others: give one")
    count = workers or processes
    loaded = _load(scenario, {} if count is None else {"driver.processes": count}, **options)
    if master and any(sale.starts_in_s is not None for sale in loaded.sales):
        raise ScenarioError("a sale that opens at a set time can't wait for workers: use --processes")
    if master and bind != LOOPBACK and not options["target"]:
        say("the run's own engine is for workers on this machine; give --target for others")
    driver = Locust(
        say=say,
        awaits_workers=master,
        bind=bind,
        port=port if master else 0,
        web_port=8089 if web and web_port is None else web_port,
        wait_s=wait,
    )
    _carry_out(loaded, driver.drive, suffix="-locust", **options)


def _load(
    scenario: str,
    overrides: dict[str, Any],
    *,
    changes: tuple[str, ...],
    rate: float | None,
    duration: float | None,
    stock: int | None,
    seed: int | None,
    **_: Any,
) -> Scenario:
    """The scenario as the options of a run change it."""
    changed = dict(map(parse_override, changes)) | overrides
    return load_scenario(scenario, changed, rate_rps=rate, duration_s=duration, stock=stock, seed=seed)


def _carry_out(
    loaded: Scenario,
    driver: "Drive | None" = None,
    *,
    suffix: str = "",
    target: str | None,
    out: Path | None,
    live: bool,
    live_port: int | None,
    redis_url: str | None,
    amqp_url: str | None,
    postgres_url: str | None,
    admin_token: str | None,
    **_: Any,
) -> NoReturn:
    """Runs a scenario as the options say, judges it, writes its report, and ends with its exit code."""
    # Late, since pandas and rich take a second that help and errors of use need not wait for.
    from rich.console import Console

    from simulation.drive.driver import drive
    from simulation.live.terminal import LiveView
    from simulation.run import find_target
    from simulation.run import run as run_scenario
    from simulation.target.services import check_services
    from simulation.verdict import finish_run

    folder = out or name_folder(f"{loaded.name}{suffix}")
    aim = None
    services = check_services(redis_url, amqp_url, postgres_url)
    if target:
        aim = find_target(target, admin_token, services, loaded)
        if aim.services is None:
            say(
                "the target's services are not known, so the verdict will be unknown;"
                " give --redis-url and --postgres-url, and --amqp-url if it has a bus"
            )
    command = repeat_command()

    async def work() -> dict[str, Any]:
        async with AsyncExitStack() as cleanup:
            page = None
            if live or live_port is not None:
                from simulation.live.page import serve_page

                page = await cleanup.enter_async_context(serve_page(loaded, live_port or 0))
                say(f"live page: {page.url}")
            with LiveView(loaded, Console(), page.show if page else None) as view:
                await run_scenario(
                    loaded,
                    folder,
                    say,
                    watch=view.update,
                    target=aim,
                    services=services,
                    command=command,
                    driver=driver or drive,
                )
            say("judging")
            if page is not None:
                page.judge()
            summary = await asyncio.to_thread(finish_run, folder)
            if page is not None:
                page.end(summary, folder / "report.html")
            return summary

    summary = run_until_signal(work())
    list_anew(folder)
    end_by(summary, folder)
