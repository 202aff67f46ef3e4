"""Connections to RabbitMQ: they close when they are told to, and all their errors are BusUnavailable."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractConnection
from aiormq.abc import ExceptionType
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import ConnectionClosed
from pamqp.common import FieldTable
from yarl import URL

from engine.errors import BusUnavailable

_CLOSE_S: Final = 2.0


async def connect_bus(url: str, name: str) -> AbstractConnection:
    """Return a connection that is not made again by itself when it is lost."""
    address = URL(url)
    connection = _Connection(
        address if "heartbeat" in address.query else address.update_query(heartbeat=15),
        client_properties={"connection_name": f"flashgrid {name}"},
    )
    try:
        await connection.connect(timeout=10)
    except BaseException:
        await connection.close()
        raise
    return connection


class _Streams(TransportFactory):
    """Opens the streams of one connection as the library does, and can end them.

    A connect that is cancelled at the moment of its success is lost to whoever asked for it: it stays open,
    and its heartbeats go on.
    """

    def __init__(self, tls: bool) -> None:
        self._factory = TLSTransportFactory() if tls else TCPTransportFactory()
        self._writer: asyncio.StreamWriter | None = None

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await self._factory.create(url, **options)
        return reader, self._writer

    def end(self) -> None:
        """Close the connection if it is still open."""
        if self._writer is not None:
            self._writer.transport.abort()


class _Connection(aio_pika.Connection):
    """A connection that is closed once `close` returns, even if the broker does not answer.

    The library takes a connection whose close failed for open, and closes it when it is collected, in any
    loop that runs then.
    """

    def __init__(self, url: URL, client_properties: FieldTable) -> None:
        super().__init__(url, client_properties=client_properties)
        self._streams = _Streams(tls=url.scheme == "amqps")
        self.kwargs["transport_factory"] = self._streams

    async def close(self, exc: ExceptionType | None = ConnectionClosed) -> None:
        """Close the connection; wait for the broker's answer no longer than two seconds."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    if self.transport is not None and not self.transport.connection.is_closed:
                        # The library drops frames that it has not sent yet, such as the last acknowledgement.
                        await self.transport.connection.write_queue.join()
                    await super().close(exc)
        finally:
            # This second call waits for nothing.
            await super().close(exc)
            self._streams.end()


async def close_connection(connection: AbstractConnection | None) -> None:
    """Close the connection, if there is one, in whatever state it is."""
    if connection is not None:
        with contextlib.suppress(BusUnavailable), translate_errors():
            await connection.close()


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Raise BusUnavailable for any error of the client library."""
    try:
        yield
    except BusUnavailable:
        raise
    except Exception as error:
        raise BusUnavailable(f"{type(error).__name__}: {error}") from error
    except asyncio.CancelledError as error:
        # The library cancels tasks that wait on a connection it closes; any other cancellation goes on.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BusUnavailable("the connection was closed") from error
