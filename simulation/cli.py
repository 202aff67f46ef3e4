"""The command `flashsim`: runs scenarios, and judges and reports what they recorded."""

import asyncio
import logging
import shlex
import signal
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Final, ParamSpec

import click
import msgspec
from click.core import ParameterSource

from engine.errors import FlashgridError
from simulation.bench.options import QUICK, Options, Sizes, Subject
from simulation.condition import parse_change
from simulation.errors import RunError, SimulationError
from simulation.scenario import list_scenarios, load_scenario, parse_override

EXIT_CODES: Final = {"pass": 0, "fail": 1, "unknown": 2}
NO_VERDICT: Final = 2
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_NOT_REPEATED: Final = ("out", "admin_token", "redis_url", "amqp_url", "postgres_url")
REPORTS: Final = Path("reports")

P = ParamSpec("P")


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Lets a command end with exit code 2 and one clear line where something is not as it should be."""

    @wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (FlashgridError, SimulationError) as error:
            click.echo(f"flashsim: {error}", err=True)
            sys.exit(NO_VERDICT)

    return guarded


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="flashgrid")
def main() -> None:
    """Flashsim drives simulated crowds at a Flashgrid engine and judges every purchase.

    Exit codes: 0 pass, 1 fail, 2 unknown, invalid, or an error of use.
    """
    # A probe that can't read leaves a gap; its client library need not tell of it as well.
    logging.basicConfig(level=logging.ERROR)


@main.command("list")
@one_line_errors
def list_command() -> None:
    """List the scenarios."""
    for name in list_scenarios():
        scenario = load_scenario(name)
        click.echo(f"{name:12} {scenario.duration_s():4.0f} s  {scenario.text}")


@main.command()
@click.argument("scenario", default="spike")
@click.option("--rate", type=float, metavar="RPS", help="Scale the arrival curve to this peak rate.")
@click.option("--duration", type=float, metavar="S", help="Scale the arrival curve to this length.")
@click.option(
    "--png", type=click.Path(path_type=Path, dir_okay=False), help="Draw it into this file as well."
)
@one_line_errors
def show(scenario: str, rate: float | None, duration: float | None, png: Path | None) -> None:
    """Show the arrival curve of SCENARIO, what it sells, and what it asks for."""
    from simulation.preview import draw_preview, preview

    loaded = load_scenario(scenario, rate_rps=rate, duration_s=duration)
    click.echo(preview(loaded))
    if png is not None:
        draw_preview(loaded, png)


@main.command()
@click.argument("scenario", default="spike")
@click.option("--target", metavar="URL", help="Engine that runs already [default: starts one of its own].")
@click.option("--rate", type=float, metavar="RPS", help="Scale the arrival curve to this peak rate.")
@click.option("--duration", type=float, metavar="S", help="Scale the arrival curve to this length.")
@click.option("--stock", type=int, metavar="UNITS", help="Stock of the first sale.")
@click.option("--seed", type=int, help="Seed of the plan.")
@click.option("--workers", type=int, metavar="N", help="Front-door processes of the run's own engine.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder [default: reports/TIME-SCENARIO]."
)
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE",
    help="Change a key of the scenario, for example population.users=1000 or sales.0.limit=2; repeatable.",
)  # fmt: skip
@click.option("--redis-url", help="Redis of the engine.")
@click.option("--amqp-url", help="RabbitMQ of the engine.")
@click.option("--postgres-url", help="PostgreSQL of the engine.")
@click.option(
    "--admin-token", envvar="FLASHGRID_ADMIN_TOKEN", help="Lets the run open its sales at --target."
)  # fmt: skip
@one_line_errors
def run(
    scenario: str,
    target: str | None,
    rate: float | None,
    duration: float | None,
    stock: int | None,
    seed: int | None,
    workers: int | None,
    out: Path | None,
    changes: tuple[str, ...],
    redis_url: str | None,
    amqp_url: str | None,
    postgres_url: str | None,
    admin_token: str | None,
) -> None:
    """Run SCENARIO (a name, or a TOML file; default: spike), judge it and write its report.

    The run starts an engine of its own on private services, and leaves nothing behind but its folder. With
    --target it uses one that runs already, and reads the final state from that engine's services: those given
    here, else those of FLASHGRID_REDIS_URL and the like, else those that .flashgrid says run on this machine.
    Without them the verdict is unknown. With service URLs and no --target, the run's own engine uses these.
    """
    # Late, since pandas and rich take a second that help and errors of use need not wait for.
    from rich.console import Console

    from simulation.live import LiveView
    from simulation.record import describe, finish_run
    from simulation.run import find_target
    from simulation.run import run as run_scenario
    from simulation.services import check_services

    overrides = dict(map(parse_override, changes))
    if workers is not None:
        if target:
            raise click.UsageError("--workers is for the run's own engine, not for one at --target")
        overrides["engine.workers"] = workers
    loaded = load_scenario(scenario, overrides, rate_rps=rate, duration_s=duration, stock=stock, seed=seed)
    folder = out or REPORTS / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-{loaded.name}"
    aim = None
    services = check_services(redis_url, amqp_url, postgres_url)
    if target:
        aim = find_target(target, admin_token, services, loaded)
        if aim.services is None:
            _say(
                "the target's services are not known, so the verdict will be unknown;"
                " give --redis-url and --postgres-url, and --amqp-url if it has a bus"
            )
    with LiveView(loaded, Console()) as view:
        work = run_scenario(
            loaded, folder, view, _say, target=aim, services=services, command=_repeat_command()
        )
        _run_until_signal(work)
    _say("judging")
    summary = finish_run(folder)
    _list_anew(folder)
    click.echo(describe(summary))
    click.echo(f"report: {folder / 'report.html'}")
    sys.exit(EXIT_CODES[summary["verdict"]])


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@one_line_errors
def verify(folder: Path) -> None:
    """Judge again what a run recorded in its folder RUN, and show every check. Writes nothing."""
    from simulation.record import describe, judge_run

    summary = judge_run(folder)
    for check in summary["checks"] + summary["thresholds"]:
        mark = {True: "holds", False: "BROKEN", None: "unknown"}[check["holds"]]
        click.echo(f"{mark:8} {check['name']}: {check['detail']}")
    click.echo(describe(summary))
    sys.exit(EXIT_CODES[summary["verdict"]])


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@one_line_errors
def report(folder: Path) -> None:
    """Judge again what a run recorded in its folder RUN, and write its summary, plots and report anew."""
    from simulation.record import finish_run

    finish_run(folder)
    _list_anew(folder)
    click.echo(f"report: {folder / 'report.html'}")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=REPORTS)
@one_line_errors
def index(folder: Path) -> None:
    """Write the page that lists the runs in FOLDER (default: reports)."""
    from simulation.index import write_index

    click.echo(f"index: {write_index(folder)}")


@main.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option(
    "--fail-if", "changes", multiple=True, metavar="CHANGE",
    help="End with exit code 1 if this is true of a run against the first, for example"
    " 'accepted.response.p99 > +10%'; repeatable.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), help="The page [default: reports/comparison.html]."
)  # fmt: skip
@one_line_errors
def compare(folders: tuple[Path, ...], changes: tuple[str, ...], out: Path | None) -> None:
    """Compare runs with the first of them: a table, and a page with plots.

    Shows how every time and count changed, and how sure that is. Exit codes: 0, 1 where a --fail-if is true,
    2 where one could not be measured.
    """
    from rich.console import Console

    from simulation.comparison import METRICS, judge_change, load_run
    from simulation.comparison import compare as compare_runs
    from simulation.comparison_report import MOST_RUNS, make_table, write_comparison

    if not 2 <= len(folders) <= MOST_RUNS:
        raise click.UsageError(f"give 2 to {MOST_RUNS} runs")
    try:
        conditions = [parse_change(text) for text in changes]
    except ValueError as error:
        raise click.UsageError(f"--fail-if: {error}") from None
    runs = [load_run(folder) for folder in folders]
    metrics = dict.fromkeys([*METRICS, *(condition.metric for condition in conditions)])
    rows = compare_runs(runs, list(metrics))
    judged = [(str(condition), judge_change(condition, rows)) for condition in conditions]
    page = out or REPORTS / "comparison.html"
    write_comparison(runs, rows, judged, page)
    screen = Console()
    if not screen.is_terminal:
        screen.width = 60 + 40 * len(runs)  # a file or a pipe has no edge to wrap at
    screen.print(make_table(runs, rows))
    for text, broken in judged:
        click.echo(f"{'unknown' if broken is None else 'TRUE' if broken else 'false':8} fail if {text}")
    click.echo(f"comparison: {page}")
    outcomes = [broken for _, broken in judged]
    sys.exit(1 if True in outcomes else NO_VERDICT if None in outcomes else 0)


@main.command()
@click.option(
    "--rounds", type=click.IntRange(1, 100), help="Rounds, of which the median counts. [default: 3]"
)
@click.option("--seconds", type=click.FloatRange(1, 600), help="Length of each measurement. [default: 3]")
@click.option(
    "--only", multiple=True, metavar="SUBJECT", type=click.Choice([*map(str, Subject)]),
    help=f"Measure only this; may be given more than once: {', '.join(Subject)}.",
)  # fmt: skip
@click.option("--quick", is_flag=True, help="One round of one second each, small sizes.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder [default: reports/TIME-bench]."
)
@one_line_errors
def bench(
    rounds: int | None, seconds: float | None, only: tuple[str, ...], quick: bool, out: Path | None
) -> None:
    """Measure engine, baselines and driver against each other, and how the engine's cost grows.

    Takes about ten minutes and both cores of a small machine; leaves nothing behind but its folder.
    """
    from simulation.bench.run import run_bench

    options = Options(
        rounds=rounds or (1 if quick else 3),
        seconds=seconds or (1 if quick else 3),
        subjects=frozenset(map(Subject, only)) or frozenset(Subject),
        sizes=QUICK if quick else Sizes(),
    )
    folder = out or REPORTS / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-bench"
    _run_until_signal(run_bench(options, folder, _say, _repeat_command()))
    click.echo((folder / "bench.md").read_text())


@main.command()
@click.option("--only", multiple=True, metavar="KIND:ON", help="Only this fault, for example kill:redis.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The matrix' folder [default: reports/TIME-matrix]."
)
@one_line_errors
def matrix(only: tuple[str, ...], out: Path | None) -> None:
    """Do every fault to every component, one to a run, and write a table of how the engine came back.

    Takes about ten minutes; leaves nothing behind but its folder.
    """
    from simulation.matrix import list_faults, run_matrix

    faults = [fault for fault in list_faults() if not only or f"{fault.kind}:{fault.on}" in only]
    if not faults or len(faults) < len(only):
        known = ", ".join(f"{fault.kind}:{fault.on}" for fault in list_faults())
        raise click.UsageError(f"--only: there are {known}")
    folder = out or REPORTS / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-matrix"
    _run_until_signal(run_matrix(faults, folder, _say, _repeat_command()))
    click.echo((folder / "matrix.md").read_text())
    verdicts = {
        cell["verdict"] for cell in msgspec.json.decode((folder / "matrix.json").read_bytes())["cells"]
    }
    sys.exit(max(EXIT_CODES[verdict] for verdict in verdicts))


@main.command()
@click.option("--minutes", type=click.FloatRange(0), default=10.0, show_default=True, help="How long.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The first seed.")
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Folder of the first run that does not pass [default: reports/TIME-soak].",
)  # fmt: skip
@one_line_errors
def soak(minutes: float, seed: int, out: Path | None) -> None:
    """Run the chaos scenario seed after seed, and keep the first run that does not pass."""
    from simulation.series import soak as run_soak

    folder = out or REPORTS / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-soak"
    failed: list[str] = []

    async def work() -> None:
        if summary := await run_soak(minutes, seed, folder, _say):
            failed.append(summary["verdict"])

    _run_until_signal(work())
    if failed:
        click.echo(f"report: {folder / 'report.html'}")
        sys.exit(EXIT_CODES[failed[0]])


def _list_anew(folder: Path) -> None:
    """Rewrites the list of runs, where the run is one of reports/."""
    from simulation.index import write_index

    if folder.resolve().parent == REPORTS.resolve():
        write_index(REPORTS)


def _repeat_command() -> str:
    """The command line that is running, without what is secret or belongs to this run alone."""
    context = click.get_current_context()
    words = ["flashsim", str(context.info_name), *filter(None, [context.params.get("scenario")])]
    for option in context.command.params:
        name = option.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if isinstance(option, click.Option) and given and name not in _NOT_REPEATED:
            values = context.params[name] if option.multiple else [context.params[name]]
            parts = [option.opts[0]] if option.is_flag else None
            words += parts or [word for value in values for word in (option.opts[0], str(value))]
    return shlex.join(words)


def _run_until_signal(work: Coroutine[Any, Any, None]) -> None:
    """Runs `work`; SIGINT or SIGTERM cancels it, once, so that it can stop what it started."""

    async def guarded() -> None:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            for number in _SIGNALS:  # a second signal must not cut the stopping short
                loop.add_signal_handler(number, _say, "stopping already")
            _say("stopping")
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, cancel)
        await task

    try:
        asyncio.run(guarded())
    except asyncio.CancelledError:
        raise RunError("interrupted: there is no verdict") from None


def _say(line: str) -> None:
    click.echo(f"flashsim: {line}", err=True)
