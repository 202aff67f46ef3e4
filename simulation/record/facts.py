"""The facts of a run, and the parts of its record that are JSON or CSV."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import pandas as pd

from simulation.drive.driver import OPEN_LOOP
from simulation.errors import RunError
from simulation.model.contract import Contract
from simulation.model.events import Abort, Interval, Restocked
from simulation.model.hostile import FILE, HostileRecord
from simulation.model.state import FinalState
from simulation.record.history import write_history
from simulation.record.state import write_state
from simulation.scenario.schema import Scenario

ENGINE_LOG: Final = "engine.log"
MOST: Final = 1e15
"""More than any number of a timeline."""
MOST_S: Final = 1e9
"""More than any time of a run."""

T = TypeVar("T")


class RunFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is true of a run as a whole."""

    scenario: Scenario
    command: str
    """The command that repeats the run."""
    started_at: datetime
    """The zero of the history's clock, UTC."""
    target: str | None
    """URL of the engine; None if the run started its own."""
    engine_death: str | None
    """What ended the run's own engine before the run stopped it."""
    commit: str
    machine: dict[str, str | int]
    versions: dict[str, str]
    engine: str = "flashgrid"
    """The engine under test, by the name of its description."""
    contract: Contract | None = None
    """Its HTTP contract; None: that of Flashgrid."""
    driver: str = OPEN_LOOP
    """What sent the load, in words."""
    restocks: list[Restocked] = []
    skew_s: float = 0.0
    """Most by which the clocks of the engine's services differ from this machine's; 0 where not measured."""
    aborted: Abort | None = None
    """Why the load was stopped early."""

    @property
    def ended_s(self) -> float | None:
        """When the load was stopped early, in seconds from the run's start."""
        return None if self.aborted is None else self.aborted.at_s


def write_record(
    folder: Path,
    facts: RunFacts,
    history: pd.DataFrame,
    timeline: pd.DataFrame,
    state: FinalState,
    faults: Sequence[Interval] = (),
) -> None:
    """Write all that a verdict needs into the run's folder."""
    if faults:
        write_json(faults, folder / "faults.json")
    write_json(facts, folder / "run.json")
    write_history(history, folder / "history.parquet")
    timeline.to_csv(folder / "timeline.csv", index=False)
    write_state(state, folder)


def write_json(value: Any, file: Path) -> None:
    """Write a value as indented JSON."""
    file.write_bytes(format_json(value))


def format_json(value: Any) -> bytes:
    """Return a value as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(value)) + b"\n"


def read_facts(folder: Path) -> RunFacts:
    """Return the facts of the run. Raises RunError if the folder is not one of a run."""
    facts = read_part(folder, "run.json", RunFacts)
    if facts is None:
        raise RunError(f"{folder}: is not the folder of a run: it has no run.json")
    return facts


def read_faults(folder: Path) -> list[Interval]:
    """Return the faults that were done in the run. Raises RunError."""
    return read_part(folder, "faults.json", list[Interval]) or []


def read_hostile(folder: Path) -> HostileRecord | None:
    """Return the record of a run's hostile requests, None if there were none. Raises RunError."""
    return read_part(folder, FILE, HostileRecord)


def read_part(folder: Path, name: str, kind: type[T]) -> T | None:
    """Return a part of the record that is JSON; None without that file. Raises RunError."""
    try:
        return msgspec.json.decode((folder / name).read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{folder}: can't read its {name}: {error}") from None


def read_timeline(folder: Path) -> pd.DataFrame:
    """Return what the probes read. Raises RunError, also where a number is none or can't be."""
    try:
        timeline = pd.read_csv(folder / "timeline.csv").reset_index(drop=True)
        names = [name for name in map(str, timeline) if not name.startswith("node ")]
        numbers = timeline[names].astype("float64")
        strange = numbers.abs() >= MOST
        strange["t_s"] = ~(numbers["t_s"].abs() < MOST_S)
    except KeyError:
        raise RunError(f"{folder}: its timeline.csv has no column t_s") from None
    except (OSError, ValueError, TypeError, OverflowError) as error:
        raise RunError(f"{folder}: can't read its timeline.csv: {error}") from None
    for name in names:
        if strange[name].any():
            row = int(strange[name].argmax())
            raise RunError(f"{folder}: its timeline.csv has {numbers[name].iloc[row]} as {name} in row {row}")
    return timeline.assign(t_s=numbers["t_s"])
