"""Connections to RabbitMQ: they close when they are told to, and all their errors are BusUnavailable."""

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Final

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aiormq.abc import ExceptionType
from aiormq.connection import FrameReceiver, TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import AMQPError, ConnectionClosed, InvalidFrameError
from pamqp import commands
from pamqp.base import Frame
from pamqp.common import FieldTable
from pamqp.frame import FrameTypes, marshal
from yarl import URL

from engine.bus.topology import declare_topology
from engine.errors import BusUnavailable
from engine.urls import split_hosts

_CLOSE_S: Final = 2.0
_CONNECT_S: Final = (10.0,)
_HEARTBEAT_S: Final = 15
"""Where one node is the whole bus: a wait is all that helps."""
_CONNECT_TO_NEXT_S: Final = (0.5, 2.0)
"""The second wait is for nodes that are slow, once none has answered within the first one."""
_HEARTBEAT_OF_SEVERAL_S: Final = 3
"""Where there are other nodes: one that says nothing for so long is left."""
_CLOSE_OF_SEVERAL_S: Final = 0.2
FindLedger = Callable[[], Awaitable[str]]
"""Returns the identity of the ledger that settles the purchases, "" if it is not known yet."""


class Nodes:
    """The nodes of a bus. Each connect begins with the node after the one that was connected to last."""

    def __init__(self, url: str, find_ledger: FindLedger | None = None) -> None:
        self._find_ledger = find_ledger
        self._ledger = ""
        urls = list(split_hosts(url).values())
        self._urls = deque(random.sample(urls, len(urls)))
        self.count = len(urls)

    async def connect(self, name: str) -> AbstractConnection:
        """Return a connection to a node that answers, which is not made again by itself when it is lost.

        Raises BusUnavailable with what the last node raises if none of them answers.
        """
        failed = BusUnavailable("no node is named")
        for wait_s in _CONNECT_TO_NEXT_S if self.count > 1 else _CONNECT_S:
            for _ in range(self.count):
                try:
                    with translate_errors():
                        return await self._connect_to_next(name, wait_s)
                except BusUnavailable as error:
                    failed = error
        raise failed

    async def declare(self, channel: AbstractChannel) -> AbstractExchange:
        """Declare exchanges and queues for the ledger, if one is to be found; see declare_topology."""
        if self._find_ledger is not None and not self._ledger:
            self._ledger = await self._find_ledger()
        return await declare_topology(channel, self._ledger)

    async def _connect_to_next(self, name: str, wait_s: float) -> AbstractConnection:
        address = URL(self._urls[0])
        self._urls.rotate(-1)
        several = self.count > 1
        default_s = _HEARTBEAT_OF_SEVERAL_S if several else _HEARTBEAT_S
        heartbeat_s = address.query.get("heartbeat", default_s)
        connection = _Connection(
            address.update_query(heartbeat=heartbeat_s),
            {"connection_name": f"flashgrid {name}"},
            max(2, int(heartbeat_s)) if several else None,
        )
        try:
            await connection.connect(timeout=wait_s)
        except BaseException as error:
            await connection.close()
            if isinstance(error, InvalidFrameError):
                said = await _find_refusal(address, wait_s)
                # Without a reason it may be another one by now: only a cause is final.
                raise BusUnavailable(said or "the virtual host was not opened") from (
                    (said and error) or None
                )
            raise
        return connection


async def connect_bus(url: str, name: str) -> AbstractConnection:
    """Return a connection to any node of a bus; see Nodes.connect."""
    return await Nodes(url).connect(name)


class _Candid(aiormq.Connection):
    """Says why the broker refuses a virtual host, which the library hides."""

    @staticmethod
    async def _rpc(
        request: Frame,
        writer: asyncio.StreamWriter,
        frame_receiver: FrameReceiver,
        wait_response: bool = True,
    ) -> FrameTypes | None:
        writer.write(marshal(request, 0))
        await writer.drain()
        if not wait_response:
            return None
        _, _, frame = await frame_receiver.get_frame()
        if isinstance(frame, commands.Connection.Close):
            raise ConnectionClosed(frame.reply_code, frame.reply_text)
        return frame


async def _find_refusal(url: URL, wait_s: float) -> str:
    """Return how a node refuses to open the virtual host; nothing if it does not."""
    connection = _Candid(url)
    try:
        async with asyncio.timeout(wait_s):
            await connection.connect()
    except ConnectionClosed as error:
        return str(error.args[-1])
    except (AMQPError, OSError):
        return ""
    finally:
        await connection.close()
    return ""


class _Streams(TransportFactory):
    """Opens the streams of one connection as the library does, and can end them.

    A connect that is cancelled at the moment of its success is lost to whoever asked for it: it stays open,
    and its heartbeats go on. A connection whose node says nothing for `silence_s`, if that is given, ends:
    the library waits for three missed heartbeats, and some seconds more.
    """

    def __init__(self, tls: bool, silence_s: int | None) -> None:
        self._factory = TLSTransportFactory() if tls else TCPTransportFactory()
        self._writer: asyncio.StreamWriter | None = None
        self._silence_s = silence_s
        self._silent_s = 0
        self._timer: asyncio.TimerHandle | None = None

    async def create(self, url: URL, **options: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, self._writer = await self._factory.create(url, **options)
        if self._silence_s is not None:
            reader = _Listener(reader, self)
            self._count()
        return reader, self._writer

    def hear(self) -> None:
        """Note that the node lives."""
        self._silent_s = 0

    def end(self) -> None:
        """Close the connection if it is still open."""
        if self._timer is not None:
            self._timer.cancel()
        if self._writer is not None:
            self._writer.transport.abort()

    def _count(self) -> None:
        # Seconds are counted, not measured: a process that stood still has heard nothing meanwhile.
        if self._silent_s == self._silence_s:
            self.end()
            return
        self._silent_s += 1
        self._timer = asyncio.get_running_loop().call_later(1, self._count)


class _Listener(asyncio.StreamReader):
    """Reads as another reader does, and tells its streams of all that it hears."""

    def __init__(self, reader: asyncio.StreamReader, streams: _Streams) -> None:
        super().__init__()
        self._reader = reader
        self._streams = streams

    def at_eof(self) -> bool:
        return self._reader.at_eof()

    async def readexactly(self, n: int) -> bytes:
        data = await self._reader.readexactly(n)
        self._streams.hear()
        return data

    async def read(self, n: int = -1) -> bytes:
        return await self._reader.read(n)


class _Connection(aio_pika.Connection):
    """A connection that is closed once `close` returns, even if the broker does not answer.

    The library takes a connection whose close failed for open, and closes it when it is collected, in any
    loop that runs then.
    """

    def __init__(self, url: URL, client_properties: FieldTable, silence_s: int | None) -> None:
        super().__init__(url, client_properties=client_properties)
        self._close_s = _CLOSE_S if silence_s is None else _CLOSE_OF_SEVERAL_S
        self._streams = _Streams(url.scheme == "amqps", silence_s)
        self.kwargs["transport_factory"] = self._streams

    async def close(self, exc: ExceptionType | None = ConnectionClosed) -> None:
        """Close the connection; wait for the broker's answer no longer than two seconds, or a part of one."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._close_s):
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
