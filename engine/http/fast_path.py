"""The front door's fast path: plain purchases and looks go from the socket straight into a batch.

An aiohttp connection makes a task, a request, a response and a stream for each message. A `Connection`
reads plain purchases and looks itself: each joins the gate's batch or the next read at once, and its answer
is written as one piece of bytes, the same that the ordinary handler would give. Everything else goes
unchanged to an aiohttp handler, which is made for the connection when it first needs one.

A request is plain if nothing of its connection is under way, if its head is well-formed and has no header
that changes how the message is read, and if its body arrives in one piece or in a few whole chunks, with the
head or after it. When in doubt, it is not plain.
"""

import asyncio
import select
from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from engine.errors import InputError
from engine.gate.gate import Gate
from engine.http.answers import RESPONSES, Answer, answer_input_error
from engine.http.heads import CLOSE, KEEP, MORE, Head, join_chunks, measure, read_head
from engine.http.looking import Looking
from engine.http.ordinary import Ordinary
from engine.http.requests import parse_buy
from engine.model.purchase import Outcome

_MAX_HELD_BYTES: Final = 65_536
_MAX_QUEUED: Final = 16
"""Most messages of a connection that wait in its handler."""
_MAX_KEPT_BYTES: Final = 4_096
"""Longest head that an idle connection keeps."""


