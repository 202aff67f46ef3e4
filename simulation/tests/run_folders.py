"""Run folders for the tests of the report: made up, seeded, and judged like any other."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from simulation.model.history import DTYPES, fill_in
from simulation.model.state import FinalState
from simulation.record.facts import RunFacts
from simulation.record.history import write_history
from simulation.record.state import write_state
from simulation.scenario.loading import load_scenario
from simulation.tests.histories import Terms, orders_of, play
from simulation.verdict import judge_run

START_US = 1_700_000_000_000_000


def make_history(stock: int, seed: int = 1, slowness: float = 1.0) -> pd.DataFrame:
    """A spike of some 28,000 requests in 12 s for `stock` units, with a slow patch and a few timeouts.

    `slowness` stretches what the engine takes.
    """
    random = np.random.default_rng(seed)
    rates = [(0, 2, 600), (2, 6, 5_000), (6, 12, 1_200)]
    meant = np.concatenate([random.uniform(start, end, (end - start) * rate) for start, end, rate in rates])
    meant = np.sort((meant * 1e9).astype("int64"))
    sent = meant + random.gamma(2, 60e3, len(meant)).astype("int64")
    slow = 1 + 6 * np.exp(-(((meant / 1e9 - 2.4) / 0.5) ** 2))
    service = (random.lognormal(14.2, 0.5, len(meant)) * slow * slowness).astype("int64")
    lost = random.random(len(meant)) < 2e-4
    won = np.zeros(len(meant), bool)
    won[np.flatnonzero(~lost)[:stock]] = True
    # A loser is refused only once the last unit is gone.
    service = np.where(won, service, service * 6 // 10)
    sold_out_ns = int((sent + service)[won].max()) if won.any() else 0
    early = ~won & ~lost & (sent + service < sold_out_ns)
    service = np.where(early & (sent < sold_out_ns), sold_out_ns - sent + 1000, service)
    outcome = np.select([lost, won], ["UNKNOWN", "ACCEPTED"], "SOLD_OUT")
    order_ids = np.full(len(meant), None, object)
    order_ids[won] = [f"{i:08x}-0000-7000-8000-000000000000" for i in range(int(won.sum()))]
    frame = pd.DataFrame(
        {
            "op": np.arange(len(meant)),
            "driver": 0,
            "user_id": np.arange(len(meant)) + 1,
            "product_id": 1,
            "key": None,
            "intended_ns": meant,
            "sent_ns": pd.array(sent, "Int64"),
            "done_ns": pd.array(sent + service, "Int64"),
            "status": np.select([lost, won], [0, 200], 429),
            "outcome": outcome,
            "result": np.select([lost, won], ["unknown", "ok"], "fail"),
            "order_id": order_ids,
            "end": np.where(lost, "timeout", "answered"),
        }
    )
    frame.loc[lost, "done_ns"] = pd.NA
    return frame.assign(**fill_in(frame)).astype(DTYPES)


def make_state(history: pd.DataFrame, stock: int, seed: int = 2) -> FinalState:
    """The stores after that history: every accepted purchase is confirmed."""
    random = np.random.default_rng(seed)
    _, state = play([], [Terms(stock=stock)])
    assert state.sales is not None
    assert state.gate is not None
    won = history[history["outcome"] == "ACCEPTED"]
    accepted = START_US + won["done_ns"].to_numpy("int64") // 1000
    orders = orders_of([]).reindex(range(len(won)))
    orders = orders.assign(
        order_id=won["order_id"].to_numpy(),
        sale_id=1,
        product_id=1,
        user_id=won["user_id"].to_numpy(),
        quantity=1,
        status="CONFIRMED",
        accepted_us=accepted,
        settled_us=accepted + random.gamma(3, 22e3, len(won)).astype("int64"),
    ).astype(orders_of([]).dtypes.to_dict())
    left = stock - len(won)
    return FinalState(
        gate=state.gate.assign(remaining=left),
        pending=frozenset(),
        outbox=0,
        queue=0,
        dead=0,
        sales=state.sales.assign(sold=len(won)),
        orders=orders,
        drained_s=0.42,
    )


def make_timeline(history: pd.DataFrame, stock: int, seed: int = 3) -> pd.DataFrame:
    """Samples as the probes take them, five a second."""
    random = np.random.default_rng(seed)
    t_s = np.arange(0, 12.8, 0.2)
    done = np.sort(history.loc[history["outcome"] == "ACCEPTED", "done_ns"].to_numpy("int64")) / 1e9
    accepted = np.searchsorted(done, t_s)
    confirmed = np.searchsorted(done + 0.3, t_s)
    frame = pd.DataFrame(
        {
            "t_s": t_s,
            "stock_remaining": stock - accepted,
            "outbox_entries": (accepted - np.searchsorted(done + 0.05, t_s)) // 12,
            "pending_orders": accepted - confirmed,
            "queue_messages": (accepted - confirmed) // 130,
            "ledger_confirmed": confirmed,
            "ledger_failed": 0,
        }
    )
    busy = np.where((t_s > 2) & (t_s < 6), 1.0, 0.2)
    processes = {"front door": 82, "fulfilment": 31, "relay": 14, "redis": 38, "postgres": 42, "rabbitmq": 25}
    for number, (name, percent) in enumerate(processes.items()):
        frame[f"cpu_percent {name}"] = percent * busy * random.uniform(0.85, 1.15, len(t_s))
        frame[f"rss_mib {name}"] = 40 + 23 * number + 4 * np.log1p(t_s)
    return frame


def make_run(
    folder: Path,
    *,
    stock: int = 5_000,
    spoil: Callable[[FinalState], FinalState] = lambda state: state,
    timeline: bool = True,
    seed: int = 1,
    slowness: float = 1.0,
    machine: Callable[[pd.DataFrame], pd.DataFrame] = lambda timeline: timeline,
) -> dict[str, Any]:
    """Fill `folder` as a run does, but for its report; the summary. `spoil` changes the final state,
    `machine` the timeline."""
    scenario = load_scenario(
        "spike",
        {
            "arrivals.0.seconds": 2, "arrivals.0.rate_rps": 600,
            "arrivals.1.seconds": 4, "arrivals.1.rate_rps": 5_000,
            "arrivals.2.seconds": 6, "arrivals.2.rate_rps": 2_000,
            "driver.may_give_up": True,  # some answers are lost
        },
        stock=stock,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    history = make_history(stock, seed, slowness)
    state = spoil(make_state(history, stock))
    write_history(history, folder / "history.parquet")
    write_state(state, folder)
    if timeline:
        machine(make_timeline(history, stock)).to_csv(folder / "timeline.csv", index=False)
    facts = RunFacts(
        scenario=scenario,
        command="flashsim run spike --seed 1 --stock 5000",
        started_at=datetime.fromtimestamp(START_US / 1e6, UTC),
        target=None,
        engine_death=None,
        commit="0123456789abcdef0123456789abcdef01234567",
        machine={"cpu": "Example CPU @ 3.00GHz", "cores": 2, "memory_gib": 8, "system": "Linux-6.1-x86_64"},
        versions={"python": "3.11.7", "aiohttp": "3.14.5", "redis-server": "7.0.15", "postgresql": "18.6"},
    )
    (folder / "run.json").write_bytes(msgspec.json.encode(facts))
    summary = judge_run(folder)
    (folder / "summary.json").write_text(json.dumps(summary))
    return summary


def lose_orders(state: FinalState, number: int = 3) -> FinalState:
    """The state with as many orders missing from the ledger."""
    assert state.orders is not None
    return replace(state, orders=state.orders.iloc[number:].reset_index(drop=True))
