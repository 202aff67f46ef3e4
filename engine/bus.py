"""The bus: RabbitMQ carries purchases from the relay to fulfilment, and keeps what nobody can fulfil.

Connections are made when they are needed. After a failure `close` makes the next call connect anew; when that
is to be is for the caller to decide.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, DeliveryMode
from aiormq.abc import DeliveredMessage, ExceptionType
from aiormq.exceptions import ConnectionClosed
from yarl import URL

from engine.delivery import Delivery
from engine.errors import BusUnavailable
from engine.metrics import QUEUE_LENGTH
from engine.reservation import Poison

PURCHASES: Final = "flashgrid.purchases"
"""Exchange, queue and routing key of the purchases."""
DEAD: Final = "flashgrid.dead"
"""Exchange, queue and routing key of the records that can't be fulfilled."""
REASON: Final = "x-flashgrid-reason"
"""Header of a dead letter."""

_CONNECT_S: Final = 10.0
_CONFIRM_S: Final = 30.0
"""Longest wait for a confirm. To publish again is safe, and a confirm that was lost would hold up for ever
what is in hand. But each time leaves one more copy with a broker that blocks publishers, so it is long."""
_CLOSE_S: Final = 2.0
_HEARTBEAT_S: Final = 15
_SAMPLE_S: Final = 1.0
_MOST_PREFETCH: Final = 65_535
"""AMQP counts it in 16 bits."""
_DELIVERY_LIMIT: Final = 1_000_000
"""A purchase outlives any number of outages; RabbitMQ 4 would give it up after 20 deliveries."""


async def declare_topology(channel: AbstractChannel) -> AbstractExchange:
    """Declare every exchange and queue, all durable; return the exchange of the purchases."""
    dead = await channel.declare_exchange(DEAD, durable=True)
    dead_queue = await channel.declare_queue(DEAD, durable=True, arguments={"x-queue-type": "quorum"})
    await dead_queue.bind(dead, DEAD)
    purchases = await channel.declare_exchange(PURCHASES, durable=True)
    queue = await channel.declare_queue(
        PURCHASES,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": DEAD,
            "x-dead-letter-routing-key": DEAD,
            "x-delivery-limit": _DELIVERY_LIMIT,
        },
    )
    await queue.bind(purchases, PURCHASES)
    return purchases


class Publisher:
    """Publishes with confirms: what it returned from is on the disks of the bus.

    Raises BusUnavailable if a message was not confirmed. It may still have arrived, so publish it again.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connecting = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._exchanges: dict[str, AbstractExchange] = {}

    async def publish(self, lines: bytes) -> None:
        """Send one message of purchases, a line each (reservation.py)."""
        await self._publish(PURCHASES, lines, {})

    async def dead_letter(self, poison: Iterable[Poison]) -> None:
        """Keep records that can't be fulfilled, each with the reason and the way it came."""
        for record in poison:
            headers = {
                REASON: record.reason,
                "x-flashgrid-exchange": PURCHASES,
                "x-flashgrid-routing-key": PURCHASES,
            }
            await self._publish(DEAD, record.body, headers)

    async def count_messages(self) -> int:
        """Messages in the purchases' queue that no consumer holds."""
        return (await self.read_queue())[0]

    async def read_queue(self) -> tuple[int, int]:
        """Messages in the purchases' queue that no consumer holds, and consumers.

        RabbitMQ counts a consumer for as long as it holds messages, even one whose connection has broken, so
        that no messages and no consumers mean that the queue is empty and nothing of it is under way.
        """
        with translate_errors():
            channel = await self._connect()
            queue = await channel.declare_queue(PURCHASES, passive=True)
            result = queue.declaration_result
            return result.message_count or 0, result.consumer_count or 0

    async def watch(self) -> None:
        """Keep the metric of the queue's length up to date, for ever."""
        while True:
            with contextlib.suppress(BusUnavailable):
                QUEUE_LENGTH.set(await self.count_messages())
            await asyncio.sleep(_SAMPLE_S)

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._channel = self._connection, None, None
        await _close(connection)

    async def _publish(self, name: str, body: bytes, headers: dict[str, Any]) -> None:
        with translate_errors():
            await self._connect()
            message = aio_pika.Message(
                body,
                delivery_mode=DeliveryMode.PERSISTENT,
                content_type="application/x-ndjson",
                headers=headers,
            )
            try:
                async with asyncio.timeout(_CONFIRM_S):
                    await self._exchanges[name].publish(message, name, mandatory=True)
            except TimeoutError:
                raise BusUnavailable(
                    f"no confirm in {_CONFIRM_S:g} s; an alarm may block publishers"
                ) from None

    async def _connect(self) -> AbstractChannel:
        async with self._connecting:
            if self._channel is None:
                # One on which a step of this failed.
                await _close(self._connection)
                self._connection = await connect_bus(self._url, "publisher")
                # A message that no queue takes is an error, not lost.
                channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
                self._exchanges = {
                    PURCHASES: await declare_topology(channel),
                    DEAD: await channel.get_exchange(DEAD, ensure=False),
                }
                self._channel = channel
            return self._channel


