"""What the commands share: where they write, how they talk, how they end."""

import asyncio
import math
import shlex
import sys
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from click.core import ParameterSource

from simulation.record.facts import format_json
from simulation.record.series import SeriesRecord
from simulation.scenario.schema import Scenario
from simulation.signals import run_until_signal
from simulation.target.services import Services

EXIT_CODES: Final = {"pass": 0, "fail": 1, "unknown": 2}
REPORTS: Final = Path("reports")
_NOT_REPEATED: Final = (
    "out", "folder", "as_json", "live", "live_port", "web",
    "admin_token", "redis_url", "amqp_url", "postgres_url",
)  # fmt: skip

T = TypeVar("T")


class Amount(click.FloatRange):
    """A number that is one: neither nan nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises BadParameter."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a number.", param, ctx)
        return number


machines_option = click.option(
    "--machines", type=click.Choice(["1", "3"]), callback=lambda *given: int(given[-1]),
    default="1", show_default=True,
    help="With 3, services are clusters, and faults hit their nodes and machines.",
)  # fmt: skip


def out_option(what: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option --out of a command that writes into a folder of reports/ by default."""
    return click.option(
        "--out", "folder", type=click.Path(path_type=Path, file_okay=False),
        default=lambda: name_folder(what),
        help=f"Folder to write into [default: reports/TIME-{what}].",
    )  # fmt: skip


json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="Write JSON to standard output, and nothing else."
)


def echo_json(value: Any) -> None:
    """Write a value as JSON to standard output."""
    click.echo(format_json(value).decode(), nl=False)


def name_folder(what: str) -> Path:
    """Return a folder in reports/ for what begins now."""
    return REPORTS / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-{what}"


def end_series(series: SeriesRecord, folder: Path, as_json: bool = False) -> NoReturn:
    """List the series, tell where its page is, and end with the exit code of its worst run."""
    list_anew(folder)
    verdicts = [run.verdict for run in series.runs]
    if as_json:
        echo_json({"folder": str(folder), "series": series})
    else:
        click.echo(", ".join(f"{verdicts.count(word)} {word}" for word in EXIT_CODES if word in verdicts))
        click.echo(f"series: {folder / 'series.html'}")
    sys.exit(next((EXIT_CODES[word] for word in ("fail", "unknown") if word in verdicts), 0))


def end_by(summary: Mapping[str, Any], folder: Path, as_json: bool = False) -> NoReturn:
    """List the run, tell its verdict and where its report is, and end with its exit code."""
    from simulation.report.words import describe

    list_anew(folder)
    if as_json:
        echo_json({"folder": str(folder), "summary": summary})
    else:
        click.echo(describe(summary, str(folder)))
        click.echo(f"report: {folder / 'report.html'}")
    sys.exit(EXIT_CODES[summary["verdict"]])


def list_anew(folder: Path) -> None:
    """Write the list of runs again, if the run's folder is in reports/."""
    from simulation.report.index import write_index

    if folder.resolve().parent == REPORTS.resolve():
        write_index(REPORTS)


def repeat_command(**changes: Any) -> str:
    """Return the command line that is running, without what is secret or belongs to this run alone.

    `changes` are other values of options; None leaves one out.
    """
    context = click.get_current_context()
    words = ["flashsim", str(context.info_name)]
    for parameter in context.command.params:
        name = parameter.name or ""
        value = changes.get(name, context.params[name])
        given = name in changes or context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        values = map(str, value if isinstance(value, tuple) else [value])
        if isinstance(parameter, click.Argument):
            words += values
        # 0 is a value, though it equals False.
        elif given and value is not None and value is not False and name not in _NOT_REPEATED:
            option = parameter.opts[0]
            words += [option] if value is True else [word for each in values for word in (option, each)]
    return shlex.join(words)


async def carry_out(
    scenario: Scenario,
    folder: Path,
    live_port: int | None = None,
    command: str | None = None,
    quiet: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Run a scenario in sight, judge it, write its report, and return its summary.

    `live_port` is the port of the live page, 0 a free one, None: no page. `command` repeats the run; None:
    the command that is running does. A `quiet` run is shown on standard error. `options` are those of `run`.
    """
    from rich.console import Console

    from simulation.live.figures import follow
    from simulation.live.page import serve_page
    from simulation.live.terminal import open_view
    from simulation.run import run
    from simulation.verdict import finish_run

    async with serve_page(scenario, live_port) as page:
        if page.url:
            say(f"live page: {page.url}")
        with open_view(scenario, Console(stderr=quiet)) as show:
            watch = follow(scenario, show, page.show)
            await run(scenario, folder, say, watch=watch, command=command or repeat_command(), **options)
        say("judging")
        page.tell("judging", {})
        summary = await asyncio.to_thread(finish_run, folder)
        page.end(summary, folder / "report.html")
    return summary


def run_on_services(work: Callable[[Services], Coroutine[Any, Any, T]], machines: int = 1) -> T:
    """Return the result of `work` on private services of so many machines, which go with it."""
    from simulation.target.engine_process import private_services

    async def work_on_services() -> T:
        say("starting private services")
        async with private_services(say, machines) as services:
            return await work(services)

    return run_until_signal(work_on_services())


def say(line: str) -> None:
    """Tell the person at the terminal; what a program reads goes to standard output."""
    click.echo(f"flashsim: {line}", err=True)
