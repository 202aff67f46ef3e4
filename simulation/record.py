"""The record of a run, in its folder, and the verdict that is computed from it alone.

run.json             what was run, when and where: RunFacts
history.parquet      every request (simulation.history)
timeline.csv         what the probes read (simulation.probes)
faults.json          the faults that were done, where there were any (simulation.faults.fault.Interval)
fuzz.json            what hostile requests did, where there were any (simulation.fuzz.siege.Siege)
final/               what the stores held at the end (simulation.judge.final_state)
manifest.json        digests of these files (simulation.manifest)
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

from engine.payment import SimulatedGateway
from engine.settings import read_settings
from simulation.abort import Abort
from simulation.driver import OPEN_LOOP
from simulation.errors import RunError
from simulation.faults.fault import Interval
from simulation.fuzz.siege import judge_siege, read_siege
from simulation.history import read_history, write_history
from simulation.judge.checker import judge
from simulation.judge.final_state import FinalState, load_final_state, save_final_state
from simulation.judge.knee import find_knee
from simulation.judge.load import LoadReport, load_report
from simulation.judge.recovery import judge_recovery, measure_recovery
from simulation.judge.summary import summarise
from simulation.judge.thresholds import Measured, judge_abort, judge_thresholds
from simulation.manifest import MANIFEST, PRODUCTS, judge_record, list_record, seal
from simulation.scenario import Restocked, Scenario

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
    driver: str = OPEN_LOOP
    """What sent the load, in words."""
    restocks: list[Restocked] = []
    aborted: Abort | None = None
    """Why the load was stopped before its end."""

    @property
    def ended_s(self) -> float | None:
        """When the load was stopped, if it was."""
        return None if self.aborted is None else self.aborted.at_s


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
    seal(folder, list_record(folder))


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
    timeline = read_timeline(folder) if (folder / "timeline.csv").exists() else None
    measured = measure_run(history, state, facts, timeline)
    load = measured.load
    checks = judge(history, state, payment=_payment_of(facts), restocks=facts.restocks)
    recoveries = []
    if faults := read_faults(folder):
        recoveries = measure_recovery(history, read_timeline(folder), faults)
        checks.append(judge_recovery(recoveries))
    if siege := read_siege(folder):
        checks += judge_siege(siege, read_timeline(folder))
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


def _payment_of(facts: RunFacts) -> SimulatedGateway | None:
    """Who decided on the payments; the settings of an engine that ran already are not known."""
    if facts.target is not None:
        return None
    settings = read_settings({}, **facts.scenario.engine)
    return SimulatedGateway(decline_rate=settings.payment_decline_rate, seed=settings.payment_seed)


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


def measure_run(
    history: pd.DataFrame, state: FinalState, facts: RunFacts, timeline: pd.DataFrame | None = None
) -> Measured:
    """The run, as metrics are read from it."""
    return Measured(
        history,
        state,
        judge_load(history, facts),
        facts.started_at,
        facts.restocks,
        find_knee(history, facts.scenario),
        timeline,
    )


def judge_load(history: pd.DataFrame, facts: RunFacts) -> LoadReport:
    """The load as `load_report` judges it; an engine that died under it leaves it invalid."""
    load = load_report(history, facts.scenario, facts.ended_s)
    reasons = [load.reason]
    if facts.driver != OPEN_LOOP and load.late_p99_ms > facts.scenario.driver.late_p99_ms and not load.valid:
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
    from simulation.view.report import (
        write_report,  # matplotlib takes a second that `judge_run` need not wait for
    )

    summary = judge_run(folder)
    (folder / "summary.json").write_bytes(msgspec.json.format(msgspec.json.encode(summary)) + b"\n")
    write_report(folder)
    if (folder / MANIFEST).exists():
        seal(folder, PRODUCTS)
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
    if (retries := summary["retries"])["requests"]:
        lines.append(
            f"  retries   {retries['requests']:,} by {retries['clients']:,} clients,"
            f" {retries['accepted_later']:,} accepted then; bought again:"
            f" {_count(retries['keyed_bought_again'])} with a key,"
            f" {_count(retries['unkeyed_bought_again'])} without"
        )
    if "bots_units" in (fairness := summary["fairness"]):
        lines.append(
            f"  bots      {fairness['bots_heads']:,} made {fairness['bots_requests']:,} requests and won"
            f" {fairness['bots_units']:,} units; {fairness['people_heads']:,} people made"
            f" {fairness['people_requests']:,} and won {fairness['people_units']:,}"
        )
    drained = "not drained" if done["drained_s"] is None else f"drained in {done['drained_s']:.2f} s"
    lines.append(
        f"  ledger    {_count(done['confirmed'])} confirmed, {_count(done['failed'])} failed,"
        f" {_count(done['rejected'])} rejected, lag p99 {_ms(done['lag_p99_ms'])}, {drained},"
        f" bus: {done['bus']}"
    )
    for restock in summary["restocks"]:
        took_s = restock["sold_out_after_s"]
        lines.append(
            f"  restock   {restock['stock']:,} units of product {restock['product_id']} at"
            f" {restock['at_s']:.2f} s, {_count(restock['sold'])} sold, "
            + ("not sold out" if took_s is None else f"sold out after {took_s:.2f} s")
        )
    if knee := summary["knee"]:
        where = "not reached" if knee["rps"] is None else f"at {knee['rps']:,.0f}/s offered"
        lines.append(
            f"  knee      {where}, plateau p99 {_ms(knee['plateau_p99_ms'])},"
            f" most achieved {knee['achieved_max_rps']:,.0f}/s"
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
