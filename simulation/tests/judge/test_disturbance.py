"""A standstill is found, and the report says how much of it service time hides."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulation.judge.numbers.disturbance import find_omission, find_stall, measure_effect
from simulation.judge.numbers.latency import measure_latency
from simulation.judge.numbers.requests import count_outcomes
from simulation.scenario.schema import DriverOptions
from simulation.tests.run_folders import make_history

START_S, END_S = 7.0, 8.0


def stand_still(history: pd.DataFrame, held: int) -> pd.DataFrame:
    """The history with an engine that stands still from START_S to END_S; `held` requests were sent to it
    when it stopped, the others wait for their connections."""
    start, end = int(START_S * 1e9), int(END_S * 1e9)
    history = history.copy()
    caught = history["done_ns"].notna() & (history["done_ns"] >= start) & (history["intended_ns"] < end)
    sent = np.flatnonzero(caught & (history["sent_ns"] < start))[-held:]
    unsent = np.setdiff1d(np.flatnonzero(caught), sent)
    took = history["done_ns"] - history["sent_ns"]
    history.loc[sent, "done_ns"] = end
    history.loc[unsent, "sent_ns"] = end
    history.loc[unsent, "done_ns"] = end + took[unsent]
    return history


def summarise(history: pd.DataFrame) -> dict[str, Any]:
    words = ("ACCEPTED", "SOLD_OUT")
    latency = {word.lower(): measure_latency(history[history["outcome"] == word], 5_000) for word in words}
    return {"outcomes": count_outcomes(history), "latency_ms": latency}


def test_a_standstill_is_charged_to_the_requests_that_were_due() -> None:
    history = make_history(5_000)
    stalled = stand_still(history, held=5)
    stall = find_stall(stalled)
    assert stall is not None
    assert stall.start_s == pytest.approx(START_S, abs=0.01)
    assert stall.seconds == pytest.approx(END_S - START_S, abs=0.01)
    due = history["intended_ns"].between(stall.start_s * 1e9, END_S * 1e9 - 1)
    assert stall.due == stall.unsent == due.sum()

    omission = find_omission(stalled, summarise(stalled), DriverOptions(connections=5))
    assert omission is not None
    assert not omission.by_driver
    assert omission.outcome == "sold_out"
    assert omission.stall == stall
    # A closed loop would have reported what it had reported without the standstill.
    usual = summarise(history)["latency_ms"]["sold_out"]["service"]["p99"]
    assert omission.service_p99_ms == pytest.approx(usual, rel=0.05)
    assert omission.response_p99_ms > 5 * usual
    late = find_omission(stalled, summarise(stalled), DriverOptions(connections=5_000))
    assert late is not None
    assert late.by_driver, "the server held no connection that the driver needed"


def test_an_engine_that_answers_steadily_has_neither() -> None:
    history = make_history(5_000)
    assert find_stall(history) is None
    assert find_omission(history, summarise(history), DriverOptions()) is None
    assert find_stall(history.iloc[:0]) is None


def test_the_effect_of_a_fault_lasts_until_the_engine_is_back() -> None:
    history = make_history(5_000)
    lost = history["intended_ns"].between(3e9, 3.5e9 - 1)
    history.loc[lost, "outcome"] = "UNAVAILABLE"
    fault = {"kind": "stop", "on": "redis", "start_s": 3.0, "end_s": 3.2, "healed_s": 0.3}
    effect = measure_effect(history, fault, 5_000)
    assert effect.due == effect.undecided == lost.sum()
    never = measure_effect(history, fault | {"healed_s": None}, 5_000)
    assert never.due == (history["intended_ns"] >= 3e9).sum()
