"""The record of a run, in its folder, and the verdict that is computed from it alone.

run.json             what was run, when and where: RunFacts
history.parquet      every request (simulation.history)
timeline.csv         what the probes read (simulation.probes)
faults.json          the faults that were done, where there were any (simulation.faults.fault.Interval)
fuzz.json            what hostile requests did, where there were any (simulation.model.hostile.HostileRecord)
final/               what the stores held at the end (simulation.judge.final_state)
manifest.json        digests of these files (simulation.manifest)
engine.log           what the engine said, where the run started it
summary.json         the verdict, the checks and the numbers
plots/, report.html  made of all these
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from engine.payment.simulated import SimulatedGateway
from engine.settings import read_settings
from simulation.drive.driver import OPEN_LOOP
from simulation.errors import RunError
from simulation.judge.comparison import Run
from simulation.judge.hostile import judge_hostile
from simulation.judge.numbers.knee import find_knee
from simulation.judge.numbers.load import Load, measure_load
from simulation.judge.numbers.recovery import measure_recovery
from simulation.judge.summary import summarise
from simulation.judge.thresholds import Metrics, judge_abort, judge_thresholds
from simulation.judge.verdict import judge, judge_recovery
from simulation.model.state import FinalState
from simulation.record.facts import RunFacts, read_facts, read_faults, read_timeline
from simulation.record.history import read_history
from simulation.record.hostile import read_hostile
from simulation.record.manifest import MANIFEST, PRODUCTS, judge_record, seal
from simulation.record.state import load_final_state


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
    timeline = read_timeline(folder) if (folder / "timeline.csv").exists() else None
    measured = measure_run(history, state, facts, timeline)
    load = measured.load
    checks = judge(history, state, declines=_find_declines(facts), restocks=facts.restocks)
    recoveries = []
    if faults := read_faults(folder):
        recoveries = measure_recovery(history, read_timeline(folder), faults)
        checks.append(judge_recovery(recoveries))
    if hostile := read_hostile(folder):
        checks += judge_hostile(hostile, read_timeline(folder))
    if untouched := judge_record(folder):
        checks.append(untouched)
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
        thresholds=judge_abort(facts.aborted, load) + judge_thresholds(facts.scenario, measured),
        restocks=facts.restocks,
        knee=measured.knee,
        ended_s=facts.ended_s,
    )
    return summary | {"faults": msgspec.to_builtins(recoveries), "driver": facts.driver}


def _find_declines(facts: RunFacts) -> Callable[[str], bool] | None:
    """Whether payment declines an order id; None for an engine whose settings are unknown."""
    if facts.target is not None:
        return None
    settings = read_settings({}, **facts.scenario.engine)
    return SimulatedGateway(decline_rate=settings.payment_decline_rate, seed=settings.payment_seed).declines


def measure_run(
    history: pd.DataFrame, state: FinalState, facts: RunFacts, timeline: pd.DataFrame | None = None
) -> Metrics:
    """The run, as metrics are read from it."""
    return Metrics(
        history,
        state,
        judge_load(history, facts),
        facts.started_at,
        facts.restocks,
        find_knee(history, facts.scenario),
        timeline,
    )


def judge_load(history: pd.DataFrame, facts: RunFacts) -> Load:
    """The load as `measure_load` judges it; an engine that died under it leaves it invalid."""
    load = measure_load(history, facts.scenario, facts.ended_s)
    reasons = [load.reason]
    if facts.driver != OPEN_LOOP and load.lag_p99_ms > facts.scenario.driver.late_p99_ms and not load.valid:
        reasons.append(
            f"{facts.driver}: each keeps up with a few thousand requests/s where it has a core to itself, so"
            " give it more --processes or let flashsim run send them"
        )
    if facts.engine_death is not None:
        reasons.insert(0, f"the engine ended during the run ({facts.engine_death})")
    reason = "; ".join(filter(None, reasons))
    return msgspec.structs.replace(load, valid=not reason, reason=reason)


def finish_run(folder: Path) -> dict[str, Any]:
    """Judges a run, and writes summary.json, the plots and report.html. Returns the summary."""
    from simulation.report.report import write_report

    summary = judge_run(folder)
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    write_report(folder)
    if (folder / MANIFEST).exists():
        seal(folder, PRODUCTS)
    return summary


def load_run(folder: Path) -> Run:
    """A run from its record. Raises RunError or HistoryError where the record is not whole."""
    facts, history = read_facts(folder), read_history(folder / "history.parquet")
    try:
        summary, state = json.loads((folder / "summary.json").read_text()), load_final_state(folder)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{folder}: is not the folder of a whole run: {error}") from None
    measured = measure_run(history, state, facts)
    return Run(folder.resolve().name, str(folder), summary, measured, facts.scenario.duration_s())
