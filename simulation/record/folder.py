"""The folder of a run."""

import contextlib
from pathlib import Path

from simulation.errors import RunError


def make_folder(folder: Path) -> None:
    """Make the folder of a run. Raises RunError if something is in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise RunError(f"{folder}: is not empty; a run needs a folder of its own")
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror}") from None


def drop_empty(folder: Path) -> None:
    """Remove the folder of a run that has left nothing in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