class Consumer:
    """Reads purchases from the bus; what is not acknowledged is delivered again."""

    def __init__(self, url: str, prefetch: int) -> None:
        self._url = url
        self._prefetch = min(prefetch, _MOST_PREFETCH)
        self._connection: AbstractConnection | None = None
        self._inbox: _Inbox | None = None
        # Dead letters go their own way: RabbitMQ blocks a connection that publishes when memory runs low,
        # and the one that consumes is what makes memory free again.
        self._publisher = Publisher(url)

    async def read(self, wait_s: float) -> list[Delivery]:
        """Messages that arrived; waits up to `wait_s` for the first of them. Raises BusUnavailable."""
        if self._inbox is None:
            self._inbox = await self._connect()
        try:
            return [_take(message) for message in await self._inbox.take(wait_s)]
        except BusUnavailable:
            await self._disconnect()
            raise

    async def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Delete messages that are done. On a channel that is gone this does nothing: they come again."""
        for delivery in deliveries:
            message: DeliveredMessage = delivery.tag
            with contextlib.suppress(BusUnavailable), translate_errors():
                await message.channel.basic_ack(message.delivery_tag or 0, wait=False)

    async def dead_letter(self, poison: Iterable[Poison]) -> None:
        """Keep records that can't be fulfilled. Raises BusUnavailable."""
        try:
            await self._publisher.dead_letter(poison)
        except BusUnavailable:
            await self._publisher.close()
            raise

    async def close(self) -> None:
        """Close the connections; messages that were not acknowledged go to another consumer."""
        await self._disconnect()
        await self._publisher.close()

    async def _connect(self) -> "_Inbox":
        with translate_errors():
            await _close(self._connection)
            self._connection = await connect_bus(self._url, "consumer")
            channel = await self._connection.channel(publisher_confirms=False)
            await declare_topology(channel)
            await channel.set_qos(prefetch_count=self._prefetch)
            inbox = _Inbox()
            channel.close_callbacks.add(inbox.close)
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(inbox.close)
            await underlay.basic_consume(PURCHASES, inbox.put)
            return inbox

    async def _disconnect(self) -> None:
        connection, self._connection, self._inbox = self._connection, None, None
        await _close(connection)


class _Inbox:
    """Messages that arrived on one channel, until it is closed."""

    def __init__(self) -> None:
        self._messages: list[DeliveredMessage] = []
        self._changed = asyncio.Event()
        self._closed = False

    async def put(self, message: DeliveredMessage) -> None:
        self._messages.append(message)
        self._changed.set()

    def close(self, *_: Any) -> None:
        self._closed = True
        self._changed.set()

    async def take(self, wait_s: float) -> list[DeliveredMessage]:
        if not self._changed.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
        if self._closed:
            # What arrived can no longer be acknowledged, and is on its way to the next consumer.
            raise BusUnavailable("the channel was closed")
        messages, self._messages = self._messages, []
        self._changed.clear()
        return messages


def _take(message: DeliveredMessage) -> Delivery:
    return Delivery(tag=message, lines=message.body, repeated=bool(message.redelivered))


async def connect_bus(url: str, name: str) -> AbstractConnection:
    """A connection that does not come back by itself when it is lost."""
    connection = _Connection(
        URL(url).update_query(heartbeat=_HEARTBEAT_S),
        client_properties={"connection_name": f"flashgrid {name}"},
    )
    try:
        await connection.connect(timeout=_CONNECT_S)
    except BaseException:
        await connection.close()
        raise
    return connection


class _Connection(aio_pika.Connection):
    """A connection that is closed once it was told to, even if its broker does not say goodbye.

    After an attempt that failed the library holds it for open, and closes it when it is collected, in
    whatever loop runs then.
    """

    async def close(self, exc: ExceptionType | None = ConnectionClosed) -> None:
        """Close it. A broker that doesn't answer does not hold up who leaves."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    if self.transport is not None and not self.transport.connection.is_closed:
                        # The library drops what it has not sent yet, such as the last acknowledgement.
                        await self.transport.connection.write_queue.join()
                    await super().close(exc)
        finally:
            # The second time there is nothing to wait for.
            await super().close(exc)


async def _close(connection: AbstractConnection | None) -> None:
    if connection is not None:
        with contextlib.suppress(BusUnavailable), translate_errors():
            await connection.close()


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Raise BusUnavailable for any error of the client library: the bus did not do what was asked."""
    try:
        yield
    except BusUnavailable:
        raise
    except Exception as error:
        raise BusUnavailable(f"{type(error).__name__}: {error}") from error
    except asyncio.CancelledError as error:
        # The library cancels who waits on a connection that it closes; a true cancellation goes on.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise BusUnavailable("the connection was closed") from error
