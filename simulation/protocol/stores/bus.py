"""The bus of an example: a stand-in, in memory, for what RabbitMQ promises.

RabbitMQ itself has no single steps: it takes, delivers and counts when it likes. What the engine relies on
is here, and exact. A message that is confirmed stays until a consumer acknowledges it. What a consumer
holds is delivered again once the broker notices that the consumer is gone, and until then the consumer
counts. A message whose confirm is lost may be in the queue, or get there later.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from engine.errors import BusUnavailable
from engine.model.dead_letter import DeadLetter
from engine.model.lot import Lot, encode_lots
from engine.model.message import Message
from simulation.protocol.steps import Broken, take_turn


class Bus:
    """The broker."""

    def __init__(self) -> None:
        self.queue: deque[tuple[bytes, bool]] = deque()
        """Messages, and whether each was delivered before."""
        self.taken: list[bytes] = []
        """Every message that was ever in the queue."""
        self.late: list[bytes] = []
        """Messages on their way, of which their publishers know nothing any more."""
        self.dead: list[DeadLetter] = []
        self.channels: list[Channel] = []

    def notice(self, channel: "Channel") -> None:
        """Take a consumer for gone, and have what it held delivered again."""
        channel.is_open = False
        if channel in self.channels:
            self.channels.remove(channel)
            self.queue.extendleft((body, True) for body in reversed(channel.held.values()))
            channel.held.clear()

    def take(self, body: bytes) -> None:
        """Put a message into the queue."""
        self.queue.append((body, False))
        self.taken.append(body)

    def arrive(self) -> None:
        """Put the first message that is on its way into the queue."""
        self.take(self.late.pop(0))

    def list_bodies(self) -> list[bytes]:
        """Return every message that is certain to be delivered."""
        held = [body for channel in self.channels for body in channel.held.values()]
        return [body for body, _ in self.queue] + held


class Channel:
    """A consumer, as the broker sees it."""

    def __init__(self) -> None:
        self.is_open = True
        self.is_abandoned = False
        """Whether its process is dead, and the broker does not know yet."""
        self.held: dict[int, bytes] = {}
        self.delivered = 0


class StepPublisher:
    """What the engine takes for its Publisher."""

    bus: Bus

    def __init__(self, _url: str) -> None:
        pass

    async def publish(self, lines: bytes) -> None:
        bus = self.bus
        await _take_turn("publish", lambda: bus.take(lines), lambda: bus.late.append(lines))

    async def put_aside(self, dead_letters: Iterable[DeadLetter]) -> None:
        for dead_letter in dead_letters:
            await _take_turn("put aside", lambda each=dead_letter: self.bus.dead.append(each))

    async def read_queue(self) -> tuple[int, int]:
        bus = self.bus
        counts: tuple[int, int] = await _take_turn("count", lambda: (len(bus.queue), len(bus.channels)))
        return counts

    async def count_dead_letters(self) -> int:
        bus = self.bus
        number: int = await _take_turn("look for dead letters", lambda: len(bus.dead))
        return number

    async def close(self) -> None:
        pass


class StepConsumer:
    """What the engine takes for its Consumer."""

    bus: Bus

    def __init__(self, _url: str, prefetch: int) -> None:
        self.channel: Channel | None = None

    @property
    def is_open(self) -> bool:
        """Whether the broker has not taken it for gone."""
        return self.channel is not None and self.channel.is_open

    async def read(self, wait_s: float) -> list[Message]:
        bus = self.bus
        if self.channel is None:
            self.channel = channel = Channel()
            await _take_turn("consume", lambda: bus.channels.append(channel))
        channel = self.channel

        def deliver() -> list[Message]:
            if not channel.is_open:
                raise Broken("the channel is closed")
            messages = []
            while bus.queue:
                body, repeated = bus.queue.popleft()
                channel.delivered += 1
                channel.held[channel.delivered] = body
                tag = (channel, channel.delivered)
                messages.append(Message(tag=tag, lines=body, repeated=repeated))
            return messages

        try:
            found: list[Message] = await _take_turn("deliver", deliver)
        except BusUnavailable:
            await self.close()
            raise
        return found

    async def acknowledge(self, messages: Iterable[Message]) -> None:
        tags = [message.tag for message in messages]

        def forget() -> None:
            for channel, number in tags:
                if channel.is_open:
                    channel.held.pop(number, None)

        try:
            await take_turn("bus acknowledge", forget)
        except Broken:
            # Nobody waits for an answer: the next read finds out.
            for channel, _ in tags:
                self.bus.notice(channel)

    async def put_aside(self, dead_letters: Iterable[DeadLetter]) -> None:
        await StepPublisher("").put_aside(dead_letters)

    async def put_back(self, lots: Sequence[Lot]) -> None:
        await StepPublisher("").publish(encode_lots(lots))

    async def close(self) -> None:
        channel, self.channel = self.channel, None
        if channel is not None:
            self.bus.notice(channel)


async def _take_turn(what: str, work: Any, late: Any = None) -> Any:
    try:
        return await take_turn(f"bus {what}", work, late)
    except Broken as error:
        raise BusUnavailable(str(error)) from error
