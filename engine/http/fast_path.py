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
import re
from http import HTTPStatus
from time import monotonic, time
from typing import Any, Final, NamedTuple

from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_parser import RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from engine.errors import InputError
from engine.gate.gate import Gate
from engine.http.answers import JSON, RETRY_AFTER_S, SERVER, Answer, answer_purchase
from engine.http.requests import PLAIN_BUY, parse_key
from engine.model.purchase import Outcome

_MAX_HEAD_BYTES: Final = 4096
_MAX_HEADERS: Final = 64
_HEADS_REMEMBERED: Final = 1024
_MAX_HELD_BYTES: Final = 65_536

_HEAD: Final = re.compile(
    # RFC 9112: request line, then field lines of a token, a colon and visible ASCII. Each line matches in one
    # way only: with two, a head of forty lines that fails at its end would be tried in 2^40 ways.
    rb"POST /purchase/buy HTTP/1\.1\r\n(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[ -~\t]*\r\n)+\r\n"
)
_LENGTH: Final = re.compile(rb"[1-9][0-9]{0,2}")
_NOT_PLAIN: Final = re.compile(
    rb"transfer-encoding|content-encoding|expect|upgrade|te|trailer|proxy-connection|http2-settings|sec-websocket.*"
)
"""Headers that change how a message is framed, decoded or answered."""


class _Head(NamedTuple):
    """What a plain request's head says."""

    body_length: int
    key: str | None


Heads = dict[bytes, _Head]
"""Heads seen before, shared by all connections of a worker."""


class FastPath(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_answered",
        "_clean",
        "_head",
        "_head_bytes",
        "_heads",
        "_held",
        "_leaving",
        "_passed_on",
        "_send_away",
        "_served",
        "_submit",
        "_under_way",
    )

    def __init__(self, *args: Any, gate: Gate, heads: Heads, leaving: asyncio.Event, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._submit, self._send_away = gate.submit, gate.send_away
        self._heads = heads
        self._leaving = leaving
        """Set once each answer must say that its connection ends; aiohttp writes such answers."""
        self._under_way = False
        """Whether a purchase of the fast path waits for its answer."""
        self._held = b""
        """Bytes that arrived and can't be looked at yet."""
        self._head: _Head | None = None
        self._head_bytes = b""
        """This connection's last plain head, which its client will likely send again."""
        self._served = False
        """Whether a purchase was taken since the keep-alive timer last fired."""
        self._passed_on = False
        """Whether aiohttp was ever given anything."""
        self._clean = True
        """Whether aiohttp's parser surely holds no part of a message."""
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
        elif len(data) == body + head.body_length and (plain := PLAIN_BUY.fullmatch(data, body)):
            self._served = True
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
        if monotonic() >= _RESPONSES.stale_at:
            _RESPONSES.refresh()
        if order_id is None:
            self.transport.write(_RESPONSES.refusals[outcome])
        else:
            self.transport.write(_RESPONSES.accepted + order_id.encode("ascii") + b'"}')
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
        return self._clean and not self._messages and not self._request_in_progress

    def _pass_on(self, data: bytes) -> None:
        """Give the bytes to aiohttp, and note whether its parser may keep a part of them."""
        self._passed_on = True
        if self._clean and data:
            # One whole message without a body leaves nothing behind; anything else may.
            before = len(self._messages)
            super().data_received(data)
            self._clean = (
                data.find(b"\r\n\r\n") == len(data) - 4
                and len(self._messages) == before + 1
                and isinstance(self._messages[-1][0], RawRequestMessage)
                and self._messages[-1][1] is EMPTY_PAYLOAD
            )
        else:
            super().data_received(data)

    def _find_head(self, data: bytes) -> _Head | None:
        """Return the plain head at the start of the data, None if there is none."""
        head_bytes = data[: data.find(b"\r\n\r\n") + 4]
        head = self._heads.get(head_bytes) or self._read_head(head_bytes)
        if head is not None:
            self._head, self._head_bytes = head, head_bytes
        return head

    def _read_head(self, head: bytes) -> _Head | None:
        """Read a head; None if it is not plain. Remember heads without a key, since clients repeat them."""
        if len(head) > _MAX_HEAD_BYTES or not _HEAD.fullmatch(head):
            return None
        found: dict[bytes, bytes] = {}
        lines = head.split(b"\r\n")[1:-2]
        for line in lines:
            name, _, value = line.partition(b":")
            name, value = name.lower(), value.strip(b" \t")
            if name in found and name in (b"host", b"content-type", b"content-length", b"idempotency-key"):
                return None
            if _NOT_PLAIN.fullmatch(name) or (name == b"connection" and value.lower() != b"keep-alive"):
                return None
            found[name] = value
        length = found.get(b"content-length", b"")
        if (
            len(lines) > _MAX_HEADERS
            or b"host" not in found
            or found.get(b"content-type") != JSON.encode()
            or not _LENGTH.fullmatch(length)
        ):
            return None
        if b"idempotency-key" in found:
            try:
                return _Head(int(length), parse_key([found[b"idempotency-key"].decode("ascii")]))
            except InputError:
                return None
        plain = _Head(int(length), None)
        if len(self._heads) < _HEADS_REMEMBERED:
            self._heads[head] = plain
        return plain

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

    async def shutdown(self, timeout: float | None = 15.0) -> None:
        """Wait for the answer that is under way, then end the connection."""
        if self._under_way:
            self._answered = self._loop.create_future()
            await asyncio.wait((self._answered,), timeout=timeout)
        await super().shutdown(timeout)


class _Responses:
    """The HTTP responses to purchases, byte for byte the ordinary handler's, made once a second."""

    def __init__(self) -> None:
        self.stale_at = 0.0
        """On time.monotonic: when their date is out of date."""
        self.accepted = b""
        """Up to the order id."""
        self.refusals: dict[Outcome, bytes] = {}

    def refresh(self) -> None:
        """Write them anew, with the present date."""
        self.stale_at = monotonic() + 1 - time() % 1
        # All order ids have the length of this placeholder.
        whole = self._write(answer_purchase(Outcome.ACCEPTED, "x" * 36))
        self.accepted = whole.removesuffix(b"x" * 36 + b'"}')
        self.refusals = {
            outcome: self._write(answer_purchase(outcome, None))
            for outcome in Outcome
            if outcome is not Outcome.ACCEPTED
        }

    def _write(self, answer: Answer) -> bytes:
        lines = [
            f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
            f"Content-Type: {answer.content_type}",
            f"Server: {SERVER}",
            *([f"Retry-After: {RETRY_AFTER_S}"] if answer.retry_after else []),
            f"Content-Length: {len(answer.body)}",
            f"Date: {rfc822_formatted_time()}",
        ]
        return "\r\n".join(lines).encode("ascii") + b"\r\n\r\n" + answer.body


_RESPONSES: Final = _Responses()
