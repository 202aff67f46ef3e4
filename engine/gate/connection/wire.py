"""The wire: a lane's connection, which packs and reads without the client library."""

import asyncio
from typing import Any, cast

from hiredis import Reader, pack_command
from redis.asyncio import Redis
from redis.asyncio.connection import DefaultParser
from redis.exceptions import ConnectionError

from engine.gate.connection.following import lose_closed

Argument = str | bytes | int


class Wire(asyncio.Protocol):
    """One connection that sends commands in one piece and reads their answers without a stream between.

    To pack and to read costs the client library several times as much. So it only connects, with all that a
    URL may ask for, and then hands its transport over. One caller at a time; nothing is sent twice.
    """

    def __init__(self, redis: Redis) -> None:
        self._connection: Any = redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
        self._transport: asyncio.Transport | None = None
        self._reader = Reader(replyError=DefaultParser.parse_error)
        self._answers: list[Any] = []
        self._asked = 0
        self._answered: asyncio.Future[None] | None = None

    async def connect(self) -> None:
        """Look the server's name up and connect, once. Raises RedisError."""
        try:
            await self._connection.connect()
            self._transport = self._connection._writer.transport
            self._transport.set_protocol(self)
        except BaseException:
            await self._connection.disconnect(nowait=True)
            raise

    @property
    def heard(self) -> list[Any]:
        """What was answered to the latest commands, also if the wait for the rest of it failed."""
        return self._answers

    @property
    def is_open(self) -> bool:
        """Whether it is neither lost nor, as all connections of its client, left after a refusal."""
        return self._transport is not None and not self._connection.is_left

    async def ask(self, *commands: tuple[Argument, ...]) -> list[Any]:
        """Return the answers to all commands; an error that Redis answers stands in its place.

        A wait that ends early closes the connection. Raises ConnectionError if that is lost.
        """
        if self._transport is None:
            raise ConnectionError("the connection is closed")
        self._answers, self._asked = [], len(commands)
        self._answered = asyncio.get_running_loop().create_future()
        try:
            with lose_closed():
                # Its type says tuples of one word.
                self._transport.write(b"".join(map(cast(Any, pack_command), commands)))
            await self._answered
        except BaseException:
            self.close()
            raise
        return self._answers

    def close(self) -> None:
        """Disconnect at once."""
        if self._transport is not None:
            self._transport.abort()
            self._forget()

    def _forget(self) -> None:
        # The library's connection must not take its transport, which is gone, for one that was left open.
        self._connection._reader = self._connection._writer = self._transport = None

    def data_received(self, data: bytes) -> None:
        """Read the answers that are complete."""
        self._reader.feed(data)
        while (answer := self._reader.gets()) is not False:
            self._connection.note(answer)
            self._answers.append(answer)
        if len(self._answers) == self._asked and self._answered is not None and not self._answered.done():
            self._answered.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the wait for answers."""
        self._forget()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError(str(exc or "the server closed the connection")))
