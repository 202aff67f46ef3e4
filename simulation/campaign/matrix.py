"""The matrix: every fault on every component it can be done to, one to a run, and how the engine came back.

Writes matrix.json, matrix.md and matrix.html into its folder, and the whole record of each run that did not
pass.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from simulation.campaign.series import Say, judge_one, say_result
from simulation.report.page import write_tables
from simulation.scenario.fault import STAGES, TARGETS, Fault
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.engine_process import private_services
from simulation.target.machine import describe_machine, read_commit
from simulation.target.services import Services

AT_S: Final = 1.5
SECONDS: Final = 1.5
TRIES: Final = 2
"""A load that was not as planned says nothing about the engine, and is driven once more."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One fault on one component: what a run with it alone gave."""

    kind: str
    on: str
    verdict: str
    verdict_in_words: str
    requests: int
    accepted: int
    refused: int
    """Answered 503, or not taken, so that surely nothing was reserved."""
    unknown: int
    sold: int | None
    oversold: int | None
    down_s: float | None
    """From the fault's begin until it was healed."""
    healed_s: float | None
    """From then until the engine works as before."""
    drained_s: float | None
    """From the end of the load until every purchase was settled."""
    tries: int


class Matrix(msgspec.Struct, frozen=True, kw_only=True):
    """All cells, and where they come from."""

    command: str
    started_at: datetime
    commit: str
    machine: dict[str, str | int]
    cells: list[Cell]


def list_faults() -> list[Fault]:
    """Every kind of fault on every component it can be done to."""
    return [
        # A stage that is killed or restarted is started again at once.
        Fault(at_s=AT_S, seconds=0 if on in STAGES and kind != "stop" else SECONDS, kind=kind, on=on)
        for kind, targets in TARGETS.items()
        for on in targets
    ]


async def run_matrix(faults: Sequence[Fault], folder: Path, say: Say, command: str) -> None:
    """Runs each of the faults alone and writes the tables; raises what `run` raises."""
    scenario = load_scenario("single-fault")
    started_at = datetime.now(UTC)
    cells: list[Cell] = []
    async with private_services(say) as services:
        for number, fault in enumerate(faults, 1):
            cells.append(await _run_cell(scenario, fault, folder, services, say))
            say(f"{number} of {len(faults)} done")
            matrix = Matrix(
                command=command,
                started_at=started_at,
                commit=read_commit(),
                machine=describe_machine(),
                cells=cells,
            )
            # Written after each: what was measured stays if it is interrupted.
            write_matrix(matrix, folder)


async def _run_cell(scenario: Scenario, fault: Fault, folder: Path, services: Services, say: Say) -> Cell:
    scenario = msgspec.structs.replace(scenario, faults=[fault])
    summary: dict[str, Any] = {}
    for number in range(1, TRIES + 1):
        place = folder / f"{fault.kind}-{fault.on}-{number}"
        summary = await judge_one(scenario, place, services, f"{fault.kind} {fault.on}")
        say(say_result(summary))
        if summary["verdict"] != "unknown":
            break
    [done] = summary["faults"]
    outcomes = summary["outcomes"]
    return Cell(
        kind=fault.kind,
        on=fault.on,
        verdict=summary["verdict"],
        verdict_in_words=summary["verdict_in_words"],
        requests=summary["load"]["requests"],
        accepted=outcomes["accepted"],
        refused=outcomes["error"],
        unknown=outcomes["unknown"],
        sold=summary["stock"]["sold"],
        oversold=summary["stock"]["oversold"],
        down_s=round(done["end_s"] - done["start_s"], 3),
        healed_s=done["healed_s"],
        drained_s=summary["fulfilment"]["drained_s"],
        tries=number,
    )


def write_matrix(matrix: Matrix, folder: Path) -> None:
    """Writes the matrix as JSON, Markdown and HTML."""
    passed = sum(cell.verdict == "pass" for cell in matrix.cells)
    write_tables("matrix", matrix, folder, good=passed, total=len(matrix.cells))
