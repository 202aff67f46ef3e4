"""The final state in the run's folder: gate, sales and orders as parquet, the rest as JSON."""

import json
from pathlib import Path
from typing import Any, Final

import pandas as pd

from simulation.model.state import FinalState

_FRAMES: Final = ("gate", "sales", "orders")


def save_final_state(state: FinalState, run_folder: Path) -> None:
    """Write the state into `final/` of the run's folder: gate, sales, orders (.parquet), final_state.json."""
    folder = run_folder / "final"
    folder.mkdir(parents=True, exist_ok=True)
    for name in _FRAMES:
        frame: pd.DataFrame | None = getattr(state, name)
        if frame is not None:
            frame.to_parquet(folder / f"{name}.parquet", index=False)
    numbers = {
        "pending": None if state.pending is None else sorted(state.pending),
        "outbox": state.outbox,
        "queue": state.queue,
        "dead": state.dead,
        "bus": state.bus,
        "drained_s": state.drained_s,
        "unread": state.unread,
    }
    (folder / "final_state.json").write_text(json.dumps(numbers, indent=2) + "\n")


def load_final_state(run_folder: Path) -> FinalState:
    """The state that `save_final_state` wrote. Raises FileNotFoundError where there is none."""
    folder = run_folder / "final"
    numbers: dict[str, Any] = json.loads((folder / "final_state.json").read_text())
    if numbers["pending"] is not None:
        numbers["pending"] = frozenset(numbers["pending"])
    files = {name: folder / f"{name}.parquet" for name in _FRAMES}
    frames: dict[str, Any] = {name: pd.read_parquet(file) for name, file in files.items() if file.exists()}
    return FinalState(**frames, **numbers)
