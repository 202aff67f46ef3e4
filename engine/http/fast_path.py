"""The front door's fast path: a plain purchase goes from the socket straight into the gate's batch.

An aiohttp connection makes a task, a request, a response and a stream for each message. `FastPath` is such a
connection that looks first whether exactly one complete, plain `POST /purchase/buy` arrived. If so, the
purchase joins the gate's batch at once, and its answer is written as one piece of bytes, the same that the
ordinary handler would give. Everything else goes to aiohttp unchanged.

A request is plain if nothing of its connection is under way, if all of it arrives in one piece (or the head
first and then the body), if its head is well-formed and has no header that changes how the message is read,
and if its body is the usual JSON. When in doubt, it is not plain.
"""

import asyncio
import logging
import select
from time import monotonic
from typing import Any, Final

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler

from engine.errors import InputError
from engine.gate.gate import Gate
from engine.http.answers import (
    answer_input_error,
    make_problem,
    respond,
    respond_http_error,
)
from engine.http.heads import Head, Heads
from engine.http.requests import PLAIN_BUY
from engine.http.responses import RESPONSES
from engine.model.purchase import Outcome

log = logging.getLogger(__name__)

_MAX_HELD_BYTES: Final = 65_536


class FastPath(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_answered",
        "_client_timeout_s",
        "_head",
        "_head_bytes",
        "_heads",
        "_held",
        "_leaving",
        "_passed_on",
        "_rest",
        "_send_away",
        "_served",
        "_submit",
        "_under_way",
        "_unfinished",
    )

    def __init__(
        self,
        *args: Any,
        gate: Gate,
        heads: Heads,
        leaving: asyncio.Event,
        client_timeout_s: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._client_timeout_s = client_timeout_s
        self._submit, self._send_away = gate.submit, gate.send_away
        self._heads = heads
        self._leaving = leaving
        """Set once each answer must say that its connection ends; aiohttp writes such answers."""
        self._under_way = False
        """Whether a purchase of the fast path waits for its answer."""
        self._held = b""
        """Bytes that arrived and can't be looked at yet."""
        self._head: Head | None = None
        self._head_bytes = b""
        """This connection's last plain head, which its client will likely send again."""
        self._served = False
        """Whether a purchase was taken since the keep-alive timer last fired."""
        self._passed_on = False
        """Whether aiohttp was ever given anything."""
        self._rest: int | None = 0
        """How many bytes of a body aiohttp's parser waits for; None if it may hold any part of a message."""
        self._unfinished: asyncio.TimerHandle | None = None
        """Closes the connection unless the rest of a request comes in time."""
        self._answered: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Take a plain purchase to the gate; give anything else to aiohttp."""
        if self._held:
            data = self._held + data
            self._held = b""
        if self._under_way or self._paused:
            # Their turn comes when the answer before them is written and the client has read enough.
            self._hold(data)
        elif (
            self._close
            or self._force_close
            or (self._passed_on and not self._is_idle())
            or self._leaving.is_set()
        ):
            self._pass_on(data)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        head = self._head
        if head is None or not data.startswith(self._head_bytes):
            head = self._find_head(data)
        body = len(self._head_bytes)
        if head is None:
            self._pass_on(data)
        elif len(data) == body:
            # Many clients send the head first. A body is short, since its length has three digits at most.
            self._held = data
            self._await_rest()
        elif len(data) == body + head.body_length and (plain := PLAIN_BUY.fullmatch(data, body)):
            self._served = True
            if self._unfinished is not None:
                self._stop_waiting()
            user_id, product_id = plain.groups()
            if head.key is None and self._send_away(product_id):
                self._answer(Outcome.SOLD_OUT, None)
            else:
                self._under_way = True
                self._submit((user_id, product_id, head.key, self._answer))
        else:
            self._pass_on(data)

    def _answer(self, outcome: Outcome, order_id: str | None) -> None:
        """Write the answer to the gate's outcome, then look at what arrived meanwhile."""
        self._under_way = False
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(None)
        if self.transport is None:
            return
        if monotonic() >= RESPONSES.stale_at:
            RESPONSES.refresh()
        if order_id is None:
            self.transport.write(RESPONSES.refusals[outcome])
        else:
            self.transport.write(RESPONSES.accepted + order_id.encode("ascii") + b'"}')
        if self._held:
            self._loop.call_soon(self._look_at_held)

    def _look_at_held(self) -> None:
        if self._held and not self._under_way and not self._paused and self.transport is not None:
            self._resume_reading_for_buffer()
            self.data_received(b"")

    def _hold(self, data: bytes) -> None:
        self._held = data
        if len(data) > _MAX_HELD_BYTES and not self._buffer_paused:
            self._pause_reading_for_buffer()

    def _is_idle(self) -> bool:
        """Return whether aiohttp has nothing to do for this connection, and holds no part of a message."""
        return self._rest == 0 and not self._messages and not self._request_in_progress

    def _pass_on(self, data: bytes) -> None:
        """Give the bytes to aiohttp, and note how much of a body its parser waits for."""
        self._passed_on = True
        before = self._request_count
        super().data_received(data)
        messages = self._request_count - before
        if not data:
            return
        if messages:
            # One message that starts and ends where the bytes do leaves nothing behind; others may.
            self._rest = self._count_rest(data) if messages == 1 and self._rest == 0 else None
            self._stop_waiting()
        else:
            self._rest = self._rest - len(data) if self._rest and self._rest >= len(data) else None
        if self._rest is None:
            self._await_rest()

    def _count_rest(self, data: bytes) -> int | None:
        """Return how many bytes of the message that begins with the data are still to come, if sure."""
        message, payload = self._messages[-1]
        end = data.find(b"\r\n\r\n") + 4
        if not isinstance(message, RawRequestMessage) or message.chunked or message.upgrade or end < 4:
            return None
        rest = end + int(message.headers.get("Content-Length", "0")) - len(data)
        return rest if rest > 0 or (rest == 0 and payload.is_eof()) else None

    def _await_rest(self) -> None:
        """Close the connection if a request that has begun does not come whole in time."""
        if self._unfinished is None:
            self._unfinished = self._loop.call_later(self._client_timeout_s, self._drop_unfinished)

    def _stop_waiting(self) -> None:
        if self._unfinished is not None:
            self._unfinished.cancel()
            self._unfinished = None

    def _drop_unfinished(self) -> None:
        self._unfinished = None
        if self._under_way or self._messages or self._request_in_progress:
            if self._rest is None:
                self._await_rest()
        elif self._held or self._rest is None:
            self.force_close()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Forget the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

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
        return await super().finish_response(request, resp, start_time)

    def _find_head(self, data: bytes) -> Head | None:
        """Return the plain head at the start of the data, None if there is none."""
        head_bytes = data[: data.find(b"\r\n\r\n") + 4]
        head = self._heads.find(head_bytes)
        if head is not None:
            self._head, self._head_bytes = head, head_bytes
        return head

    def resume_writing(self) -> None:
        """Look at the held bytes, now that the client reads again."""
        super().resume_writing()
        if self._held:
            self._loop.call_soon(self._look_at_held)

    def _process_keepalive(self) -> None:
        if self._served:
            self._served = False
            self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        super()._process_keepalive()

    def end_if_idle(self) -> None:
        """Close the connection unless a request is under way, or has arrived and was not read yet."""
        if self.transport is not None and not self._under_way and not self._held and self._is_idle():
            arrived = select.poll()
            arrived.register(self.transport.get_extra_info("socket"), select.POLLIN)
            if not arrived.poll(0):
                self.force_close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Wait for the answer that is under way, then end the connection."""
        if self._under_way:
            self._answered = self._loop.create_future()
            await asyncio.wait((self._answered,), timeout=timeout)
        await super().shutdown(timeout)
