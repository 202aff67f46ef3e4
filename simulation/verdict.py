"""The verdict on a run: loads what was recorded, hands it to the judge, and writes summary and report."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from simulation.errors import RunError
from simulation.judge.asked import LONG_AGO, NEVER, read_asked
from simulation.judge.comparison import measure_spread
from simulation.judge.figures import FIGURES, Run, Side
from simulation.judge.hostile import judge_hostile
from simulation.judge.numbers.doubt import measure_clock_shift
from simulation.judge.numbers.knee import find_knee
from simulation.judge.numbers.load import Load, measure_load
from simulation.judge.numbers.recovery import measure_recovery
from simulation.judge.rules.pairing import name_orders
from simulation.judge.summary import summarise
from simulation.judge.thresholds import Metrics, judge_abort, judge_thresholds
from simulation.judge.verdict import judge, judge_recovery, judge_trial
from simulation.model.history import take_buys, take_reads
from simulation.record.facts import (
    RunFacts,
    read_facts,
    read_faults,
    read_hostile,
    read_timeline,
    write_json,
)
from simulation.record.history import read_history
from simulation.record.manifest import MANIFEST, PRODUCTS, find_changes, judge_record, seal
from simulation.record.series import KEPT, SERIES, SeriesRecord, read_series
from simulation.record.state import read_state
from simulation.record.summary import read_summary


def judge_run(folder: Path) -> dict[str, Any]:
    """Judge a run by its record and return the fields of its summary.

    Raises RunError if the record is incomplete.
    """
    return load_run(folder).summary


def load_run(folder: Path) -> Run:
    """Return a run from its record, judged. Raises RunError if the record is incomplete."""
    facts, whole, state = read_facts(folder), read_history(folder / "history.parquet"), read_state(folder)
    if facts.contract is not None:
        # Older records do not say so.
        state = replace(state, without=state.without | {"outbox"})
    history, reads = name_orders(take_buys(whole), state, facts.contract), take_reads(whole)
    scenario, load = facts.scenario, judge_load(whole, facts)
    timeline = read_timeline(folder) if (folder / "timeline.csv").exists() else pd.DataFrame()
    hostile = read_hostile(folder)
    recoveries = []
    if faults := read_faults(folder):
        recoveries = measure_recovery(history, read_timeline(folder), faults, scenario.driver.may_give_up)
    ended_ns = LONG_AGO if facts.aborted or not len(history) else int(history["intended_ns"].max())
    asked = read_asked(
        scenario,
        started_us=round(facts.started_at.timestamp() * 1e6),
        restocks=facts.restocks,
        faults=recoveries,
        target=facts.target,
        contract=facts.contract,
        ended_ns=ended_ns,
        alone=hostile is None,
        load_valid=load.valid,
        skew_s=facts.skew_s + measure_clock_shift(timeline),
        read_ns=round(timeline["t_s"].max() * 1e9) if len(timeline) else NEVER,
    )
    metrics = Metrics(
        history,
        state,
        load,
        facts.started_at,
        asked,
        facts.restocks,
        find_knee(history, scenario),
        timeline,
        reads,
        scenario.driver,
    )
    checks = judge(history, state, asked, reads, timeline)
    checks += judge_trial(state)
    if recoveries:
        last_s = history["intended_ns"].max() / 1e9
        checks.append(judge_recovery(recoveries, scenario.recover_s, last_s, load.valid))
    if hostile:
        checks += judge_hostile(hostile, read_timeline(folder))
    checks += judge_record(folder)
    thresholds = judge_abort(facts.aborted, metrics.load) + judge_thresholds(scenario, metrics)
    summary = summarise(metrics, scenario, checks, thresholds, facts.ended_s) | {
        "engine": facts.engine,
        "command": facts.command,
        "commit": facts.commit,
        "machine": facts.machine,
        "versions": facts.versions,
        "driver": facts.driver,
        "faults": msgspec.to_builtins(recoveries),
    }
    return Run(folder.resolve().name, str(folder), summary, scenario, metrics)


def load_side(folder: Path) -> Side:
    """Return a run or a series from its folder. Raises RunError if it is neither, or was changed."""
    series = read_series(folder)
    if series is None:
        return Side(folder.resolve().name, str(folder), "report.html", [load_run(folder)])
    runs = [load_kept(folder / each.folder) for each in series.runs]
    return Side(folder.resolve().name, str(folder), "series.html", runs)


def load_kept(folder: Path) -> Run:
    """Return a run of a series, from its record, or from its summary where the record was not kept."""
    if (folder / "history.parquet").exists():
        return load_run(folder)
    summary = read_summary(folder)
    if summary is None:
        raise RunError(f"{folder}: has neither a record nor a summary")
    if changes := find_changes(folder, KEPT):
        raise RunError(f"{folder}: {changes[0]}")
    return Run(folder.resolve().name, str(folder), summary, read_facts(folder).scenario)


def judge_load(history: pd.DataFrame, facts: RunFacts) -> Load:
    """Judge the load as `measure_load` does; a load is not valid either if the engine died under it."""
    end_s = facts.scenario.duration_s() if facts.ended_s is None else facts.ended_s
    load = measure_load(history, facts.scenario.driver, end_s)
    if facts.engine_death is None:
        return load
    reasons = [f"the engine ended during the run ({facts.engine_death})", load.reason]
    return msgspec.structs.replace(load, valid=False, reason="; ".join(filter(None, reasons)))


def finish_run(folder: Path) -> dict[str, Any]:
    """Judge a run, write summary.json, the plots and report.html, and return the summary."""
    summary = judge_run(folder)
    write_products(folder, summary)
    return summary


def write_products(folder: Path, summary: dict[str, Any], brief: bool = False) -> None:
    """Write a run's summary.json, plots and report.html; a `brief` report has the main plots alone."""
    from simulation.report.report import write_report

    write_json(summary, folder / "summary.json")
    write_report(folder, brief)
    if (folder / MANIFEST).exists():
        seal(folder, PRODUCTS)


def finish_series(folder: Path) -> SeriesRecord:
    """Write what the runs of a series give together into its series.json and series.html, and return it.

    Raises RunError if the folder is not one of a series.
    """
    from simulation.report.index import write_series_page

    series = read_series(folder)
    if series is None:
        raise RunError(f"{folder}: is not the folder of a series: it has no {SERIES}")
    runs = [load_kept(folder / each.folder) for each in series.runs]
    values = {metric: [run.measure(metric) for run in runs] for metric in FIGURES}
    series = msgspec.structs.replace(series, figures=measure_spread(values))
    write_json(series, folder / SERIES)
    write_series_page(series, runs, folder)
    return series
