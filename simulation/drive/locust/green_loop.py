"""The open loop on gevent's greenlets, for Locust: schedule, timeouts and outcomes are those of OpenLoop.

Each connection is a greenlet that reads. Needs gevent's patched sockets, and so a process of its own.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable
from typing import Final

import gevent

from simulation.drive.open_loop import Connection, Door, OpenLoop

TICK_S: Final = 0.001
"""Shortest sleep between two beats."""


class GreenTransport(asyncio.Transport):
    """The transport of a Connection, on a socket of gevent's."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__()
        self.socket = connected

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send; a request is far smaller than the buffer of a socket that carries one at a time."""
        with contextlib.suppress(OSError):  # the reader finds out what became of the connection
            self.socket.sendall(data)

    def abort(self) -> None:
        """Close the connection at once."""
        self.socket.close()


class GreenLoop(OpenLoop):
    """An OpenLoop whose connections are greenlets."""

    def carry(self, t0_ns: int, after_beat: Callable[[], None]) -> None:
        """Send everything from `t0_ns` (time.monotonic_ns) on; return when every request has ended."""
        self.begin(t0_ns)
        try:
            while (at_ns := self.beat()) is not None:
                after_beat()
                gevent.sleep(max((at_ns - time.monotonic_ns()) / 1e9, TICK_S))
            after_beat()
        finally:
            gevent.killall([each for door in self.doors for each in door.connecting])
            for connection in [each for door in self.doors for each in door.all]:
                connection.transport.abort()

    def _open(self, door: Door, count: int) -> None:
        for _ in range(count):
            door.connecting.add(gevent.spawn(self._live, door))

    def _live(self, door: Door) -> None:
        """Open a connection and read from it until it ends."""
        try:
            connected = socket.create_connection(
                (door.address.host, door.address.port), self.timeout_ns / 1e9
            )
            if door.tls:
                connected = door.tls.wrap_socket(connected, server_hostname=door.tls_name)
        except OSError as error:
            self.refuse(door, error)
            return
        finally:
            door.connecting.discard(gevent.getcurrent())
        with connected:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connected.settimeout(None)
            connection = Connection(self, door)
            connection.connection_made(GreenTransport(connected))
            try:
                while data := connected.recv(65_536):
                    connection.data_received(data)
                connection.connection_lost(None)
            except OSError as error:
                connection.connection_lost(error)
