"""The record of hostile requests in the run's folder."""

from pathlib import Path

import msgspec

from simulation.errors import RunError
from simulation.model.hostile import FILE, Siege


def read_siege(folder: Path) -> Siege | None:
    """The siege of a run, None where there was none. Raises RunError."""
    try:
        return msgspec.json.decode((folder / FILE).read_bytes(), type=Siege)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise RunError(f"{folder}: its {FILE} can't be read: {error}") from None
