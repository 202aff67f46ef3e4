"""Commands that judge and compare what runs recorded."""

import sys
from pathlib import Path

import click

from simulation.cli.shared import EXIT_CODES, REPORTS, list_anew
from simulation.scenario.condition import parse_change


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
def verify(folder: Path) -> None:
    """Judge again what a run recorded in its folder RUN, and show every check. Writes nothing.

    The exit code is also 1 if a file was changed since, or if summary.json disagrees with the record.
    """
    from simulation.record.manifest import find_contradictions, read_manifest
    from simulation.report.words import describe
    from simulation.verdict import judge_run

    summary = judge_run(folder)
    for check in summary["checks"] + summary["thresholds"]:
        state = check["state"].upper() if check["state"] == "broken" else check["state"]
        click.echo(f"{state:14} {check['name']}: {check['detail']}")
    click.echo(describe(summary))
    if read_manifest(folder) is None:
        click.echo("there is no manifest.json: changes of the files can't be found")
    contradictions = find_contradictions(folder, summary)
    for contradiction in contradictions:
        click.echo(f"CHANGED: {contradiction}")
    sys.exit(EXIT_CODES["fail" if contradictions else summary["verdict"]])


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
def report(folder: Path) -> None:
    """Judge again what a run recorded in its folder RUN, and write its summary, plots and report again."""
    from simulation.verdict import finish_run

    finish_run(folder)
    list_anew(folder)
    click.echo(f"report: {folder / 'report.html'}")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=REPORTS)
def index(folder: Path) -> None:
    """Write the page that lists the runs in FOLDER (default: reports)."""
    from simulation.report.index import write_index

    click.echo(f"index: {write_index(folder)}")


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option(
    "--fail-if", "changes", multiple=True, metavar="CHANGE",
    help="End with exit code 1 if this is true of a run against the first, for example"
    " 'accepted.response.p99 > +10%'; repeatable.",
)  # fmt: skip
@click.option(
    "--out", "page", type=click.Path(path_type=Path), default=REPORTS / "comparison.html", show_default=True,
    help="The page.",
)  # fmt: skip
def compare(folders: tuple[Path, ...], changes: tuple[str, ...], page: Path) -> None:
    """Compare runs with the first of them: a table, and a page with plots.

    Shows how every time and count changed, and how sure that is. Exit codes: 0, 1 if a --fail-if is true, 2
    if one could not be measured.
    """
    from rich.console import Console

    from simulation.judge.comparison import METRICS, judge_change
    from simulation.judge.comparison import compare as compare_runs
    from simulation.report.comparison import MOST_RUNS, make_table, write_comparison
    from simulation.verdict import load_run

    if not 2 <= len(folders) <= MOST_RUNS:
        raise click.UsageError(f"give 2 to {MOST_RUNS} runs")
    try:
        conditions = [parse_change(text) for text in changes]
    except ValueError as error:
        raise click.UsageError(f"--fail-if: {error}") from None
    runs = [load_run(folder) for folder in folders]
    metrics = dict.fromkeys([*METRICS, *(condition.metric for condition in conditions)])
    rows = compare_runs(runs, list(metrics))
    judged = {str(condition): judge_change(condition, rows) for condition in conditions}
    write_comparison(runs, rows, list(judged.items()), page)
    # A file or a pipe has no edge to wrap at.
    screen = Console(width=None if sys.stdout.isatty() else 60 + 40 * len(runs))
    screen.print(make_table(runs, rows))
    for text, broken in judged.items():
        click.echo(f"{'unknown' if broken is None else 'TRUE' if broken else 'false':8} fail if {text}")
    click.echo(f"comparison: {page}")
    sys.exit(1 if True in judged.values() else EXIT_CODES["unknown"] if None in judged.values() else 0)
