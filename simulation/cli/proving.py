"""Commands that run the engine many times: under faults, abuse and deliberate bugs, and against the clock."""

import sys
from collections.abc import Collection
from pathlib import Path

import click

from simulation.bench.options import Options, Subject
from simulation.cli.shared import (
    EXIT_CODES,
    Amount,
    carry_out,
    end_by,
    list_anew,
    machines_option,
    out_option,
    repeat_command,
    run_on_services,
    say,
)
from simulation.scenario.loading import load_scenario
from simulation.signals import run_until_signal


@click.command(short_help="Hostile requests while a sale runs that must not notice.")
@click.argument("scenario", default="hostile")
@click.option(
    "--requests", type=click.IntRange(1, 10_000_000), default=200_000, show_default=True, metavar="N",
    help="How many hostile requests.",
)  # fmt: skip
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="Seed of both loads.")
@click.option("--duration", type=float, metavar="S", help="Scale the sale to this length.")
@out_option("fuzz")
def fuzz(scenario: str, requests: int, seed: int, duration: float | None, folder: Path) -> None:
    """Run SCENARIO (default: hostile) while hostile clients abuse the front door, and judge both.

    On raw sockets they send malformed and oversized requests, requests hidden in others, bad input and random
    mutations of good requests; they are slow, close half of a connection, or go away. The same seed gives the
    same requests.
    """
    from simulation.campaign.fuzz import HostileDrive

    # Hostile clients open sales as well: with a token, all that they try would end there.
    loaded = load_scenario(scenario, {"engine.dev": True}, seed=seed, duration_s=duration)
    summary = run_on_services(
        lambda services: carry_out(
            loaded,
            folder,
            services=services,
            driver=HostileDrive(loaded, requests, seed, folder, services, say).drive,
        )
    )
    end_by(summary, folder)


@click.command(short_help="Every fault on every component, or every two of them.")
@click.option("--pairs", is_flag=True, help="Do two faults to a run: every two kinds at least once.")
@click.option(
    "--only", multiple=True, metavar="KIND:ON",
    help="Only this fault, for example kill:redis; with --pairs only these kinds, for example kill+wipe.",
)  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(0),
    help="With --pairs: seed of the order, the components and the time between two faults. [default: 1]",
)  # fmt: skip
@machines_option
@out_option("matrix")
def matrix(pairs: bool, only: tuple[str, ...], seed: int | None, machines: int, folder: Path) -> None:
    """Do every fault to every component, one to a run, and write a table of how the engine recovered.

    Takes ten minutes, with --pairs an hour, on three machines half an hour. Leaves nothing but its folder.
    Exit codes: 0 if every run passes, 1, or 2 where a verdict is unknown.
    """
    from simulation.campaign.matrix import list_faults, run_matrix
    from simulation.campaign.pairs import list_pairs, run_pairs

    if pairs and machines > 1:
        raise click.UsageError("--pairs is for one machine")
    if pairs:
        kinds = _choose(list_pairs(), only)
        paired = run_on_services(
            lambda services: run_pairs(
                kinds, 1 if seed is None else seed, folder, services, say, repeat_command()
            )
        )
        click.echo((folder / "pairs.md").read_text())
        list_anew(folder)
        sys.exit(max(EXIT_CODES[pair.verdict] for pair in paired.pairs))
    if seed is not None:
        raise click.UsageError("--seed is for --pairs")
    faults = {f"{fault.kind}:{fault.on}": fault for fault in list_faults(machines)}
    chosen = [faults[name] for name in _choose(list(faults), only)]
    result = run_on_services(
        lambda services: run_matrix(chosen, folder, services, say, repeat_command(), machines), machines
    )
    click.echo((folder / "matrix.md").read_text())
    list_anew(folder)
    sys.exit(max(EXIT_CODES[cell.verdict] for cell in result.cells))


def _choose(names: list[str], only: Collection[str]) -> list[str]:
    """Return those of the names that --only names, all without it; the kinds of a pair in either order."""
    wanted = ["+".join(sorted(name.split("+"))) for name in only]
    known = {"+".join(sorted(name.split("+"))): name for name in names}
    if unknown := [name for name, key in zip(only, wanted, strict=True) if key not in known]:
        raise click.BadParameter(
            f"there is no {unknown[0]!r}; there are {', '.join(names)}", param_hint="--only"
        )
    return [name for key, name in known.items() if not only or key in wanted]


