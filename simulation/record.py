"""The record of a run, in its folder, and the verdict that is computed from it alone.

run.json             what was run, when and where: RunFacts
history.parquet      every request (simulation.history)
timeline.csv         what the probes read (simulation.probes)
faults.json          the faults that were done, where there were any (simulation.faults.Interval)
final/               what the stores held at the end (simulation.final_state)
engine.log           what the engine said, where the run started it
summary.json         the verdict, the checks and the numbers
plots/, report.html  made of all these
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import pandas as pd

from simulation.checker import judge
from simulation.errors import RunError
from simulation.faults import Interval
from simulation.final_state import FinalState, load_final_state, save_final_state
from simulation.history import read_history, write_history
from simulation.load import LoadReport, load_report
from simulation.recovery import judge_recovery, measure_recovery
from simulation.scenario import Scenario
from simulation.summary import summarise
from simulation.thresholds import Measured, judge_thresholds

ENGINE_LOG: Final = "engine.log"


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of a run as a whole."""

    scenario: Scenario
    command: str
    """What repeats the run."""
    started_at: datetime
    """The zero of the history's clock, UTC."""
    target: str | None
    """URL of the engine, None where the run started its own."""
    engine_death: str | None
    """What the run's own engine died of before it was stopped."""
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]


def write_record(
    folder: Path,
    facts: RunFacts,
    history: pd.DataFrame,
    timeline: pd.DataFrame,
    state: FinalState,
    faults: Sequence[Interval] = (),
) -> None:
    """Writes what a verdict needs into the run's folder."""
    if faults:
        (folder / "faults.json").write_bytes(msgspec.json.format(msgspec.json.encode(faults)) + b"\n")
    (folder / "run.json").write_bytes(msgspec.json.format(msgspec.json.encode(facts)) + b"\n")
    write_history(history, folder / "history.parquet")
    timeline.to_csv(folder / "timeline.csv", index=False)
    save_final_state(state, folder)


def read_facts(folder: Path) -> RunFacts:
    """Raises RunError where the folder is not one of a run."""
    try:
        return msgspec.json.decode((folder / "run.json").read_bytes(), type=RunFacts)
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(f"{folder}: is not the folder of a run: {error}") from None


def judge_run(folder: Path) -> dict[str, Any]:
    """Judges a run by its record: the fields of its summary.

    Raises RunError or HistoryError where the record is not whole.
    """
    facts = read_facts(folder)
    history = read_history(folder / "history.parquet")
    try:
        state = load_final_state(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{folder}: its final state can't be read: {error}") from None
    load = judge_load(history, facts)
    measured = Measured(history, state, load, facts.started_at)
    checks = judge(history, state)
    recoveries = []
    if faults := read_faults(folder):
        recoveries = measure_recovery(history, read_timeline(folder), faults)
        checks.append(judge_recovery(recoveries))
    summary = summarise(
        history,
        state,
        checks,
        load,
        facts.scenario,
        started_at=facts.started_at,
        commit=facts.commit,
        machine=facts.machine,
        versions=facts.versions,
        command=facts.command,
        thresholds=judge_thresholds(facts.scenario, measured),
    )
    return summary | {"faults": msgspec.to_builtins(recoveries)}


def read_timeline(folder: Path) -> pd.DataFrame:
    """What the probes read. Raises RunError."""
    try:
        return pd.read_csv(folder / "timeline.csv")
    except (OSError, ValueError) as error:
        raise RunError(f"{folder}: its timeline can't be read: {error}") from None


def read_faults(folder: Path) -> list[Interval]:
    """The faults that were done in the run. Raises RunError."""
    try:
        return msgspec.json.decode((folder / "faults.json").read_bytes(), type=list[Interval])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(f"{folder}: its faults can't be read: {error}") from None


def judge_load(history: pd.DataFrame, facts: RunFacts) -> LoadReport:
    """The load as `load_report` judges it; an engine that died under it leaves it invalid."""
    load = load_report(history, facts.scenario)
    if facts.engine_death is None:
        return load
    reason = f"the engine ended during the run ({facts.engine_death})"
    return msgspec.structs.replace(load, valid=False, reason="; ".join(filter(None, (reason, load.reason))))


def finish_run(folder: Path) -> dict[str, Any]:
    """Judges a run, and writes summary.json, the plots and report.html. Returns the summary."""
    from simulation.report import write_report  # matplotlib takes a second that `judge_run` need not wait for

    summary = judge_run(folder)
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    write_report(folder)
    return summary


def describe(summary: Mapping[str, Any]) -> str:
    """The verdict of a run in words, and its main numbers, in a few lines."""
    load, outcomes, stock, done = (summary[part] for part in ("load", "outcomes", "stock", "fulfilment"))
    lines = [
        f"{summary['verdict'].upper()}: {summary['verdict_in_words']}",
        *([f"  the load is not valid: {load['reason']}"] if not load["valid"] else []),
        *(
            f"  {check['name']} is broken: {check['detail']}"
            for check in [*summary["checks"], *summary["thresholds"]]
            if check["holds"] is False
        ),
        *(f"  the {part} could not be read: {why}" for part, why in summary["unread"].items()),
        f"  load      {load['requests']:,} requests in {summary['duration_s']:g} s,"
        f" {load['offered_rps']:,.0f}/s offered, {load['achieved_rps']:,.0f}/s achieved,"
        f" lag p99 {_ms(load['late_p99_ms'])}",
        "  outcomes  " + ", ".join(f"{count:,} {word.replace('_', ' ')}" for word, count in outcomes.items()),
    ]
    for word, latency in summary["latency_ms"].items():
        if latency["response"]["p50"] is not None:
            times = ", ".join(f"{name} {_ms(value)}" for name, value in latency["response"].items())
            lines.append(f"  response  {word.replace('_', ' ')}: {times}")
    lines.append(
        f"  stock     {_count(stock['initial'])} units, {_count(stock['sold'])} sold,"
        f" {_count(stock['remaining'])} left, {_count(stock['oversold'])} oversold"
    )
    drained = "not drained" if done["drained_s"] is None else f"drained in {done['drained_s']:.2f} s"
    lines.append(
        f"  ledger    {_count(done['confirmed'])} confirmed, {_count(done['failed'])} failed,"
        f" {_count(done['rejected'])} rejected, lag p99 {_ms(done['lag_p99_ms'])}, {drained},"
        f" bus: {done['bus']}"
    )
    for fault in summary["faults"]:
        healed = "never recovered" if fault["healed_s"] is None else f"recovered in {fault['healed_s']:.1f} s"
        span = f"{fault['start_s']:.2f} to {fault['end_s']:.2f} s"
        lines.append(f"  fault     {fault['kind']} {fault['on']}, {span}: {healed}")
    return "\n".join(lines)


def _count(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def _ms(value: float | None) -> str:
    return "?" if value is None else f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3g} ms"
