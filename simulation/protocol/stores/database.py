"""The PostgreSQL of an example: a real server, each of whose statements is a step.

Sessions outlive examples, since to connect takes longer than a hundred steps: one that is lost is rolled
back, and gives up its locks.
"""

import asyncio
import re
from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Any, Final, TypeVar

import asyncpg

from engine.ledger.queries import QUERIES
from simulation.protocol.steps import Broken, take_turn

T = TypeVar("T")

_NAMES: Final = {text: name for name, text in QUERIES.items()}
_OURS: Final = dict(
    re.findall(
        r"^-- name: (\w+)\n(.+?);$",
        files("simulation.protocol.stores").joinpath("queries.sql").read_text(),
        re.M | re.S,
    )
)
# A statement that waits for another session would wait for ever: nobody else goes on meanwhile.
_SESSION: Final = {"synchronous_commit": "off", "lock_timeout": "2", "jit": "off"}


class Database:
    """One real server, and the sessions with it."""

    def __init__(self, url: str) -> None:
        self._url = url
        # Not uvloop's, whose close was seen to wait for ever for a connection's end.
        self._loop = asyncio.new_event_loop()
        self._free: list[asyncpg.Connection[Any]] = []
        self._lost: list[asyncpg.Connection[Any]] = []
        self.is_late: Callable[[], bool] = lambda: True
        """Tells whether the time is over that a front door has to open a sale."""
        self.lock_holder: StepSession | None = None
        """The session of the keeper that rebuilds."""

    def prepare(self) -> None:
        """Make the server's own work harmless."""
        session = self.lend()
        self.run(session.execute(_OURS["prepare"]))
        self.give_back(session, lost=False)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Return the result of what happens now, after the server has noticed what was lost before."""
        while self._lost:
            session = self._lost.pop()
            self._loop.run_until_complete(session.execute(_OURS["forget"]))
            self._free.append(session)
        return self._loop.run_until_complete(work)

    def lend(self) -> "asyncpg.Connection[Any]":
        """Return a session that nobody has."""
        if self._free:
            return self._free.pop()
        return self.run(asyncpg.connect(self._url, server_settings=_SESSION))

    def give_back(self, session: "asyncpg.Connection[Any]", lost: bool) -> None:
        """Take a session back; PostgreSQL forgets what it did not commit if it was lost."""
        (self._lost if lost else self._free).append(session)

    def begin(self, generation: int) -> None:
        """Empty the ledger for another example, in which the gate was opened in this generation."""
        session = self.lend()
        self.run(session.execute(_OURS["empty"]))
        self.run(session.execute(_OURS["open"], generation))
        self.give_back(session, lost=False)

    def read(self, query: str, *arguments: Any) -> list[Any]:
        """Return the rows of a named query of queries.sql, which is no step."""
        session = self.lend()
        rows = self.run(session.fetch(_OURS[query], *arguments))
        self.give_back(session, lost=False)
        return rows

    def close(self) -> None:
        """Disconnect."""
        for session in (*self._free, *self._lost):
            session.terminate()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class StepPool:
    """What the engine takes for its client's pool of connections."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.lent: list[StepSession] = []

    async def acquire(self) -> "StepSession":
        session = StepSession(self._database)
        self.lent.append(session)
        return session

    async def release(self, session: "StepSession") -> None:
        self.lent.remove(session)
        session.give_back()

    async def expire_connections(self) -> None:
        pass

    async def close(self) -> None:
        self.terminate()

    def terminate(self) -> None:
        for session in self.lent:
            session.terminate()


class StepSession:
    """One connection, as the engine's statements use it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._session: asyncpg.Connection[Any] | None = None
        self._is_lost = False

    async def fetch(self, query: str, *arguments: Any) -> list[Any]:
        name = _NAMES[query]
        if name == "find_unoffered":
            # The server's clock goes on by itself, and says nothing of the example's time.
            arguments = (-1.0 if self._database.is_late() else 1e9,)
        rows: list[Any] = await self._do(name, lambda session: session.fetch(query, *arguments))
        if name == "try_lock" and rows[0]["mine"]:
            self._database.lock_holder = self
        elif name == "unlock":
            self._drop_lock()
        return rows

    async def execute(self, statements: str) -> Any:
        return await self._do(
            statements.partition(";")[0].lower(), lambda session: session.execute(statements)
        )

    def is_in_transaction(self) -> bool:
        return self._session is not None and self._session.is_in_transaction()

    def transaction(self) -> "_Transaction":
        return _Transaction(self)

    async def cursor(self, query: str, *arguments: Any) -> "_Cursor":
        async def open_cursor(session: "asyncpg.Connection[Any]") -> Any:
            return await session.cursor(query, *arguments)

        return _Cursor(self, await self._do(_NAMES[query], open_cursor))

    def terminate(self) -> None:
        """Lose the connection; the engine notices at its next statement."""
        self._is_lost = True
        self._drop_lock()
        self.give_back()

    def _drop_lock(self) -> None:
        if self._database.lock_holder is self:
            self._database.lock_holder = None

    def give_back(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            self._database.give_back(session, self._is_lost)

    async def _do(self, what: str, work: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        def do() -> Any:
            if self._is_lost:
                raise Broken("the connection is closed")
            if self._session is None:
                self._session = self._database.lend()
            return self._database.run(work(self._session))

        try:
            return await take_turn(f"PostgreSQL {what}", do)
        except Broken as error:
            self.terminate()
            raise asyncpg.ConnectionDoesNotExistError(str(error)) from error


class _Transaction:
    def __init__(self, session: StepSession) -> None:
        self._session = session

    async def start(self) -> None:
        await self._session.execute("BEGIN")

    async def commit(self) -> None:
        await self._session.execute("COMMIT")


class _Cursor:
    def __init__(self, session: StepSession, cursor: Any) -> None:
        self._session = session
        self._cursor = cursor

    async def fetch(self, count: int) -> list[Any]:
        rows: list[Any] = await self._session._do("page", lambda _: self._cursor.fetch(count))
        return rows
