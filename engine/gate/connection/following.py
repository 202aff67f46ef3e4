"""Connections that follow the server in charge: one that refuses is left, and its name is looked up anew."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ConnectionError,
    NoScriptError,
    OutOfMemoryError,
    ResponseError,
)

from engine.gate.connection.lookup import Lookup

REFUSALS: Final = (ResponseError, BusyLoadingError, AuthenticationError)
"""Redis answered, and did not do what it was asked."""
_ELSEWHERE_TOO: Final = ("CLOSED", "NOGROUP", "BUSYGROUP")
"""Refusals that say nothing of the server; so do those of NoScriptError and OutOfMemoryError."""


def leave_when_refused(connection_class: Any, lookup: Lookup | None = None) -> Any:
    """Return a class of connections that end at their next use once one of them was refused a command.

    Their next connect looks the server up again: by its name, or by `lookup`. A refusal that each server
    would give ends none.
    """
    refusals = 0

    class Connection(connection_class):  # type: ignore[misc]
        connected_after: int | None = None
        """Refusals before it connected; None while it connects, when the client library tries what it may."""

        @property
        def is_left(self) -> bool:
            """Whether it ends at its next use."""
            return bool(self.connected_after != refusals)

        def note(self, answer: object) -> None:
            """Let all connections leave the server if it refused what another might not refuse."""
            nonlocal refusals
            if isinstance(answer, REFUSALS) and _is_of_server(answer):
                refusals += 1

        async def connect(self) -> None:
            if not self.is_left and self.is_connected:
                return
            await self.disconnect()
            self.connected_after, before = None, refusals
            if lookup is not None:
                self.host, self.port = await lookup.find()
            await super().connect()
            if lookup is not None:
                await lookup.check_whole()
            self.connected_after = before

        async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
            with lose_closed():
                await super().send_packed_command(*arguments, **options)

        async def read_response(self, *arguments: Any, **options: Any) -> Any:
            try:
                with lose_closed():
                    return await super().read_response(*arguments, **options)
            except REFUSALS as error:
                if self.connected_after is not None:
                    self.note(error)
                raise

    return Connection


def _is_of_server(refusal: object) -> bool:
    """Return whether another server might not refuse."""
    return not (
        isinstance(refusal, (NoScriptError, OutOfMemoryError)) or str(refusal).startswith(_ELSEWHERE_TOO)
    )


@contextmanager
def lose_closed() -> Iterator[None]:
    """Raise ConnectionError where uvloop says in words of its own that the connection has been closed."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(str(error)) from error
