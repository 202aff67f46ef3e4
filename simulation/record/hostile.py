"""The record of hostile requests in the run's folder."""

from pathlib import Path

import msgspec

from simulation.errors import RunError
from simulation.model.hostile import FILE, HostileRecord


def read_hostile(folder: Path) -> HostileRecord | None:
    """Return the record of a run's hostile requests, None where there were none. Raises RunError."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=HostileRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(f"{folder}: its {FILE} can't be read: {error}") from None
