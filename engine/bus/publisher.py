"""The bus: RabbitMQ carries purchases from the relay to fulfilment, and keeps what nobody can fulfil.

Connections are made when they are needed. After a failure `close` makes the next call connect anew; when that
is to be is for the caller to decide.
"""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, DeliveryMode

from engine.bus.connection import close_connection, connect_bus, translate_errors
from engine.bus.topology import DEAD, PURCHASES, REASON, declare_topology
from engine.errors import BusUnavailable
from engine.metrics import QUEUE_LENGTH
from engine.model.dead_letter import Poison

_CONFIRM_S: Final = 30.0
"""Longest wait for a confirm. To publish again is safe, and a confirm that was lost would hold up for ever
what is in hand. But each time leaves one more copy with a broker that blocks publishers, so it is long."""
_SAMPLE_S: Final = 1.0


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
                # One on which a step of this failed.
                await close_connection(self._connection)
                self._connection = await connect_bus(self._url, "publisher")
                # A message that no queue takes is an error, not lost.
                channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
                self._exchanges = {
                    PURCHASES: await declare_topology(channel),
                    DEAD: await channel.get_exchange(DEAD, ensure=False),
                }
                self._channel = channel
            return self._channel
