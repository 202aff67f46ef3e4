"""What the programs behind the private services have in common."""

import os
from importlib.util import find_spec
from pathlib import Path

from engine.errors import StackError


def log_of(folder: Path) -> Path:
    """Return the file for the output of the service whose data are in `folder`."""
    return folder.with_name(folder.name + ".log")


def plain_environment() -> dict[str, str]:
    """Return an environment without settings for other servers (PGPORT, RABBITMQ_…, ERL_…)."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C.UTF-8"}


def package_folder(package: str) -> Path:
    """Return the folder of an installed Python package. Raises StackError if it is missing."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise StackError(f"{package} is not installed: pip install 'flashgrid[local]'")
    return Path(spec.origin).parent
