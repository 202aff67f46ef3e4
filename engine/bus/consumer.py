"""The consumer: reads messages from the bus and acknowledges those that are done."""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import Any, Final

from aio_pika.abc import AbstractConnection
from aiormq.abc import AbstractChannel, DeliveredMessage

from engine.bus.connection import FindLedger, Nodes, close_connection, translate_errors
from engine.bus.publisher import Publisher
from engine.bus.topology import PURCHASES
from engine.errors import BusUnavailable
from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, encode_lots
from engine.model.message import Message

_CONNECT_S: Final = 30.0
"""Longest wait for the queues to be declared."""
_IDLE_S: Final = 10.0
"""A consumer that has nothing for so long connects anew: the bus may be at another address by now, and a node
that was cut off from the others keeps its connections, and never has anything."""


class Consumer:
    """Reads messages from the bus; those that are not acknowledged are delivered again.

    With `find_ledger` it reads nothing where another ledger settles the purchases.
    """

    def __init__(self, url: str, prefetch: int, find_ledger: FindLedger | None = None) -> None:
        self._nodes = Nodes(url, find_ledger)
        self._prefetch = min(prefetch, 65_535)  # 16 bits in AMQP
        self._connection: AbstractConnection | None = None
        self._inbox: _Inbox | None = None
        # It publishes on a connection of its own: RabbitMQ blocks one that publishes when memory runs low,
        # and the one that consumes is what frees memory again.
        self._publisher = Publisher(url, find_ledger)

    async def read(self, wait_s: float) -> list[Message]:
        """Return messages that arrived; wait up to `wait_s` for the first of them. Raises BusUnavailable."""
        if self._inbox is not None and self._inbox.idle_s >= _IDLE_S:
            await self._disconnect()
        try:
            if self._inbox is None:
                self._inbox = await self._connect()
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
            if self._inbox is not None and delivered.channel is self._inbox.channel:
                self._inbox.release()
            with contextlib.suppress(BusUnavailable), translate_errors():
                await delivered.channel.basic_ack(delivered.delivery_tag or 0, wait=False)

    async def put_aside(self, dead_letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters in their queue. Raises BusUnavailable."""
        await self._publisher.put_aside(dead_letters)

    async def put_back(self, lots: Sequence[Lot]) -> None:
        """Publish lots of messages that are then acknowledged, behind all others. Raises BusUnavailable."""
        await self._publisher.publish(encode_lots(lots))

    async def close(self) -> None:
        """Close the connections; messages that were not acknowledged go to another consumer."""
        await self._disconnect()
        await self._publisher.close()

    async def _connect(self) -> "_Inbox":
        with translate_errors():
            self._connection = await self._nodes.connect("consumer")
            async with asyncio.timeout(_CONNECT_S):
                return await self._consume(self._connection)

    async def _consume(self, connection: AbstractConnection) -> "_Inbox":
        channel = await connection.channel(publisher_confirms=False)
        await self._nodes.declare(channel)
        await channel.set_qos(prefetch_count=self._prefetch)
        underlay = await channel.get_underlay_channel()
        inbox = _Inbox(underlay)
        channel.close_callbacks.add(inbox.close)
        underlay.on_consumer_cancel_callbacks.add(inbox.close)
        await underlay.basic_consume(PURCHASES, inbox.put)
        return inbox

    async def _disconnect(self) -> None:
        connection, self._connection, self._inbox = self._connection, None, None
        await close_connection(connection)


class _Inbox:
    """Messages that arrived on one channel, until it is closed."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel
        self.held = 0
        """Messages that were handed out and not acknowledged."""
        self._heard_at = time.monotonic()
        self._messages: list[DeliveredMessage] = []
        self._changed = asyncio.Event()
        self._closed = False

    async def put(self, message: DeliveredMessage) -> None:
        self._messages.append(message)
        self._changed.set()

    @property
    def idle_s(self) -> float:
        """How long it has held nothing."""
        return 0.0 if self.held or self._messages else time.monotonic() - self._heard_at

    def release(self) -> None:
        """Note that a message is acknowledged."""
        self.held -= 1
        self._heard_at = time.monotonic()

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
        if messages:
            self.held += len(messages)
            self._heard_at = time.monotonic()
        self._changed.clear()
        return messages
