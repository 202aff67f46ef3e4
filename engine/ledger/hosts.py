"""The servers of one ledger: each of several is asked all the time whether it is the one in charge."""

import asyncio
import logging
from contextlib import AbstractAsyncContextManager
from importlib.resources import files
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakSet

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from engine.ledger.queries import describe
from engine.tasks import cancel
from engine.urls import split_hosts

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

log = logging.getLogger(__name__)

_QUESTION: Final = files("engine.ledger").joinpath("server.sql").read_text()
_ANSWER_S: Final = 1.0
"""Longest wait for a server to connect, or to answer."""
_PAUSE_S: Final = 0.5
"""Between two questions to a server."""
_NAME: Final = "flashgrid hosts"
_SESSION: Final = files("engine.ledger").joinpath("session.sql").read_text()
_PATIENCE_S: Final = 5.0
"""Longest wait for a server to be in charge: one that is promoted meanwhile is used at once."""


class _Answer(NamedTuple):
    """What a server says of itself."""

    writes: bool
    timeline: int


class Hosts(AbstractAsyncContextManager["Hosts"]):
    """Connects to the server in charge: the one that takes writes, on the highest timeline that is known.

    A single host is connected to as it is. Of several, an old primary that was frozen or cut off while a
    standby was promoted takes itself for the primary. So every server is asked, a standby as well, and as
    soon as one tells of a higher timeline all connections that were made before end.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._urls = split_hosts(url)
        self._answers: dict[str, _Answer | Exception | None] = dict.fromkeys(self._urls)
        self._timeline = 0
        self._connections: WeakSet[Connection] = WeakSet()
        self._in_charge: str | None = None
        self._changed = asyncio.Event()
        self.several = len(self._urls) > 1
        self._watching = [asyncio.create_task(self._watch(host)) for host in self._urls if self.several]

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ask no more; connections that were made stay."""
        await cancel(*self._watching)

    async def connect(self, *_: object, **options: Any) -> Connection:
        """Return a connection to the server in charge.

        Raises TargetServerAttributeNotMatched, which names every host, if none is; errors of the client
        library.
        """
        if not self.several:
            [url] = self._urls.values()
            return await asyncpg.connect(url, **options)
        host = await self._find()
        connection = await self._connect(host, **options)
        try:
            self._note(host, await _ask(connection))
        except BaseException:
            connection.terminate()
            raise
        if host != self._in_charge:
            connection.terminate()
            raise asyncpg.TargetServerAttributeNotMatched(f"{host} is no longer in charge")
        self._connections.add(connection)
        return connection

    async def make_pool(self, connections: int, timeout_s: float) -> "asyncpg.Pool[asyncpg.Record]":
        """Return a pool of at most so many connections, whose statements wait a second for a lock at most."""
        return await asyncpg.create_pool(
            self._url,
            connect=self.connect,
            min_size=0,
            max_size=connections,
            timeout=timeout_s,
            init=_set_up,
            reset=_skip_reset,
            target_session_attrs=SessionAttribute.read_write,
        )

    def find_silent(self) -> dict[str, str]:
        """Return the hosts that do not answer, each with what is wrong."""
        return {
            host: describe(answer) for host, answer in self._answers.items() if isinstance(answer, Exception)
        }

    async def _find(self) -> str:
        """Return the host in charge; wait for one, and for the first answer of every host."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while self._in_charge is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            causes = [answer for answer in self._answers.values() if isinstance(answer, Exception)]
            raise asyncpg.TargetServerAttributeNotMatched(
                "no host takes writes: " + "; ".join(map(self._describe, self._answers))
            ) from (causes[0] if len(causes) == len(self._urls) else None)
        return self._in_charge

    def _note(self, host: str, answer: _Answer | Exception) -> None:
        """Note what a server answered, and who is in charge by now."""
        all_are_known = None not in self._answers.values()
        self._answers[host] = answer
        if isinstance(answer, _Answer) and answer.timeline > self._timeline:
            if all_are_known:
                log.warning("PostgreSQL is on timeline %d now: another server was promoted", answer.timeline)
            self._timeline = answer.timeline
            for connection in self._connections:
                connection.terminate()
            self._connections.clear()
        # At the beginning, an old primary may be the first to answer.
        self._in_charge = None if None in self._answers.values() else self._choose()
        self._changed.set()

    def _choose(self) -> str | None:
        for host, answer in self._answers.items():
            if isinstance(answer, _Answer) and answer.writes and answer.timeline == self._timeline:
                return host
        return None

    async def _watch(self, host: str) -> None:
        """Ask a server again and again."""
        while True:
            try:
                connection = await self._connect(host, server_settings={"application_name": _NAME})
                try:
                    while True:
                        self._note(host, await _ask(connection))
                        await asyncio.sleep(_PAUSE_S)
                finally:
                    connection.terminate()
            except Exception as error:
                self._note(host, error)
            await asyncio.sleep(_PAUSE_S)

    async def _connect(self, host: str, **options: Any) -> Connection:
        options |= {"timeout": _ANSWER_S, "target_session_attrs": SessionAttribute.any}
        return await asyncpg.connect(self._urls[host], **options)

    def _describe(self, host: str) -> str:
        match self._answers[host]:
            case Exception() as error:
                return f"{host} does not answer ({describe(error)})"
            case _Answer(writes=False):
                return f"{host} is read-only"
            case _Answer(timeline=timeline):
                return f"{host} is behind, on timeline {timeline} of {self._timeline}"
        return f"{host} has not answered yet"


async def _ask(connection: Connection) -> _Answer:
    async with asyncio.timeout(_ANSWER_S):
        [row] = await connection.fetch(_QUESTION)
    return _Answer(*row)


async def _set_up(connection: Any) -> None:
    await connection.execute(_SESSION)


async def _skip_reset(_: object) -> None:
    """Leave a connection that returns to the pool as it is.

    The ledger changes nothing of it, and a reset is one more round trip for each batch.
    """
