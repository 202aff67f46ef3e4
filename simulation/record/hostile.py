"""The record of hostile requests in the run's folder."""

from pathlib import Path

from simulation.model.hostile import FILE, HostileRecord
from simulation.record.facts import read_part


def read_hostile(folder: Path) -> HostileRecord | None:
    """Return the record of a run's hostile requests, None if there were none. Raises RunError."""
    return read_part(folder, FILE, HostileRecord)
