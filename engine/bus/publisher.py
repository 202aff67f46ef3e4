"""The publisher: writes purchases and dead letters to the bus, and reads how long its queue is."""

import asyncio
from collections.abc import Iterable
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, DeliveryMode

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.topology import DEAD, PURCHASES, REASON, declare_topology
from engine.errors import BusUnavailable
from engine.model.dead_letter import DeadLetter

_CONFIRM_S: Final = 30.0
"""Longest wait for a confirm, since one that was lost would hold up the relay forever. Publishing again is
safe. But it leaves one more copy with a broker that blocks publishers, so the wait is long."""


class Publisher:
    """Publishes with confirms: when a call returns, the message is on the disks of the bus.

    Every method raises BusUnavailable if the bus did not confirm; the message may have arrived all the same.
    The first call connects, and so does the first one after `close`.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connecting = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._exchanges: dict[str, AbstractExchange] = {}

    async def publish(self, lines: bytes) -> None:
        """Send one message of lots, one a line (lot.py)."""
        await self._publish(PURCHASES, lines, {})

    async def put_aside(self, dead_letters: Iterable[DeadLetter]) -> None:
        """Keep dead letters in their queue, each with its reason and its origin."""
        for dead_letter in dead_letters:
            headers = {
                REASON: dead_letter.reason,
                "x-flashgrid-exchange": PURCHASES,
                "x-flashgrid-routing-key": PURCHASES,
            }
            await self._publish(DEAD, dead_letter.body, headers)

    async def count_messages(self) -> int:
        """Return the number of messages in the purchases' queue that no consumer holds."""
        return (await self.read_queue())[0]

    async def read_queue(self) -> tuple[int, int]:
        """Return the number of messages in the purchases' queue that no consumer holds, and of its consumers.

        RabbitMQ counts a consumer for as long as it holds messages, even after its connection broke. So no
        messages and no consumers mean that the queue is empty and nothing of it is under way.
        """
        with translate_errors():
            channel = await self._connect()
            queue = await channel.declare_queue(PURCHASES, passive=True)
            result = queue.declaration_result
            return result.message_count or 0, result.consumer_count or 0

    async def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._channel = self._connection, None, None
        await close_connection(connection)

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
                # There may be one on which a step below failed.
                await close_connection(self._connection)
                self._connection = await connect_bus(self._url, "publisher")
                # A message that no queue takes raises an error and is not lost.
                channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
                self._exchanges = {
                    PURCHASES: await declare_topology(channel),
                    DEAD: await channel.get_exchange(DEAD, ensure=False),
                }
                self._channel = channel
            return self._channel