@click.command(short_help="Deliberate bugs, which the judge must find.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@out_option("mutants")
def mutants(names: tuple[str, ...], folder: Path) -> None:
    """Put deliberate bugs into copies of the engine, one at a time, and see whether the judge finds them.

    Runs all of simulation/campaign/mutations, or those named, each beside a run without it, which must pass,
    and tells which bugs each rule alone catches. Takes about half an hour; leaves nothing behind but its
    folder. Exit codes: 0, 1 if a bug is not found, 2 if it could not be tried.
    """
    from simulation.campaign.mutants import run_mutants, tell_coverage
    from simulation.campaign.mutation import list_mutations, load_mutation

    mutations = [load_mutation(name) for name in dict.fromkeys(names) or list_mutations()]
    result = run_on_services(lambda services: run_mutants(mutations, folder, services, say, repeat_command()))
    click.echo((folder / "mutants.md").read_text())
    list_anew(folder)
    tell_coverage(result, say)
    outcomes = {trial.outcome for trial in result.trials}
    sys.exit(1 if "survived" in outcomes else EXIT_CODES["unknown"] if "void" in outcomes else 0)


@click.command(short_help="The same faults at the textbook and at Flashgrid.")
@click.option(
    "--only", multiple=True, metavar="CASE", help="Only this case, for example 'bus restarted'; repeatable."
)
@click.option(
    "--rate", type=Amount(10, 5_000), default=600, show_default=True, metavar="RPS",
    help="Purchases a second: what the slower engine can do.",
)  # fmt: skip
@out_option("worth")
def worth(only: tuple[str, ...], rate: float, folder: Path) -> None:
    """Do the same faults to the textbook architecture and to Flashgrid, and write what the design is worth.

    Takes about ten minutes; keeps the record of each run. Exit codes: those of Flashgrid's runs.
    """
    from simulation.campaign.worth import CASES, run_worth

    names = _choose(list(CASES), only)
    result = run_on_services(lambda services: run_worth(names, rate, folder, services, say, repeat_command()))
    click.echo((folder / "worth.md").read_text())
    list_anew(folder)
    sys.exit(max(EXIT_CODES[case.flashgrid.verdict] for case in result.cases))


@click.command(short_help="Random faults, seed after seed.")
@click.option("--minutes", type=Amount(0), default=10.0, show_default=True, help="How long.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The first seed.")
@machines_option
@out_option("soak")
def soak(minutes: float, seed: int, machines: int, folder: Path) -> None:
    """Run chaos, or cluster-chaos, seed after seed, until one does not pass, and write a table of all.

    A seed that can't be run is told, and the next one goes on. Exit codes: 0 if every seed passes, 1, or 2
    where a verdict is unknown.
    """
    from simulation.campaign.suite import soak as run_soak

    command = repeat_command()
    scenario = "chaos" if machines == 1 else "cluster-chaos"
    result, failed = run_on_services(
        lambda services: run_soak(scenario, minutes, seed, folder, services, say, command), machines
    )
    list_anew(folder)
    click.echo(f"table: {folder / 'soak.html'}")
    if failed:
        end_by(failed.summary, failed.folder)
    sys.exit(max(EXIT_CODES[run.verdict] for run in result.runs))


@click.command(short_help="Every order of steps in a model of the protocol.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--large", is_flag=True, help="Also within bounds that take minutes to hours.")
@click.option("--bugs", is_flag=True, help="Also with deliberate bugs, which must be found.")
@click.option("--within", "within_s", type=Amount(1), metavar="S", help="Longest time of a search.")
@out_option("model")
def model(names: tuple[str, ...], large: bool, bugs: bool, within_s: float | None, folder: Path) -> None:
    """Try every order of steps in the model of the protocol (simulation/protocol/protocol.pml).

    Makes the searches of simulation/protocol/model.toml, or those named, and tells the steps to what is
    broken. Needs spin and gcc. Exit codes: 0, 1 if something is found that must not be, or not found that
    must be.
    """
    from simulation.protocol.model import load_checks, search_all

    checks = {check.name: check for check in load_checks()}
    if unknown := [name for name in names if name not in checks]:
        raise click.BadParameter(f"there is no {unknown[0]!r}; there are {', '.join(checks)}")
    chosen = [checks[name] for name in names] or [
        check for check in checks.values() if (large or not check.large) and (bugs or not check.mutant)
    ]
    result = search_all(chosen, folder, say, repeat_command(), within_s)
    for found in result.results:
        if names or not found.is_right:
            click.echo("\n".join([f"{found.check.name}: {found.broken}", *found.steps]))
    sys.exit(0 if all(found.is_right for found in result.results) else 1)


@click.command(short_help="The engine's real steps in any order.")
@click.option("--minutes", type=Amount(0), default=10.0, show_default=True, help="How long.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The first seed.")
@click.option("--bugs", is_flag=True, help="Try deliberate bugs instead.")
@click.option("--only", multiple=True, metavar="BUG", help="Only this bug.")
@click.option("--examples", type=click.IntRange(1), default=300, show_default=True, help="Most for a bug.")
@out_option("interleave")
def interleave(
    minutes: float, seed: int, bugs: bool, only: tuple[str, ...], examples: int, folder: Path
) -> None:
    """Take the engine's real steps in any order, with crashes, lost answers and lost memories in between.

    Each 25 examples have a seed, which gives the same examples again. What is wrong is made short, and told.
    With --bugs named orders are played, too, and a table says by what each bug shows. It is written after
    each 25 examples. Exit codes: 0, 1 if something is wrong (or a bug does not show), 2 if a signal ended it.
    """
    from simulation.protocol.bugs import Attempts, attempt, load_bugs, write_attempts
    from simulation.protocol.hunt import Hunts, hunt, private_stack, write_hunts

    if bugs or only:
        attempts, names = Attempts(command=repeat_command()), _choose(list(load_bugs()), only)
        with private_stack() as stack:
            for name in names:
                attempts.bugs.append(attempt(name, stack, examples, seed, shrink=bool(only)))
                say(attempts.bugs[-1].tell())
                write_attempts(attempts, folder)
        sys.exit(0 if attempts.shown == len(attempts.bugs) else 1)
    command = repeat_command()
    total = hunt(minutes, seed, say, lambda known: write_hunts(Hunts(command=command, hunts=[known]), folder))
    list_anew(folder)
    if total.faults:
        click.echo("\n".join([*total.story, "", *total.program, "", *total.faults]))
        click.echo(f"again: flashsim interleave --minutes 0 --seed {total.seed}")
        sys.exit(1)
    if total.is_stopped:
        click.echo(f"stopped at seed {total.seed}: nothing was wrong with {total.examples:,} examples before")
        sys.exit(EXIT_CODES["unknown"])
    click.echo(f"nothing is wrong with seeds {seed} to {total.seed}: {total.examples:,} examples")


@click.command(short_help="Measure engine, baselines and driver side by side.")
@click.option(
    "--rounds", type=click.IntRange(1, 100),
    help="Rounds, of which the median counts. [default: 3; with --against 15]",
)  # fmt: skip
@click.option("--seconds", type=Amount(1, 600), default=3, show_default=True, help="Of each measurement.")
@click.option(
    "--only", multiple=True, metavar="SUBJECT", type=click.Choice([*map(str, Subject)]),
    help=f"Measure only this; may be given more than once: {', '.join(Subject)}.",
)  # fmt: skip
@click.option(
    "--against", metavar="WORKTREE", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Compare the engine with that of another checkout, and measure nothing else.",
)  # fmt: skip
@click.option(
    "--summary", metavar="FOLDER", type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Write the README's tables from what a run left in this folder, and measure nothing.",
)  # fmt: skip
@out_option("bench")
def bench(
    rounds: int | None,
    seconds: float,
    only: tuple[str, ...],
    against: Path | None,
    summary: Path | None,
    folder: Path,
) -> None:
    """Measure engine, baselines and driver against each other, and how the engine's cost grows.

    Takes about a quarter of an hour and both cores of a small machine; leaves nothing behind but its folder.
    """
    from simulation.bench.page import read_bench, render
    from simulation.bench.run import run_bench

    if summary:
        click.echo(render(read_bench(summary), template="summary.md"))
        return
    if only and against:
        raise click.UsageError("--only and --against exclude each other")
    options = Options(
        rounds=rounds or (15 if against else 3),
        seconds=seconds,
        subjects=frozenset(map(Subject, only)) or frozenset(Subject),
        against=against,
    )
    run_until_signal(run_bench(options, folder, say, repeat_command()))
    click.echo((folder / "bench.md").read_text())
