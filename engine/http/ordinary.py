"""The ordinary way of a connection: aiohttp's handler, which names faults in the engine's words."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from engine.errors import InputError
from engine.http.answers import answer_input_error, make_problem, respond, respond_http_error

log = logging.getLogger(__name__)

_LINGER_S: Final = 1.0
"""How long a body that was refused may still come, so that its client gets to read why."""


class Ordinary(RequestHandler):
    """aiohttp's handler of one connection, in whose place the front door ends idle connections."""

    __slots__ = ("_go_on",)

    def __init__(
        self, server: web.Server, loop: asyncio.AbstractEventLoop, go_on: Callable[[], None]
    ) -> None:
        super().__init__(server, loop=loop, access_log=None, lingering_time=_LINGER_S)  # type: ignore[arg-type]
        self._go_on = go_on
        """Called soon after the last of its messages is answered."""

    async def start(self) -> None:
        """Handle requests until the connection ends, which it may do before this begins."""
        if self._manager is not None:
            await super().start()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are no request with a problem document; close the connection."""
        answer = answer_input_error(InputError("request", "is no HTTP that can be read"))
        if status >= 500:
            log.error("a request failed", exc_info=exc)
            answer = make_problem(500, "Internal error", "this is a bug", "INTERNAL_ERROR")
        response = respond(answer)
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the response; what aiohttp refuses before it calls a handler, as a problem document."""
        if isinstance(resp, web.HTTPException):
            resp = respond_http_error(resp)
        result = await super().finish_response(request, resp, start_time)
        if not self._messages:
            self._loop.call_soon(self._go_on)
        return result

    def _process_keepalive(self) -> None:
        self._keepalive_handle = None

    @property
    def is_idle(self) -> bool:
        """Whether it waits for a message: it has none to answer, and does not end the connection."""
        # Between an answer and the next wait it may close the connection: then nothing more is answered.
        return self._waiter is not None and not self._waiter.done()

    @property
    def queued(self) -> int:
        """How many messages wait for their turn."""
        return len(self._messages)

    @property
    def is_choked(self) -> bool:
        """Whether it wants no bytes for now."""
        return self._reading_paused or self._buffer_paused
