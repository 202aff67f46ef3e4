"""What the processes of a Locust load are told by their parent. Free of gevent and Locust."""

from typing import Final

import msgspec

from simulation.drive.parts import Job

LOOPBACK: Final = "127.0.0.1"


class Lead(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Leads a load as the master of workers."""

    parts: list[Job]
    """The load, dealt: one part for each worker."""
    url: str
    """The engine, as Locust's page shows it."""
    bind: str
    port: int
    """Where the workers find it; 0 is a free one."""
    web: bool
    """Whether Locust's page is served, on loopback."""
    wait_s: float
    """Longest wait for the workers."""


class Follow(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sends what a master deals it."""

    host: str
    port: int
    wait_s: float
    """Longest wait for the master."""


class Listening(msgspec.Struct, frozen=True):
    """Where a master listens."""

    port: int
    web_port: int | None = None
