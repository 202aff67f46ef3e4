"""Ports: free ones for services, and those of a service that has several servers."""

import os
import random
import socket
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_MOST_CLAIMS: Final = 64
_claims: Final = deque[int]()
"""Sockets that hold the ports given last."""


def port_is_free(port: int) -> bool:
    """Return whether a server could listen on this loopback port now."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def note_ports(folder: Path, ports: Sequence[int]) -> None:
    """Write down the ports of a service that has several servers."""
    (folder / "ports").write_text(" ".join(map(str, ports)))


def read_ports(folder: Path) -> list[int]:
    """Return the ports that were written down."""
    return [int(port) for port in (folder / "ports").read_text().split()]


def free_port() -> int:
    """Return a free loopback port, below the range that systems hand out to outgoing connections.

    So it is still free after its service was down for a moment, and so is the port 10,000 higher, at which a
    node of a Redis Cluster hears others. Nobody is given it again until this process ends or has had 64 more.
    """
    while True:
        port = random.SystemRandom().randint(15_000, 22_000)
        if port_is_free(port) and _claim(port):
            return port


def _claim(port: int) -> bool:
    """Hold the UDP port of this number, which no service uses; return whether nobody else does."""
    claim = socket.socket(type=socket.SOCK_DGRAM)
    try:
        claim.bind(("127.0.0.1", port))
    except OSError:
        claim.close()
        return False
    _claims.append(claim.detach())
    if len(_claims) > _MOST_CLAIMS:
        os.close(_claims.popleft())
    return True
