"""A series: the same scenario run after run, so that the runs show how much their figures vary by chance.

Each run has a seed of its own, one after the other from the scenario's: what a comparison of two series finds
is then true of the crowd, not of one draw of it. Series of the same scenario meet the same crowds.
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from simulation.record.facts import write_json
from simulation.record.folder import make_folder
from simulation.record.series import SERIES, SeriesRecord, SeriesRun, drop_record
from simulation.run import Say
from simulation.scenario.schema import Scenario
from simulation.target.machine import describe_machine, read_commit
from simulation.verdict import finish_series

RunOne = Callable[[Scenario, Path], Awaitable[dict[str, Any]]]
"""Runs a scenario into a folder, judges it, and returns the summary."""


async def repeat(
    scenario: Scenario, runs: int, folder: Path, run_one: RunOne, say: Say, *, command: str, keep: bool
) -> SeriesRecord:
    """Run the scenario `runs` times and return the series.

    The record of a run that passes is dropped, but for its summary, its report and its manifest, unless
    `keep`. What was measured stays if a later run raises. Raises what `run_one` raises.
    """
    make_folder(folder)
    series = SeriesRecord(
        scenario=scenario.name,
        command=command,
        started_at=datetime.now(UTC),
        commit=read_commit(),
        machine=describe_machine(),
    )
    for number in range(1, runs + 1):
        seeded = msgspec.structs.replace(scenario, seed=scenario.seed + number - 1)
        name = f"run-{number}"
        say(f"run {number} of {runs}, seed {seeded.seed}")
        summary = await run_one(seeded, folder / name)
        if summary["verdict"] == "pass" and not keep:
            drop_record(folder / name)
        run = SeriesRun(
            folder=name,
            seed=seeded.seed,
            verdict=summary["verdict"],
            verdict_in_words=summary["verdict_in_words"],
        )
        series = msgspec.structs.replace(series, runs=[*series.runs, run])
        write_json(series, folder / SERIES)
        series = finish_series(folder)
    return series
