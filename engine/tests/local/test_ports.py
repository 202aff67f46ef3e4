"""Ports for services."""

import random
import socket

import pytest

from engine.local.ports import free_port


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, free = free_port(), 1_024
    with (
        socket.socket(type=socket.SOCK_DGRAM) as claim,  # as another process holds it
        socket.create_server(("127.0.0.1", 0)) as server,
    ):
        claim.bind(("127.0.0.1", 0))
        draws = iter([mine, claim.getsockname()[1], server.getsockname()[1], free])
        monkeypatch.setattr(random.SystemRandom, "randint", lambda *_: next(draws))
        assert free_port() == free
