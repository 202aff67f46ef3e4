"""The publisher: writes purchases and dead letters to the bus, and reads how long its queue is."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange, DeliveryMode

from engine.bus.connection import FindLedger, Nodes, close_connection, translate_errors
from engine.bus.topology import DEAD, PURCHASES, REASON
from engine.errors import BusUnavailable
from engine.model.dead_letter import DeadLetter

_CONFIRM_S: Final = 30.0
"""Longest wait for a confirm, since one that was lost would hold up the relay forever. Publishing again is
safe. But it leaves one more copy with a broker that blocks publishers, so the wait is long."""
_FIRST_CONFIRM_S: Final = 0.5
"""Longest wait for the first confirm of one of several nodes: one that does not know yet that the queue has
lost its leader confirms nothing. Once all of them were asked, the wait grows by a half each time, since all
of them may be slow."""
_DECLARE_S: Final = 5.0
"""Longest wait for one of several nodes to declare what is there; another one is asked then."""
_READ_S: Final = 5.0
"""Longest wait for an answer about the queue."""


class _Session(NamedTuple):
    """One connection, and what was made on it."""

    connection: AbstractConnection
    channel: AbstractChannel
    exchanges: dict[str, AbstractExchange]


class Publisher:
    """Publishes with confirms: when a call returns, the message is on the disks of the bus.

    Every method raises BusUnavailable if the bus did not confirm; the message may have arrived all the same.
    The first call connects, and so does the first one after an error, which closes the connection. With
    `find_ledger` it publishes nothing where another ledger settles the purchases.
    """

    def __init__(self, url: str, find_ledger: FindLedger | None = None) -> None:
        self._nodes = Nodes(url, find_ledger)
        self._connecting = asyncio.Lock()
        self._session: _Session | None = None
        self._is_proven = False
        """Whether something was confirmed in this session."""
        self._unproven = 0
        """Sessions in a row in which nothing was confirmed."""

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

    async def count_dead_letters(self) -> int:
        """Return the number of dead letters in their queue."""
        async with self._work(_READ_S, "no answer") as session:
            queue = await session.channel.declare_queue(DEAD, passive=True)
            return queue.declaration_result.message_count or 0

    async def read_queue(self) -> tuple[int, int]:
        """Return the number of messages in the purchases' queue that no consumer holds, and of its consumers.

        RabbitMQ counts a consumer for as long as it holds messages, even after its connection broke. So no
        messages and no consumers mean that the queue is empty and nothing of it is under way.
        """
        async with self._work(_READ_S, "no answer") as session:
            queue = await session.channel.declare_queue(PURCHASES, passive=True)
            result = queue.declaration_result
            return result.message_count or 0, result.consumer_count or 0

    async def close(self) -> None:
        """Close the connection, if there is one."""
        session, self._session = self._session, None
        await close_connection(session and session.connection)

    async def _publish(self, name: str, body: bytes, headers: dict[str, Any]) -> None:
        message = aio_pika.Message(
            body,
            delivery_mode=DeliveryMode.PERSISTENT,
            content_type="application/x-ndjson",
            headers=headers,
        )
        async with self._work(None, "no confirm; an alarm may block publishers") as session:
            await session.exchanges[name].publish(message, name, mandatory=True)
        self._is_proven, self._unproven = True, 0

    @asynccontextmanager
    async def _work(self, within_s: float | None, silence: str) -> AsyncIterator[_Session]:
        """Lend the session, and close it after any error: its channel may be closed, or its node alone.

        Raises BusUnavailable, with `silence` if the block takes longer than `within_s`, or a confirm may.
        """
        with translate_errors():
            session = await self._connect()
            if within_s is None:
                within_s = _CONFIRM_S if self._is_proven or self._nodes.count == 1 else self._first_s()
            try:
                async with asyncio.timeout(within_s):
                    yield session
            except BaseException as error:
                # Others may have connected anew since.
                if self._session is session:
                    self._unproven += not self._is_proven
                    self._session = None
                await close_connection(session.connection)
                if isinstance(error, TimeoutError):
                    raise BusUnavailable(f"{silence} in {within_s:g} s") from None
                raise

    def _first_s(self) -> float:
        more = min(max(0, self._unproven + 1 - self._nodes.count), 20)
        return float(min(_FIRST_CONFIRM_S * 1.5**more, _CONFIRM_S))

    async def _connect(self) -> _Session:
        async with self._connecting:
            if self._session is None:
                connection = await self._nodes.connect("publisher")
                try:
                    async with asyncio.timeout(_CONFIRM_S if self._nodes.count == 1 else _DECLARE_S):
                        # A message that no queue takes raises an error and is not lost.
                        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                        exchanges = {
                            PURCHASES: await self._nodes.declare(channel),
                            DEAD: await channel.get_exchange(DEAD, ensure=False),
                        }
                except BaseException:
                    await close_connection(connection)
                    raise
                self._session, self._is_proven = _Session(connection, channel, exchanges), False
            return self._session
