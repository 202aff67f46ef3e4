"""Thresholds: what a scenario asks of a run besides correctness."""

import numpy as np

from simulation.judge.metrics import Metrics
from simulation.judge.numbers.load import Load
from simulation.judge.verdict import Check
from simulation.scenario.abort import Abort
from simulation.scenario.condition import Condition, parse_condition, unit_of
from simulation.scenario.schema import Scenario


def judge_thresholds(scenario: Scenario, run: Metrics) -> list[Check]:
    """Return each threshold of the scenario as a check: it holds, is broken, or there was nothing to
    measure."""
    return [_judge(parse_condition(text), scenario, run) for text in scenario.thresholds]


def _judge(condition: Condition, scenario: Scenario, run: Metrics) -> Check:
    span = condition.window.find(scenario.spans(), np.inf) if condition.window else None
    value = run.measure(condition.metric, span)
    if value is None:
        return Check(str(condition), None, 0, "there was nothing to measure", "")
    holds = condition.holds(value)
    digits = f"{value:,.4g}" if abs(value) < 10_000 else f"{value:,.0f}"
    measured = f"{digits} {unit_of(condition.metric)}".strip()
    return Check(str(condition), holds, int(not holds), measured, "")


def judge_abort(abort: Abort | None, load: Load) -> list[Check]:
    """Return the abort of a load as a check: broken, or not judged where the driver itself may be at
    fault."""
    if abort is None:
        return []
    unit = unit_of(parse_condition(abort.condition).metric)
    detail = f"{abort.value:,.3g} {unit}".strip() + f", the load was stopped after {abort.at_s:.1f} s"
    return [Check(f"stop when {abort.condition}", False if load.valid else None, int(load.valid), detail, "")]
