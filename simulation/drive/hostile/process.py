"""The fuzzer's process: plays hostile clients on raw sockets and notes what came back.

It is told what to do by a Job, a line of JSON on standard input, and says a Barrage in one line on standard
output when all are through. When standard input ends, its parent is gone and so is the process.
"""

import asyncio
import contextlib
import gc
import signal
import socket
import struct
import sys
import time
from typing import Any, Final

import msgspec
import uvloop

from simulation.drive.answer import Answer, parse_answer
from simulation.drive.hostile.abuse import draw
from simulation.drive.hostile.http import Hostile, Then
from simulation.errors import BadAnswer
from simulation.model.hostile import Barrage, Finding, Tally

IMPATIENT_S: Final = 0.3
"""How long most clients wait for an answer; every 20th, and each that must be answered, waits for the end."""
PATIENT_EACH: Final = 20
DEAF_S: Final = 1.0
MOST_SLOW: Final = 400
"""Slow clients at the same time, beside the others."""
MOST_FINDINGS: Final = 50
MOST_SHOWN: Final = 2_000
"""Bytes of a message that a finding shows at each of its ends."""
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINGER_NOT: Final = struct.pack("ii", 1, 0)


class Job(msgspec.Struct, frozen=True):
    """What the process does."""

    host: str
    port: int
    seed: int
    requests: int
    clients: int
    """Clients at the same time, slow ones aside."""
    bound_s: float
    """Longest time within which the server must have ended a connection that the client stays on."""


