"""Commands that hand runs, and the forms of files, to other tools."""

from pathlib import Path
from typing import Final

import click

from simulation.record.facts import format_json

FORMATS: Final = ("junit", "csv", "hgrm", "json")


@click.command(short_help="Write a run as JUnit, CSV, HdrHistogram or JSON.")
@click.argument("folder", type=click.Path(path_type=Path), metavar="RUN")
@click.option("--format", "form", required=True, type=click.Choice(FORMATS), help="What to write.")
@click.option(
    "--times", default="accepted.response", show_default=True, metavar="OUTCOME.KIND",
    help="Of hgrm: which times, for example sold_out.service or all.response.",
)  # fmt: skip
@click.option(
    "--out",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to write [default: standard output].",
)
def export(folder: Path, form: str, times: str, file: Path | None) -> None:
    """Write the run in the folder RUN as other tools read it.

    junit: a test case for each rule and threshold, for build servers; of a series, a suite for each run. csv:
    a line for each request. hgrm: HdrHistogram's percentiles, in ms. json: the summary, judged anew.
    """
    from simulation.record.history import read_history
    from simulation.report.exports.hgrm import write_hgrm
    from simulation.report.exports.junit import write_junit
    from simulation.scenario.condition import check_metric
    from simulation.verdict import judge_run, load_run, load_side

    if form == "junit":
        content = write_junit(load_side(folder).runs)
    elif form == "csv":
        content = read_history(folder / "history.parquet").to_csv(index=False).encode()
    elif form == "hgrm":
        try:
            check_metric(f"{times}.p50")
        except ValueError:
            raise click.BadParameter(
                f"{times!r} is not OUTCOME.response or OUTCOME.service", param_hint="--times"
            ) from None
        content = write_hgrm(load_run(folder), times)
    else:
        content = format_json(judge_run(folder))
    if file is None:
        click.echo(content.decode(), nl=False)
        return
    try:
        file.write_bytes(content)
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="--out") from None


@click.command(short_help="Write the JSON Schema of a scenario or a summary.")
@click.argument("name", type=click.Choice(["scenario", "summary"]))
def schema(name: str) -> None:
    """Write the JSON Schema of a scenario, or of summary.json, to standard output."""
    from simulation.report.exports.schemas import write_schema

    click.echo(write_schema(name).decode(), nl=False)
