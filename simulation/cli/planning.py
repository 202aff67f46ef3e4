"""The command that says what a crowd needs."""

from pathlib import Path

import click

from simulation.cli.shared import Amount, echo_json, json_option


@click.command(short_help="What a crowd needs, by what runs cost.")
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--crowd", "crowds", multiple=True, type=Amount(1), metavar="N",
    help="So many shoppers, each with one purchase; may be given more than once.",
)  # fmt: skip
@click.option(
    "--seconds", type=Amount(min=0.001), default=10, show_default=True, metavar="T",
    help="Time in which they come, evenly.",
)  # fmt: skip
@click.option(
    "--stock", type=Amount(0), default=10_000, show_default=True, metavar="S",
    help="Units that they can have.",
)  # fmt: skip
@click.option(
    "--wait", type=Amount(0), default=1, show_default=True, metavar="S",
    help="Longest time until each is answered.",
)  # fmt: skip
@click.option(
    "--settle", type=Amount(0), default=60, show_default=True, metavar="S",
    help="Longest time from the last purchase until all is settled.",
)  # fmt: skip
@click.option(
    "--check", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="BENCH",
    help="Predict the throttled machines of `flashsim bench --only growth`, more of them by fewer.",
)  # fmt: skip
@click.option("--markdown", is_flag=True, help="Write the README's table, and nothing else.")
@json_option
def capacity(
    folders: tuple[Path, ...],
    crowds: tuple[float, ...],
    seconds: float,
    stock: float,
    wait: float,
    settle: float,
    check: Path | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Say what a crowd needs, by the processor time that purchases took in RUN: runs, or benchmarks.

    Fits what an accepted purchase, a refusal and idling cost each process; says how many front doors, shards,
    relays and so on do the work, with 95 % intervals, and which of them is full first. Costs are those of the
    load that was recorded: a process that is busier takes less time for each purchase, since it does more at
    once, so record runs at the load that is planned for.
    """
    from simulation.bench.page import read_bench
    from simulation.capacity.check import check_model
    from simulation.capacity.fit import fit_costs, interval
    from simulation.capacity.observations import read_observations
    from simulation.capacity.plan import Crowd, plan
    from simulation.capacity.words import (
        describe_assumptions,
        describe_check,
        describe_costs,
        describe_plan,
        find_measured_rps,
        write_table,
    )

    observations = [each for folder in folders for each in read_observations(folder)]
    costs, measured_rps = fit_costs(observations), find_measured_rps(observations)
    asked = [Crowd(people, seconds, stock, wait, settle) for people in crowds]
    plans = [plan(costs, crowd) for crowd in asked]
    predictions = check_model(observations, read_bench(check), str(check)) if check else []
    if markdown:
        click.echo(write_table(asked, plans, measured_rps), nl=False)
    elif as_json:
        us = {
            role: {cause: [float(draws[0]), *interval(draws)] for cause, draws in cost.items()}
            for role, cost in costs.items()
        }
        plans_ = [
            {"crowd": crowd._asdict(), "needs": {role: need._asdict() for role, need in needs.items()}}
            for crowd, needs in zip(asked, plans, strict=True)
        ]
        checks = [each._asdict() | {"error": each.error} for each in predictions]
        echo_json({"costs_s": us, "measured_rps": measured_rps, "plans": plans_, "check": checks})
    else:
        lines = describe_costs(costs)
        for crowd, needs in zip(asked, plans, strict=True):
            lines += describe_plan(crowd, needs, measured_rps)
        lines += describe_check(predictions) if check else []
        click.echo("\n".join([*lines, describe_assumptions()]))
