"""What the commands share: where they write, how they talk, how they are interrupted, how they end."""

import asyncio
import shlex
import signal
import sys
from collections.abc import Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn, TypeVar

import click
from click.core import ParameterSource

from simulation.errors import RunError

EXIT_CODES: Final = {"pass": 0, "fail": 1, "unknown": 2}
NO_VERDICT: Final = 2
REPORTS: Final = Path("reports")
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_NOT_REPEATED: Final = (
    "out", "live", "live_port", "web", "web_port", "admin_token", "redis_url", "amqp_url", "postgres_url"
)  # fmt: skip

T = TypeVar("T")


def name_folder(what: str) -> Path:
    """A folder in reports/ for what begins now."""
    return REPORTS / f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%SZ}-{what}"


def end_by(summary: Mapping[str, Any], folder: Path) -> NoReturn:
    """Tells the verdict of a run and where its report is, and ends with its exit code."""
    from simulation.report.words import describe

    click.echo(describe(summary))
    click.echo(f"report: {folder / 'report.html'}")
    sys.exit(EXIT_CODES[summary["verdict"]])


def list_anew(folder: Path) -> None:
    """Rewrites the list of runs, where the run is one of reports/."""
    from simulation.report.index import write_index

    if folder.resolve().parent == REPORTS.resolve():
        write_index(REPORTS)


def repeat_command() -> str:
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


def run_until_signal(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; SIGINT or SIGTERM cancels it, once, so that it can stop what it started."""

    async def guarded() -> T:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            for number in _SIGNALS:  # a second signal must not cut the stopping short
                loop.add_signal_handler(number, say, "stopping already")
            say("stopping")
            task.cancel()

        for number in _SIGNALS:
            loop.add_signal_handler(number, cancel)
        return await task

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        raise RunError("interrupted: there is no verdict") from None


def say(line: str) -> None:
    """Tells the person at the terminal; what a program reads goes to standard output."""
    click.echo(f"flashsim: {line}", err=True)
