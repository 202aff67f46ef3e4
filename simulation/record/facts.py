"""The facts of a run as a whole, and its record in a folder."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
import pandas as pd

from simulation.drive.driver import OPEN_LOOP
from simulation.errors import RunError
from simulation.model.events import Abort, Interval, Restocked
from simulation.model.state import FinalState
from simulation.record.history import write_history
from simulation.record.manifest import list_record, seal
from simulation.record.state import save_final_state
from simulation.scenario.schema import Scenario

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