class Fuzzer:
    """Plays the clients of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.barrage = Barrage()
        self._loop = asyncio.get_running_loop()
        self._next = 0
        self._slow: set[asyncio.Task[None]] = set()
        self._slow_slots = asyncio.Semaphore(MOST_SLOW)

    async def run(self) -> Barrage:
        """Plays them all."""
        started = time.monotonic()
        await asyncio.gather(*(self._play_on() for _ in range(self.job.clients)))
        await asyncio.gather(*self._slow)
        self.barrage.seconds = round(time.monotonic() - started, 3)
        return self.barrage

    async def _play_on(self) -> None:
        while self._next < self.job.requests:
            number = self._next
            self._next += 1
            kind, hostile = draw(self.job.seed, number)
            client = Client(self, number, kind, hostile)
            if hostile.then in (Then.STAY, Then.DEAF):
                await self._slow_slots.acquire()
                task = self._loop.create_task(client.play())
                self._slow.add(task)
                task.add_done_callback(self._forget)
            else:
                await client.play()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._slow.discard(task)
        self._slow_slots.release()
        task.result()


class Client:
    """One hostile client on a connection of its own."""

    def __init__(self, fuzzer: Fuzzer, number: int, kind: str, hostile: Hostile) -> None:
        self.job = fuzzer.job
        self.barrage = fuzzer.barrage
        self.number, self.kind, self.hostile = number, kind, hostile
        self._loop = asyncio.get_running_loop()
        self._answers = 0
        self._rest = b""
        stays = hostile.then in (Then.STAY, Then.FIN) or number % PATIENT_EACH == 0
        self._patient = hostile.then is not Then.DEAF and (stays or hostile.whole)

    async def play(self) -> None:
        """Connects, sends, does what such a client does then, and notes what came of it."""
        tally = self.barrage.kinds.setdefault(self.kind, Tally())
        tally.sent += 1
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.hostile.then is Then.DEAF:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            started = time.monotonic()
            end = await self._converse(connection)
            if self.hostile.then is Then.STAY:
                self.barrage.longest_s = max(self.barrage.longest_s, round(time.monotonic() - started, 3))
            if not self._answers:
                tally.answers[end] = tally.answers.get(end, 0) + 1
                if self.hostile.whole and end in ("closed", "reset"):
                    self._note("no answer")

    async def _converse(self, connection: socket.socket) -> str:
        """How the connection ended: refused, closed, reset, answered or left (by the client)."""
        try:
            async with asyncio.timeout(self.job.bound_s):
                await self._loop.sock_connect(connection, (self.job.host, self.job.port))
        except (OSError, TimeoutError) as error:
            self._note(f"can't connect: {error or 'no answer in time'}")
            return "refused"
        listening = self._loop.create_task(self._listen(connection))
        try:
            with contextlib.suppress(ConnectionError):
                await self._send(connection, listening)
            match self.hostile.then:
                case Then.RESET:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
                    return "left"
                case Then.FIN:
                    with contextlib.suppress(OSError):
                        connection.shutdown(socket.SHUT_WR)
            done, _ = await asyncio.wait({listening}, timeout=self._patience_s())
            if done:
                return listening.result()
            if self._patient:
                self._note(f"kept for {self.job.bound_s:g} s")
            return "left"
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    def _patience_s(self) -> float:
        if self.hostile.then is Then.DEAF:
            return DEAF_S
        return self.job.bound_s if self._patient else IMPATIENT_S

    async def _send(self, connection: socket.socket, listening: asyncio.Task[str]) -> None:
        try:
            # A server that reads no more must not keep the client for ever.
            async with asyncio.timeout(self._patience_s()):
                for place, piece in enumerate(self.hostile.pieces):
                    if place:
                        await asyncio.wait({listening}, timeout=self.hostile.pause_s)
                    if listening.done():
                        return
                    await self._loop.sock_sendall(connection, piece)
        except TimeoutError:
            pass

    async def _listen(self, connection: socket.socket) -> str:
        """Reads until the server ends the connection, or has answered a client that wants no more."""
        if self.hostile.then is Then.DEAF:
            await self._loop.create_future()
        while True:
            try:
                data = await self._loop.sock_recv(connection, 65_536)
            except ConnectionError:
                return "reset"
            self._rest += data
            try:
                while answer := parse_answer(self._rest, closed=not data) if self._rest else None:
                    self._take(answer)
            except BadAnswer as error:
                # Who ends its side of a connection may hear no more than that it should go on.
                if data or self._rest != _CONTINUE:
                    self._note(f"unreadable answer: {error}")
                return "closed"
            if not data:
                return "closed"
            if self._answers and self.hostile.then is Then.LISTEN:
                return "answered"

    def _take(self, answer: Answer) -> None:
        self._answers += 1
        tally = self.barrage.kinds[self.kind]
        status = str(answer.status)
        tally.answers[status] = tally.answers.get(status, 0) + 1
        if answer.status >= 500 and answer.status != 503:
            self._note(f"status {status}")
        if answer.status == 200 and b'"orderId"' in answer.body and b"ACCEPTED" in answer.body:
            self.barrage.order_ids.append(str(msgspec.json.decode(answer.body)["orderId"]))
        self._rest = self._rest[answer.size :]

    def _note(self, fault: str) -> None:
        self.barrage.faults += 1
        if len(self.barrage.findings) < MOST_FINDINGS:
            sent = show_bytes(b"".join(self.hostile.pieces))
            self.barrage.findings.append(Finding(self.number, self.kind, fault, sent, show_bytes(self._rest)))


def show_bytes(data: bytes) -> str:
    """The bytes, escaped, and cut in the middle where they are many."""
    if len(data) <= 2 * MOST_SHOWN:
        return repr(data)[2:-1]
    left_out = len(data) - 2 * MOST_SHOWN
    return f"{repr(data[:MOST_SHOWN])[2:-1]} … {left_out:,} bytes … {repr(data[-MOST_SHOWN:])[2:-1]}"


async def serve() -> None:
    """Does one job."""
    orders = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    order = await orders.readline()
    if not order:
        return
    gc.freeze()
    fuzzing: asyncio.Task[Any] = loop.create_task(Fuzzer(msgspec.json.decode(order, type=Job)).run())
    orphaned: asyncio.Task[Any] = loop.create_task(orders.read())
    await asyncio.wait({fuzzing, orphaned}, return_when=asyncio.FIRST_COMPLETED)
    if fuzzing.done():
        sys.stdout.buffer.write(msgspec.json.encode(fuzzing.result()) + b"\n")
        sys.stdout.buffer.flush()
    for task in (fuzzing, orphaned):
        task.cancel()
    await asyncio.gather(fuzzing, orphaned, return_exceptions=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    uvloop.run(serve())
