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
    web_port: int | None
    """Of Locust's page, on loopback; 0 is a free one, None: no page."""
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
