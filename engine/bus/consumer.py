"""The consumer: reads messages from the bus and acknowledges those that are done."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, Final

from aio_pika.abc import AbstractConnection
from aiormq.abc import DeliveredMessage

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.publisher import Publisher
from engine.bus.topology import PURCHASES, declare_topology
from engine.errors import BusUnavailable
from engine.model.dead_letter import DeadLetter
from engine.model.message import Message

_MOST_PREFETCH: Final = 65_535
"""AMQP holds the prefetch in 16 bits."""


class Consumer:
    """Reads messages from the bus; those that are not acknowledged are delivered again."""

    def __init__(self, url: str, prefetch: int) -> None:
        self._url = url
        self._prefetch = min(prefetch, _MOST_PREFETCH)
        self._connection: AbstractConnection | None = None
        self._inbox: _Inbox | None = None
        # Dead letters have a connection of their own: RabbitMQ blocks a connection that publishes when memory
        # runs low, and the one that consumes is what frees memory again.
        self._publisher = Publisher(url)

    async def read(self, wait_s: float) -> list[Message]:
        """Return messages that arrived; wait up to `wait_s` for the first of them. Raises BusUnavailable."""
        if self._inbox is None:
            self._inbox = await self._connect()
        try:
            return [
                Message(tag=message, lines=message.body, repeated=bool(message.redelivered))
                for message in await self._inbox.take(wait_s)
            ]
        except BusUnavailable:
            await self._disconnect()
            raise

    async def acknowledge(self, messages: Iterable[Message]) -> None:
        """Delete messages that are done. Does nothing if their channel is lost: they are delivered again."""
        for message in messages:
            delivered: DeliveredMessage = message.tag
            with contextlib.suppress(BusUnavailable), translate_errors():
                await delivered.channel.basic_ack(delivered.delivery_tag or 0, wait=False)

    async def put_aside(self, dead_letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters in their queue. Raises BusUnavailable."""
        try:
            await self._publisher.put_aside(dead_letters)
        except BusUnavailable:
            await self._publisher.close()
            raise

    async def close(self) -> None:
        """Close the connections; messages that were not acknowledged go to another consumer."""
        await self._disconnect()
        await self._publisher.close()

    async def _connect(self) -> "_Inbox":
        with translate_errors():
            await close_connection(self._connection)
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
        await close_connection(connection)


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
            # What arrived can no longer be acknowledged, and is delivered to the next consumer.
            raise BusUnavailable("the channel was closed")
        messages, self._messages = self._messages, []
        self._changed.clear()
        return messages
