"""The Redis of an example: a real server, whose memory can be lost or go back.

Time and the server's identity are keys beside the gate's, since an example has no time, and a real restart
takes too long: each script is loaded with these keys in place of TIME, of INFO's run_id and of the time in
a stream's ids. Beside that, scripts and commands are the engine's, as its own client sends them.
"""

import hashlib
import secrets
import socket
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any, Final
from urllib.parse import urlsplit

import hiredis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError, NoScriptError, ResponseError

from engine.gate.keys import ShardKeys
from simulation.protocol.steps import Actor, Broken, Clock, current_actor, take_turn

Words = tuple[Any, ...]
Copy = tuple[tuple[bytes, bytes], ...]
"""Names and serialised values of all keys."""

_HERE: Final = files("simulation.protocol.stores")
_OTHERWISE: Final = {
    "redis.call('TIME')": "redis.call('LRANGE', 'clock', 0, 1)",
    "redis.pcall('INFO', 'server')": "redis.call('GET', 'identity')",
    "'XADD', outbox, '*'": (
        "'XADD', outbox, string.format('%.0f-%d', clock_ms(), redis.call('INCR', 'entries'))"
    ),
}


_WRITES: Final = {"reserve", "open_sale", "clear"}
"""Scripts that answer first with the generation and the number of the writer's last write."""