class Door:
    """What all connections of a listening front door share."""

    def __init__(
        self,
        gate: Gate,
        looking: Looking,
        leaving: asyncio.Event,
        make_handler: Callable[[Callable[[], None]], Ordinary],
        for_buyers: bool = True,
    ) -> None:
        self.gate = gate
        self.looking = looking
        self.leaving = leaving
        """Set once each answer must say that its connection ends."""
        self.make_handler = make_handler
        self.for_buyers = for_buyers
        """Whether requests may take the fast path."""
        self.connections: set[Connection] = set()
        self.room = float("inf")
        """How many there may be."""
        self.unfinished: dict[Connection, float] = {}
        """Connections on which a request has begun and is not whole, and since when, oldest first."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_door", "_ended", "_framing", "_handler", "_head", "_head_bytes", "_held", "_in_chunks", "_paused",
        "_rest", "_transport", "age", "is_under_way",
    )  # fmt: skip

    def __init__(self, door: Door) -> None:
        self._door = door
        self._transport: Any = None
        self._handler: Ordinary | None = None
        self.age = 0
        """How often it was found idle since its last request."""
        self.is_under_way = False
        """Whether a request of the fast path waits for its answer."""
        self._framing = KEEP
        """How that answer is framed."""
        self._held = b""
        """Bytes that arrived and can't be looked at yet."""
        self._head: Head | None = None
        self._head_bytes = b""
        """The last plain head, which the client will likely send again."""
        self._paused = False
        """Whether the client leaves too many answers unread."""
        self._rest: int | None = 0
        """How many bytes of a message the handler waits for; None if it may hold any part of one."""
        self._in_chunks = False
        """Whether a chunk of its body follows."""
        self._ended = False
        """Whether the client sends nothing more."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the door's connections, if there is room."""
        self._transport = transport
        self._door.connections.add(self)
        if len(self._door.connections) > self._door.room:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._transport = None
        self._door.connections.discard(self)
        self._door.unfinished.pop(self, None)
        if self._handler is not None:
            self._handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take plain purchases and looks; give anything else to the handler."""
        if self._held:
            data = self._held + data
            self._held = b""
        if self.is_under_way:
            self._hold(data)
        elif self._handler is not None and (self._rest != 0 or self._in_chunks or not self._handler.is_idle):
            self._pass_on(data)
        elif self._paused:
            # Their turn comes when the client has read enough.
            self._hold(data)
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        head = self._head
        if head is None or not data.startswith(self._head_bytes):
            head = read_head(data, head, self._head_bytes) if self._door.for_buyers else None
            if head is None:
                self._pass_on(data)
                return
            if head.end <= _MAX_KEPT_BYTES:
                self._head, self._head_bytes = head, data[: head.end]
        whole = head.whole
        if whole == 0:
            data, whole = join_chunks(data, head.end)
        if len(data) < whole:
            # Many clients send the head first. Of a body in pieces, the handler takes care.
            is_apart = len(data) == head.end or whole == MORE
            self._wait_for_rest(data) if is_apart else self._pass_on(data)
            return
        if len(data) > whole:
            self._hold(data[whole:])
        if self._door.unfinished:
            self._door.unfinished.pop(self, None)
        self.age = 0
        self._framing = head.framing
        if head.look is not None:
            self.is_under_way = True
            self._door.looking.show(head.look, self.answer)
            return
        try:
            user_id, product_id = parse_buy(data, head.end, whole)
        except InputError as error:
            self.answer(answer_input_error(error))
            return
        if head.key is None and self._door.gate.send_away(product_id):
            self._answer_purchase(Outcome.SOLD_OUT, None)
        else:
            self.is_under_way = True
            self._door.gate.submit((user_id, product_id, head.key, self._answer_purchase))

    def _answer_purchase(self, outcome: Outcome, order_id: str | None) -> None:
        """Write the answer to the gate's outcome."""
        if monotonic() >= RESPONSES.stale_at:
            RESPONSES.refresh()
        if self._door.leaving.is_set():
            self._framing |= CLOSE
        if order_id is None:
            self._end(RESPONSES.refusals[self._framing][outcome])
        else:
            self._end(RESPONSES.accepted[self._framing] + order_id.encode("ascii") + b'"}')

    def answer(self, answer: Answer) -> None:
        """Write the answer to the request that was taken."""
        if monotonic() >= RESPONSES.stale_at:
            RESPONSES.refresh()
        if self._door.leaving.is_set():
            self._framing |= CLOSE
        self._end(RESPONSES.write(answer, self._framing))

    def _end(self, response: bytes) -> None:
        """Write the response, then close the connection or look at what arrived meanwhile."""
        self.is_under_way = False
        if self._transport is None:
            return
        self._transport.write(response)
        if self._framing & CLOSE:
            self._held = b""
            self._transport.close()
        elif self._held or self._ended:
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Look at the held bytes, and read on if they are few; after the last answer, end with the client."""
        transport, handler = self._transport, self._handler
        if transport is None or transport.is_closing() or self.is_under_way:
            return
        if self._held:
            self.data_received(b"")
        if not self._ended:
            is_choked = len(self._held) > _MAX_HELD_BYTES or (handler is not None and handler.is_choked)
            if not is_choked and not transport.is_reading() and not transport.is_closing():
                transport.resume_reading()
        elif self.is_quiet and not self._paused:
            self.close()
        elif handler is not None and not self._held and handler.queued == 0:
            handler.close()

    def _hold(self, data: bytes) -> None:
        self._held = data
        if len(data) > _MAX_HELD_BYTES and self._transport.is_reading():
            self._transport.pause_reading()

    def _pass_on(self, data: bytes) -> None:
        """Give the bytes to the handler, message by message; hold a head that is cut off.

        aiohttp forgets the messages in front of one that it can't read, if they come in one piece.
        """
        self.age = 0
        start = 0
        while start < len(data):
            if self._rest == 0:
                if self._handler is not None and self._handler.queued >= _MAX_QUEUED and not self._in_chunks:
                    self._hold(data[start:])
                    return
                self._rest, self._in_chunks = measure(data, start, self._in_chunks)
                if self._rest == 0:
                    self._wait_for_rest(data[start:])
                    return
            end = len(data) if self._rest is None else min(start + self._rest, len(data))
            self._feed(data[start:end])
            if self._rest is not None:
                self._rest -= end - start
            start = end
        if self._rest is None:
            self._door.unfinished.setdefault(self, monotonic())
        elif self._rest == 0 and not self._in_chunks:
            self._door.unfinished.pop(self, None)

    def _feed(self, data: bytes) -> None:
        """Give bytes to the aiohttp handler, which is made when it is first needed."""
        if self._handler is None:
            self._handler = self._door.make_handler(self._go_on)
            self._handler.connection_made(self._transport)
        messages = self._handler._request_count
        self._handler.data_received(data)
        if self._handler._request_count > messages:
            self._door.unfinished.pop(self, None)

    def _wait_for_rest(self, data: bytes) -> None:
        """Hold what has come of a request; the connection ends if the rest does not come in time."""
        self._held = data
        self._door.unfinished.setdefault(self, monotonic())

    def drop_unfinished(self) -> None:
        """Close the connection if no request is under way, whose end is to be waited for."""
        if not self.is_quiet:
            self._door.unfinished[self] = monotonic()
        elif self._held or self._rest is None:
            self.close()

    @property
    def is_quiet(self) -> bool:
        """Whether no request is under way."""
        return not self.is_under_way and (self._handler is None or self._handler.is_idle)

    def eof_received(self) -> bool:
        """Answer what came whole before the client ended its side; return whether there is anything."""
        if self._rest or self._in_chunks or (self.is_quiet and not self._held):
            return False
        self._ended = True
        asyncio.get_running_loop().call_soon(self._go_on)
        return True

    def pause_writing(self) -> None:
        """Take no more purchases: the client does not read what it is answered."""
        self._paused = True
        if self._handler is not None:
            self._handler.pause_writing()

    def resume_writing(self) -> None:
        """Look at the held bytes, now that the client reads again."""
        self._paused = False
        if self._handler is not None:
            self._handler.resume_writing()
        if self._held or self._ended:
            asyncio.get_running_loop().call_soon(self._go_on)

    def close(self) -> None:
        """Close the connection once what was answered is sent."""
        if self._handler is not None:
            self._handler.force_close()
        if self._transport is not None:
            self._transport.close()

    def close_if_idle(self) -> None:
        """Close the connection unless a request is under way, or has arrived and was not read yet."""
        if self._transport is not None and self.is_quiet and not self._held and self._rest == 0:
            arrived = select.poll()
            arrived.register(self._transport.get_extra_info("socket"), select.POLLIN)
            if not arrived.poll(0):
                self.close()
