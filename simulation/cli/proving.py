"""Commands that run the engine many times: under faults, abuse and deliberate bugs, and against the clock."""

import shlex
import sys
from pathlib import Path

import click
import msgspec

from simulation.bench.options import Options, Subject
from simulation.cli.shared import (
    EXIT_CODES,
    NO_VERDICT,
    end_by,
    list_anew,
    name_folder,
    repeat_command,
    run_until_signal,
    say,
)
from simulation.scenario.loading import load_scenario


@click.command()
@click.argument("scenario", default="siege")
@click.option(
    "--requests", type=click.IntRange(1, 10_000_000), default=200_000, show_default=True, metavar="N",
    help="How many hostile requests.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of both.")
@click.option("--duration", type=float, metavar="S", help="Scale the sale to this length.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder [default: reports/TIME-fuzz].")
def fuzz(scenario: str, requests: int, seed: int, duration: float | None, out: Path | None) -> None:
    """Run SCENARIO (default: siege) while hostile clients abuse the front door, and judge what came of both.

    They send malformed and oversized requests, requests hidden in others, bad input and random mutations of
    good ones on raw sockets; they are slow, half there, or go away in the middle. A seed gives the same ones.
    """
    from rich.console import Console

    from simulation.campaign.fuzz import describe_barrage, run_siege
    from simulation.record.hostile import read_siege
    from simulation.verdict import finish_run

    loaded = load_scenario(scenario, seed=seed, duration_s=duration)
    folder = out or name_folder("fuzz")
    run_until_signal(run_siege(loaded, requests, seed, folder, say, repeat_command(), Console()))
    say("judging")
    summary = finish_run(folder)
    list_anew(folder)
    if siege := read_siege(folder):
        click.echo(describe_barrage(siege))
    end_by(summary, folder)


@click.command()
@click.option("--only", multiple=True, metavar="KIND:ON", help="Only this fault, for example kill:redis.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The matrix' folder [default: reports/TIME-matrix]."
)
def matrix(only: tuple[str, ...], out: Path | None) -> None:
    """Do every fault to every component, one to a run, and write a table of how the engine came back.

    Takes about ten minutes; leaves nothing behind but its folder.
    """
    from simulation.campaign.matrix import list_faults, run_matrix

    faults = [fault for fault in list_faults() if not only or f"{fault.kind}:{fault.on}" in only]
    if not faults or len(faults) < len(only):
        known = ", ".join(f"{fault.kind}:{fault.on}" for fault in list_faults())
        raise click.UsageError(f"--only: there are {known}")
    folder = out or name_folder("matrix")
    run_until_signal(run_matrix(faults, folder, say, repeat_command()))
    click.echo((folder / "matrix.md").read_text())
    verdicts = {
        cell["verdict"] for cell in msgspec.json.decode((folder / "matrix.json").read_bytes())["cells"]
    }
    sys.exit(max(EXIT_CODES[verdict] for verdict in verdicts))


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--out", type=click.Path(path_type=Path), help="The result's folder [default: reports/TIME-mutants]."
)
def mutants(names: tuple[str, ...], out: Path | None) -> None:
    """Put deliberate bugs into copies of the engine, one at a time, and see whether the checker finds them.

    Runs all of simulation/proofs/mutations, or those named; each beside a run without it, which must pass.
    Takes about ten minutes; leaves nothing behind but its folder. Exit codes: 0, 1 where a bug is not found,
    2 where it could not be tried.
    """
    from simulation.campaign.mutants import list_mutations, load_mutation, run_mutants

    mutations = [load_mutation(name) for name in dict.fromkeys(names) or list_mutations()]
    folder = out or name_folder("mutants")
    run_until_signal(run_mutants(mutations, folder, say, shlex.join(["flashsim", "mutants", *names])))
    click.echo((folder / "mutants.md").read_text())
    trials = msgspec.json.decode((folder / "mutants.json").read_bytes())["trials"]
    outcomes = {trial["outcome"] for trial in trials}
    sys.exit(1 if "survived" in outcomes else NO_VERDICT if "void" in outcomes else 0)


@click.command()
@click.option("--minutes", type=click.FloatRange(0), default=10.0, show_default=True, help="How long.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The first seed.")
@click.option(
    "--out", type=click.Path(path_type=Path),
    help="Folder of the first run that does not pass [default: reports/TIME-soak].",
)  # fmt: skip
def soak(minutes: float, seed: int, out: Path | None) -> None:
    """Run the chaos scenario seed after seed, and keep the first run that does not pass."""
    from simulation.campaign.series import soak as run_soak

    folder = out or name_folder("soak")
    failed: list[str] = []

    async def work() -> None:
        if summary := await run_soak(minutes, seed, folder, say):
            failed.append(summary["verdict"])

    run_until_signal(work())
    if failed:
        click.echo(f"report: {folder / 'report.html'}")
        sys.exit(EXIT_CODES[failed[0]])


@click.command()
@click.option(
    "--rounds", type=click.IntRange(1, 100),
    help="Rounds, of which the median counts. [default: 3; with --against 15]",
)  # fmt: skip
@click.option(
    "--seconds", type=click.FloatRange(1, 600), default=3, show_default=True,
    help="Length of each measurement.",
)  # fmt: skip
@click.option(
    "--only", multiple=True, metavar="SUBJECT", type=click.Choice([*map(str, Subject)]),
    help=f"Measure only this; may be given more than once: {', '.join(Subject)}.",
)  # fmt: skip
@click.option(
    "--against", metavar="WORKTREE", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Compare the engine with that of another checkout, and measure nothing else.",
)  # fmt: skip
@click.option(
    "--out", type=click.Path(path_type=Path), help="The run's folder [default: reports/TIME-bench]."
)
def bench(
    rounds: int | None, seconds: float, only: tuple[str, ...], against: Path | None, out: Path | None
) -> None:
    """Measure engine, baselines and driver against each other, and how the engine's cost grows.

    Takes about ten minutes and both cores of a small machine; leaves nothing behind but its folder.
    """
    from simulation.bench.run import run_bench

    if only and against:
        raise click.UsageError("--only and --against exclude each other")
    options = Options(
        rounds=rounds or (15 if against else 3),
        seconds=seconds,
        subjects=frozenset(map(Subject, only)) or frozenset(Subject),
        against=against,
    )
    folder = out or name_folder("bench")
    run_until_signal(run_bench(options, folder, say, repeat_command()))
    click.echo((folder / "bench.md").read_text())