class Memory:
    """One real server, and what it is told of time and of itself."""

    def __init__(self, url: str, clock: Clock) -> None:
        address = urlsplit(url)
        self._socket = socket.create_connection((address.hostname, address.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader(replyError=make_error)
        self.clock = clock
        self._told_ms = -1
        self.incarnation = 0
        """Counts the servers: a connection to an earlier one is broken."""
        self.asked: Callable[[Actor, str], None] = lambda actor, script: None
        """Told which script an actor ran."""
        self.heard: dict[Actor, dict[str, tuple[int, int]]] = {}
        """Generation and number of the last write that each actor was answered, by the writer's name."""
        self._scripts: dict[bytes, tuple[bytes, str]] = {}
        """Digest and name of the script that is run, by the digest that the engine knows."""
        for file in files("engine.gate").iterdir():
            if file.name.endswith(".lua"):
                source = text = file.read_text()
                for words, others in _OTHERWISE.items():
                    text = text.replace(words, others)
                known = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest().encode()
                self._scripts[known] = self.call("SCRIPT", "LOAD", text), file.name.removesuffix(".lua")
        # Nothing of it need outlive its process.
        self.call("CONFIG", "SET", "appendonly", "no")
        self._copy = self.call("SCRIPT", "LOAD", (_HERE / "copy.lua").read_bytes())
        self._restore = self.call("SCRIPT", "LOAD", (_HERE / "go_back.lua").read_bytes())

    def call(self, *words: Any) -> Any:
        """Return the answer to a command that is no step. Raises ResponseError."""
        [answer] = self._exchange([words])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def begin(self, generation: int) -> None:
        """Empty the server for another example, which begins with an open gate."""
        self.heard.clear()
        server = self.go_back(())
        self.call("HSET", ShardKeys(0).fence, "open", generation, "server", server, "since", 0)

    def take_copy(self) -> Copy:
        """Return all that the gate holds."""
        return tuple((name, value) for name, value in self.call("EVALSHA", self._copy, 0))

    def go_back(self, copy: Copy) -> str:
        """Put another server in place of this one, which holds a copy and nothing else; return its run_id."""
        self.incarnation += 1
        self.clock.now_ms += 5
        server, words = secrets.token_hex(20), [word for pair in copy for word in pair]
        self.call("EVALSHA", self._restore, 1, f"run_id:{server}", *words)
        return server

    def execute(self, commands: Sequence[Words], actor: Actor) -> list[Any]:
        """Return the answers to commands of an actor, which follow one another without a gap."""
        now_ms, telling = self.clock.now_ms, list[Words]()
        if self._told_ms != now_ms:
            self._told_ms = now_ms
            telling = [("DEL", "clock"), ("RPUSH", "clock", now_ms // 1000, now_ms % 1000 * 1000)]
        answers = self._exchange([*telling, *map(self._translate, commands)])[len(telling) :]
        for words in commands:
            if words[0] == "EVALSHA":
                self.asked(actor, self.name_of(words))
        return answers

    def note_answers(self, actor: Actor, commands: Iterable[Words], answers: Iterable[Any]) -> None:
        """Note what an actor hears of its writes, whatever the engine makes of it."""
        for words, answer in zip(commands, answers, strict=True):
            if words[0] == "EVALSHA" and self.name_of(words) in _WRITES and isinstance(answer, list):
                writer, (generation, writes) = str(words[3 + int(words[2])]), map(int, answer[:2])
                heard = self.heard.setdefault(actor, {})
                heard[writer] = max(heard.get(writer, (0, 0)), (generation, writes))

    def name_of(self, words: Words) -> str:
        """Return the name of a command, or of the script that it runs."""
        if words[0] == "EVALSHA":
            return self._scripts[_encode(words[1])][1]
        return str(words[0])

    def _translate(self, words: Words) -> Words:
        match words[0]:
            case "EVALSHA":
                return (words[0], self._scripts[_encode(words[1])][0], *words[2:])
            case "TIME":
                return ("LRANGE", "clock", 0, 1)
            case "XREADGROUP" if "BLOCK" in words or b"BLOCK" in words:
                # What waits for an entry finds none.
                at = [word in ("BLOCK", b"BLOCK") for word in words].index(True)
                return words[:at] + words[at + 2 :]
            case "XAUTOCLAIM":
                # The time after which an entry may be claimed is over, or else the engine does not ask.
                return (*words[:4], 0, *words[5:])
        return words

    def _exchange(self, commands: Iterable[Words]) -> list[Any]:
        packed = [hiredis.pack_command(words) for words in commands]
        self._socket.sendall(b"".join(packed))
        answers: list[Any] = []
        while len(answers) < len(packed):
            answer = self._reader.gets()
            if answer is False:
                self._reader.feed(self._socket.recv(1 << 16))
            else:
                answers.append(answer)
        return answers

    def close(self) -> None:
        """Disconnect."""
        self._socket.close()


def make_error(text: str) -> ResponseError:
    """Return the error that the client library makes of an answer."""
    return NoScriptError(text) if text.startswith("NOSCRIPT") else ResponseError(text)


def _encode(word: str | bytes) -> bytes:
    return word.encode() if isinstance(word, str) else word


class StepConnection(AbstractConnection):
    """A connection of the engine's client, each of whose exchanges is a step."""

    memory: Memory
    """The server to which all of them lead."""

    def __init__(self, path: str = "", **options: Any) -> None:
        super().__init__(driver_info=None, **options)
        self._incarnation: int | None = None
        self._is_checked = False
        """Whether nothing was sent since the client looked whether the connection is good."""
        self._commands: deque[Words] = deque()
        self._answers: deque[Any] = deque()

    def repr_pieces(self) -> list[tuple[str, str]]:
        return []

    @property
    def is_connected(self) -> bool:
        return self._incarnation is not None

    async def connect(self) -> None:
        self._incarnation = self.memory.incarnation

    async def disconnect(self, *_: Any, **__: Any) -> None:
        self._incarnation = None
        self._commands.clear()
        self._answers.clear()

    async def can_read(self) -> bool:
        if self._incarnation != self.memory.incarnation:
            raise ConnectionError("the connection is closed")
        self._is_checked = True
        return False

    def pack_command(self, *words: Any) -> list[Any]:
        return [(*words[0].split(), *words[1:])]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[Any]:
        return [packed for words in commands for packed in self.pack_command(*words)]

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        self._commands.extend(command)

    async def read_response(self, *_: Any, **__: Any) -> Any:
        if not self._answers:
            try:
                self._answers.extend(await self._exchange(self._take()))
            except Broken as error:
                await self.disconnect()
                raise ConnectionError(str(error)) from error
        answer = self._answers.popleft()
        if isinstance(answer, ResponseError):
            raise answer
        return answer

    def _take(self) -> list[Words]:
        """Return what Redis does without a gap: a command, or a transaction."""
        commands = [self._commands.popleft()]
        if commands[0][0] == "MULTI":
            while commands[-1][0] != "EXEC":
                commands.append(self._commands.popleft())
        return commands

    async def _exchange(self, commands: list[Words]) -> list[Any]:
        actor, name = current_actor(), self.memory.name_of(commands[-2] if len(commands) > 1 else commands[0])
        if name == "HDEL" and commands[0][2] == "":
            # It changes nothing, and only a demoted primary would refuse it.
            return [0]
        # What a lane sends goes over the connection on which it has vouched for the server. Any other command
        # may be sent by a process that stood still before it looked at its connection.
        pinned = not self._is_checked or name in ("reserve", "vouch")
        self._is_checked = False

        def execute() -> list[Any]:
            if not pinned:
                self._incarnation = self.memory.incarnation
            elif self._incarnation != self.memory.incarnation:
                raise Broken("the connection is closed")
            return self.memory.execute(commands, actor)

        answers = await take_turn(f"Redis {name}", execute)
        self.memory.note_answers(actor, commands, answers)
        return answers


class StepWire:
    """What the engine takes for a wire: what a lane asks is a step, on the server that it connected to."""

    memory: Memory

    def __init__(self, _redis: Any) -> None:
        self._incarnation: int | None = None

    @property
    def is_open(self) -> bool:
        return self._incarnation == self.memory.incarnation

    async def connect(self) -> None:
        self._incarnation = self.memory.incarnation

    async def ask(self, *commands: Words) -> list[Any]:
        actor = current_actor()
        # A write that changes nothing asks a demoted primary.
        asked = [words for words in commands if not (words[0] == "HDEL" and words[2] == "")]

        def execute() -> list[Any]:
            if not self.is_open:
                raise Broken("the connection is closed")
            return [0] * (len(commands) - len(asked)) + self.memory.execute(asked, actor)

        try:
            answers = await take_turn(f"Redis {self.memory.name_of(asked[0])}", execute)
        except Broken as error:
            self.close()
            raise ConnectionError(str(error)) from error
        self.memory.note_answers(actor, commands, answers)
        return answers

    def close(self) -> None:
        self._incarnation = None
