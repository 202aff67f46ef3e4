"""The matrix: every fault on every component it can be done to, one to a run, and how the engine came back.

Writes matrix.json, matrix.md and matrix.html into its folder, beside what is kept of each run
(simulation.campaign.suite).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from engine.local.machines import Network
from simulation.campaign.suite import Suite, judge_planned, read_counts, tell_duration
from simulation.errors import SimulationError
from simulation.report.page import write_tables
from simulation.run import Say
from simulation.scenario.fault import PARTITIONS, Fault, is_over_at_once, list_targets
from simulation.scenario.loading import load_scenario
from simulation.scenario.schema import Scenario
from simulation.target.services import Services

LENGTH_S: Final = 1.5
"""Length of a fault that lasts."""
CLUSTER_LENGTH_S: Final = 8.0
"""The same where others take over from what is lost: the nodes of RabbitMQ notice that last, after 6 s."""
RUN_S: Final = 15
CLUSTER_RUN_S: Final = 45
"""What a run takes, with its start and its end, where the fault passes."""


class Cell(msgspec.Struct, frozen=True, kw_only=True):
    """One fault on one component, and what a run with it alone gave; the numbers are None where there is
    none."""

    kind: str
    on: str
    verdict: str
    verdict_in_words: str
    requests: int | None = None
    accepted: int | None = None
    refused: int | None = None
    """Answered 503, or not taken, so that surely nothing was reserved."""
    unknown: int | None = None
    sold: int | None = None
    oversold: int | None = None
    down_s: float | None = None
    """From the start of the fault to its end."""
    healed_s: float | None = None
    """From then until the engine works as before."""
    drained_s: float | None = None
    """From the end of the load until every purchase was settled."""
    tries: int = 1
    folder: str = ""
    """Where its report is, beside the table; empty without one."""


class Matrix(Suite, kw_only=True):
    """All cells, and where they come from."""

    cells: list[Cell] = msgspec.field(default_factory=list)


def list_faults(machines: int = 1) -> list[Fault]:
    """List every kind of fault on every component that it can be done to on so many machines."""
    seconds = LENGTH_S if machines == 1 else CLUSTER_LENGTH_S
    return [
        Fault(at_s=1.5, seconds=0 if is_over_at_once(kind, on) else seconds, kind=kind, on=on)
        for kind, targets in list_targets(machines).items()
        for on in targets
    ]


async def run_matrix(
    faults: Sequence[Fault], folder: Path, services: Services, say: Say, command: str, machines: int = 1
) -> Matrix:
    """Run each of the faults alone and write the tables; a run that can't be made is a cell that says why."""
    scenario = load_scenario("single-fault" if machines == 1 else "cluster-fault")
    matrix = Matrix(command=command)
    if machines > 1 and services.stack and not Network(services.stack.data_dir).can_be_cut:
        say("the machines share loopback: no fault that cuts one off is tried")
        faults = [fault for fault in faults if fault.kind not in PARTITIONS]
    tell_duration(len(faults), RUN_S if machines == 1 else CLUSTER_RUN_S, say)
    for number, fault in enumerate(faults, 1):
        cell = await _run_cell(scenario, fault, folder, services, machines)
        matrix.cells.append(cell)
        say(f"{number} of {len(faults)}: {fault.kind} {fault.on}, {cell.verdict}: {cell.verdict_in_words}")
        # Written after each: what was measured stays if the matrix is interrupted.
        write_matrix(matrix, folder)
    return matrix


async def _run_cell(
    scenario: Scenario, fault: Fault, folder: Path, services: Services, machines: int
) -> Cell:
    scenario = msgspec.structs.replace(scenario, faults=[fault])
    command = f"flashsim matrix {'' if machines == 1 else f'--machines {machines} '}--only"
    try:
        judged = await judge_planned(
            scenario,
            folder / f"{fault.kind}-{fault.on}",
            services,
            f"{command} {fault.kind}:{fault.on}",
        )
    except SimulationError as error:
        return Cell(kind=fault.kind, on=fault.on, verdict="unknown", verdict_in_words=str(error))
    summary = judged.summary
    [done] = summary["faults"]
    return Cell(
        kind=fault.kind,
        on=fault.on,
        requests=summary["load"]["requests"],
        down_s=round(done["end_s"] - done["start_s"], 3),
        healed_s=done["healed_s"],
        **read_counts(summary),
        tries=judged.tries,
        folder=judged.folder.name,
    )


def write_matrix(matrix: Matrix, folder: Path) -> None:
    """Write the matrix as JSON, Markdown and HTML."""
    verdicts = [cell.verdict for cell in matrix.cells]
    write_tables("matrix", matrix, folder, good=verdicts.count("pass"), total=len(verdicts))
