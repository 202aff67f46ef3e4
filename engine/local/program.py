"""What the programs behind the private services have in common."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

from engine.errors import StackError
from engine.local.process import ProcessId


class Program(Protocol):
    """One kind of service. `ports[0]` is the port on which it serves."""

    name: str
    ports: int
    """How many ports it needs."""
    stop_signal: signal.Signals

    def url(self, port: int) -> str:
        """Return the URL for clients."""

    async def launch(self, folder: Path, ports: list[int]) -> list[ProcessId]:
        """Start it with its data in `folder`, which exists. Return its processes, the serving one first."""

    async def probe(self, port: int) -> str:
        """Ask for its version over its own protocol. Raises OSError or EOFError while it is not ready."""


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
