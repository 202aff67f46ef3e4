"""Hostile clients on raw sockets: each sends its request and notes what came back."""

import asyncio
import contextlib
import socket
import struct
import time
from typing import Final

import msgspec

from simulation.drive.hostile.kinds import draw
from simulation.drive.hostile.request import Then
from simulation.drive.response import Response, parse_response
from simulation.errors import BadResponse
from simulation.model.contract import FLASHGRID
from simulation.model.hostile import ClientReport, Finding, KindCount

IMPATIENT_S: Final = 0.3
"""How long most clients wait for a response."""
PATIENT_EACH: Final = 20
"""One client in so many waits for the end of the connection, beside those that must be answered."""
MOST_SLOW: Final = 400
"""Slow clients at the same time, beside the others."""
MOST_SHOWN: Final = 2_000
"""Bytes of a message that a finding shows at each of its ends."""


class Job(msgspec.Struct, frozen=True):
    """Which clients to play, and against whom."""

    host: str
    port: int
    seed: int
    requests: int
    clients: int
    """Clients at the same time, slow ones aside."""
    bound_s: float
    """Longest time within which the server must have ended a connection that the client stays on."""
    result: str = ""
    """Where the process writes its ClientReport."""


async def play_all(job: Job) -> ClientReport:
    """Play the clients of a job and return what they saw."""
    report = ClientReport()
    started = time.monotonic()
    numbers = iter(range(job.requests))
    slow_slots = asyncio.Semaphore(MOST_SLOW)

    async def play_in_turn() -> None:
        for number in numbers:
            client = Client(job, report, number)
            if client.request.then in (Then.STAY, Then.DEAF):
                await slow_slots.acquire()
                group.create_task(client.play()).add_done_callback(lambda _: slow_slots.release())
            else:
                await client.play()

    async with asyncio.TaskGroup() as group:
        for _ in range(job.clients):
            group.create_task(play_in_turn())
    report.seconds = round(time.monotonic() - started, 3)
    return report


class Client:
    """One hostile client on a connection of its own."""

    def __init__(self, job: Job, report: ClientReport, number: int) -> None:
        self.job, self.report, self.number = job, report, number
        self.kind, self.request = draw(job.seed, number)
        self._count = report.kinds.setdefault(self.kind, KindCount())
        self._loop = asyncio.get_running_loop()
        self._heard = 0
        """Responses so far."""
        self._rest = b""
        then = self.request.then
        stays = then in (Then.STAY, Then.FIN) or self.request.whole or number % PATIENT_EACH == 0
        self._patient = stays and then is not Then.DEAF
        self._patience_s = 1.0 if then is Then.DEAF else job.bound_s if stays else IMPATIENT_S

    async def play(self) -> None:
        """Connect, send, do what such a client does then, and note what came of it."""
        self._count.sent += 1
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.request.then is Then.DEAF:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            started = time.monotonic()
            end = await self._converse(connection)
            if self.request.then is Then.STAY:
                self.report.longest_s = max(self.report.longest_s, round(time.monotonic() - started, 3))
            if not self._heard:
                self._count.answers[end] = self._count.answers.get(end, 0) + 1
                if self.request.whole and end in ("closed", "reset"):
                    self._note("no answer")

    async def _converse(self, connection: socket.socket) -> str:
        """Return how the connection ended: refused, closed, reset, answered or left (by the client)."""
        try:
            async with asyncio.timeout(self.job.bound_s):
                await self._loop.sock_connect(connection, (self.job.host, self.job.port))
        except (OSError, TimeoutError) as error:
            self._note(f"can't connect: {error or 'no answer in time'}")
            return "refused"
        listening = self._loop.create_task(self._listen(connection))
        try:
            await self._send(connection, listening)
            if self.request.then is Then.RESET:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return "left"
            if self.request.then is Then.FIN:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)
            done, _ = await asyncio.wait({listening}, timeout=self._patience_s)
            if done:
                return listening.result()
            if self._patient:
                self._note(f"kept for {self.job.bound_s:g} s")
            return "left"
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _send(self, connection: socket.socket, listening: asyncio.Task[str]) -> None:
        pause_s = 0.1 if self.request.then is Then.STAY else 0
        # A server that reads no more must not hold the client.
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(self._patience_s):
                for piece in self.request.pieces:
                    await self._loop.sock_sendall(connection, piece)
                    if (await asyncio.wait({listening}, timeout=pause_s))[0]:
                        return

    async def _listen(self, connection: socket.socket) -> str:
        """Read until the server ends the connection, or has answered a client that wants no more."""
        if self.request.then is Then.DEAF:
            await self._loop.create_future()
        while True:
            try:
                data = await self._loop.sock_recv(connection, 65_536)
            except ConnectionError:
                return "reset"
            self._rest += data
            try:
                while response := parse_response(self._rest, closed=not data) if self._rest else None:
                    self._take(response)
            except BadResponse as error:
                # A client that ends its side of the connection may receive no more than "100 Continue".
                if data or self._rest != b"HTTP/1.1 100 Continue\r\n\r\n":
                    self._note(f"unreadable answer: {error}")
                return "closed"
            if not data:
                return "closed"
            if self._heard and self.request.then is Then.LISTEN:
                return "answered"

    def _take(self, response: Response) -> None:
        self._heard += 1
        answers, status = self._count.answers, str(response.status)
        answers[status] = answers.get(status, 0) + 1
        if (response.status >= 500 or self.request.valid) and response.status not in (200, 503):
            self._note(f"status {status}")
        if response.status == 200 and (order_id := FLASHGRID.classify(200, response.body)[1]):
            self.report.order_ids.append(order_id)
        self._rest = self._rest[response.size :]

    def _note(self, fault: str) -> None:
        self.report.faults += 1
        if len(self.report.findings) < 50:
            sent = show_bytes(b"".join(self.request.pieces))
            self.report.findings.append(Finding(self.number, self.kind, fault, sent, show_bytes(self._rest)))


def show_bytes(data: bytes) -> str:
    """Return the bytes, escaped, and cut in the middle where they are many."""
    if len(data) <= 2 * MOST_SHOWN:
        return repr(data)[2:-1]
    left_out = len(data) - 2 * MOST_SHOWN
    return f"{repr(data[:MOST_SHOWN])[2:-1]} … {left_out:,} bytes … {repr(data[-MOST_SHOWN:])[2:-1]}"
