"""Commands that judge and compare what runs recorded."""

import sys
from pathlib import Path

import click

from simulation.cli.shared import EXIT_CODES, REPORTS, echo_json, json_option, list_anew
from simulation.scenario.condition import check_metric, parse_change


@click.command(short_help="Judge a run again from its record, and find changed files.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@json_option
def verify(folder: Path, as_json: bool) -> None:
    """Judge again what a run recorded in its folder RUN, and show every check. Writes nothing.

    The exit code is also 1 if a file was changed since, or if summary.json disagrees with the record.
    """
    from simulation.record.manifest import find_contradictions, read_manifest
    from simulation.report.words import describe
    from simulation.verdict import judge_run

    summary = judge_run(folder)
    contradictions = find_contradictions(folder, summary)
    code = EXIT_CODES["fail" if contradictions else summary["verdict"]]
    if as_json:
        echo_json({"summary": summary, "contradictions": contradictions})
        sys.exit(code)
    for check in summary["checks"] + summary["thresholds"]:
        state = check["state"].upper() if check["state"] == "broken" else check["state"]
        click.echo(f"{state:14} {check['name']}: {check['detail']}")
    click.echo(describe(summary, str(folder)))
    if read_manifest(folder) is None:
        click.echo("there is no manifest.json: changes of the files can't be found")
    for contradiction in contradictions:
        click.echo(f"CHANGED: {contradiction}")
    sys.exit(code)


@click.command(
    short_help="Tell the story of an order, request, user or second.",
    context_settings={"ignore_unknown_options": True},  # an order id may begin with a dash
)
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.argument("what", nargs=-1, required=True, metavar="WHAT")
@json_option
def explain(folder: Path, what: tuple[str, ...], as_json: bool) -> None:
    """Tell the story of WHAT in the run of the folder RUN: what was planned, sent, answered, reserved,
    relayed, settled and released, when, and which rules looked at it.

    WHAT is an order id, a request number (17), a user (user 101), or a second (12.5s).
    """
    from simulation.report.story.find import explain as find_story
    from simulation.report.story.find import read_record
    from simulation.report.story.story import write_story
    from simulation.verdict import load_run

    story = find_story(read_record(load_run(folder)), " ".join(what))
    if as_json:
        echo_json(story)
    else:
        click.echo(write_story(story))


@click.command(short_help="Judge a run again, and write its report again.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
def report(folder: Path) -> None:
    """Judge again what a run recorded in its folder RUN, and write its summary, plots and report again.

    Of a series, a benchmark or what the design is worth, write the page again.
    """
    from simulation.bench.page import read_bench, write_page
    from simulation.campaign.worth import draw_again
    from simulation.record.series import SERIES
    from simulation.verdict import finish_run, finish_series

    page = "report.html"
    if (folder / SERIES).exists():
        finish_series(folder)
        page = "series.html"
    elif (folder / "bench.json").exists():
        write_page(read_bench(folder), folder)
        page = "bench.md"
    elif (folder / "worth.json").exists():
        draw_again(folder)
        page = "worth.html"
    else:
        finish_run(folder)
    list_anew(folder)
    click.echo(f"report: {folder / page}")


@click.command(short_help="Write the page that lists all runs.")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=REPORTS)
def index(folder: Path) -> None:
    """Write the page that lists the runs in FOLDER (default: reports)."""
    from simulation.report.index import write_index

    click.echo(f"index: {write_index(folder)}")


@click.command(short_help="Compare runs, or series of runs.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN RUN...")
@click.option(
    "--fail-if", "changes", multiple=True, metavar="CHANGE",
    help="End with exit code 1 if this is true of a run or series against the first, for example"
    " 'accepted.response.p99 > +10%'; of series it must be true of the whole interval; repeatable.",
)  # fmt: skip
@click.option(
    "--primary", metavar="METRIC",
    help="The metric that decides, named before the runs: it is tested alone, and finds smaller changes.",
)  # fmt: skip
@click.option(
    "--out", "page", type=click.Path(path_type=Path, dir_okay=False), default=REPORTS / "comparison.html",
    show_default=True, help="The page.",
)  # fmt: skip
@json_option
def compare(
    folders: tuple[Path, ...], changes: tuple[str, ...], primary: str | None, page: Path, as_json: bool
) -> None:
    """Compare runs, or series of runs, with the first of them: a table, and a page with plots.

    Shows how every time and count changed, how sure that is, and which change so many runs can show. One run
    of each side says nothing of chance: make series with `flashsim run --repeat`. Exit codes: 0, 1 if a
    --fail-if is true, 2 if one could not be measured.
    """
    from rich.console import Console

    from simulation.judge.comparison import compare as compare_values
    from simulation.judge.comparison import judge_change
    from simulation.judge.figures import FIGURES
    from simulation.judge.stalls import find_stalls
    from simulation.report.comparison import (
        MOST_SIDES,
        describe_changes,
        find_obstacles,
        make_table,
        write_comparison,
    )
    from simulation.verdict import load_side

    if not 2 <= len(folders) <= MOST_SIDES:
        raise click.UsageError(f"give 2 to {MOST_SIDES} runs or series")
    try:
        conditions = [parse_change(text) for text in changes]
    except ValueError as error:
        raise click.UsageError(f"--fail-if: {error}") from None
    try:
        named = [] if primary is None else [check_metric(primary)]
    except ValueError as error:
        raise click.UsageError(f"--primary: {error}") from None
    sides = [load_side(folder) for folder in folders]
    metrics = dict.fromkeys([*FIGURES, *named, *(condition.metric for condition in conditions)])
    values = {metric: [[run.measure(metric) for run in side.runs] for side in sides] for metric in metrics}
    marks = {metric: [[run.find_mark(metric) for run in side.runs] for side in sides] for metric in metrics}
    rows = compare_values(values, primary, marks)
    single = [side.runs[0] if len(side.runs) == 1 else None for side in sides]
    stalls = [find_stalls(single[0], run) if single[0] and run else None for run in single[1:]]
    judged = {str(condition): judge_change(condition, rows) for condition in conditions}
    try:
        write_comparison(sides, rows, stalls, list(judged.items()), page, primary)
    except OSError as error:
        raise click.BadParameter(f"{page}: {error.strerror}", param_hint="--out") from None
    said = describe_changes(sides, rows, stalls, primary) + find_obstacles(sides)
    if as_json:
        names = [side.folder for side in sides]
        rows_ = [
            row._asdict() | {"changes": [each and each._asdict() for each in row.changes]} for row in rows
        ]
        echo_json({"sides": names, "page": str(page), "says": said, "fail_if": judged, "rows": rows_})
    else:
        # A file or a pipe has no edge to wrap at.
        screen = Console(width=None if sys.stdout.isatty() else 60 + 70 * len(sides))
        screen.print(make_table(sides, rows))
        for sentence in said:
            click.echo(sentence)
        for text, broken in judged.items():
            click.echo(f"{'unknown' if broken is None else 'TRUE' if broken else 'false':8} fail if {text}")
        click.echo(f"comparison: {page}")
    sys.exit(1 if True in judged.values() else EXIT_CODES["unknown"] if None in judged.values() else 0)
