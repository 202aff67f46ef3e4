"""The lookup: nodes of a Redis Cluster, or Sentinels, say which server is the primary.

Each connect asks all nodes that the URL names at once and believes, once most of them have answered, the
answer of the latest epoch: a node that is frozen holds nobody up, and one that is cut off, and goes on taking
itself for the primary, does not lead anybody to it.

While a slot moves to another node of a cluster, both hold keys of it, and its primary refuses what needs the
others. But a primary that takes over meanwhile, or whose move is given up, knows of no move and takes those
keys for gone. So nobody is led to a slot of which another primary holds keys.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

from redis.exceptions import AuthenticationError, ConnectionError, NoPermissionError, RedisError

from engine.tasks import cancel
from engine.urls import RedisUrl

_ASK_S: Final = 1.0
"""Longest wait for a node's answer."""
_COUNT_S: Final = 1.0
"""Longest wait until other primaries say whether they hold keys of a slot."""
_KEEP_S: Final = 0.1
"""For so long an answer is taken for true: where the primary is gone, each batch looks it up."""

Address = tuple[str, int]
MakeConnection = Callable[..., Any]
"""Makes a connection of the client library; given host, port and what differs from the client's options."""


class View(NamedTuple):
    """What one node says of the primary."""

    epoch: int
    host: str
    port: int
    is_down: bool
    """Whether most nodes have found it to be gone."""
    others: tuple[Address, ...] = ()
    """The cluster's other primaries, but for those that are gone."""


class Lookup:
    """Finds the primary of one slot, or of one name."""

    def __init__(self, url: RedisUrl, slot: int, make_connection: MakeConnection, timeout_s: float) -> None:
        self._url = url
        self._slot = slot
        self._make_connection = make_connection
        # One that is frozen uses up no more of what the caller may wait.
        self._count_s = min(timeout_s / 5, _COUNT_S)
        self._known: list[Address] = []
        """Nodes of the cluster that the last answer named."""
        self._found = ("", 0)
        self._found_until = 0.0
        self._others: tuple[Address, ...] = ()
        self._whole_until = 0.0
        """Until when none of the others is taken to hold keys of the slot."""
        self._finding = asyncio.Lock()

    async def find(self) -> Address:
        """Return the primary's address. Raises RedisError if nobody knows it, or it is known to be down."""
        async with self._finding:
            if time.monotonic() >= self._found_until:
                # Where none of the named nodes lives, others of the cluster may.
                errors = list[RedisError]()
                nodes = self._url.nodes
                view = await self._ask_all(nodes, errors) or await self._ask_all(self._known, errors)
                if view is None:
                    said = "; ".join(map(str, errors))
                    raise ConnectionError(f"no node says which Redis is the primary: {said}") from errors[0]
                if view.is_down:
                    raise ConnectionError(f"the primary at {view.host}:{view.port} is down")
                self._found, self._found_until = (view.host, view.port), time.monotonic() + _KEEP_S
                self._others, self._whole_until = view.others, 0.0
            return self._found

    async def check_whole(self) -> None:
        """Raise ConnectionError if another primary holds keys of the slot, too.

        To ask all of them is work, and none for a primary that does not answer: connect to it first.
        """
        async with self._finding:
            if time.monotonic() >= self._whole_until:
                if other := await self._find_other_holder(self._others):
                    raise ConnectionError(
                        f"slot {self._slot} moves, or was left half-way: {other} holds keys of it, too"
                    )
                self._whole_until = time.monotonic() + _KEEP_S

    async def find_silent(self) -> list[str]:
        """Return the nodes that the URL names and that don't say which Redis is the primary, and why; so also
        the other nodes of a cluster, or the replicas under the Sentinels: each may be the next primary.
        """
        asking = (self._ask(*node) for node in self._url.nodes)
        named = await asyncio.gather(*asking, return_exceptions=True)
        others = [node for node in await self._list_others() if node not in self._url.nodes]
        unnamed = await asyncio.gather(*(self._greet(*node) for node in others), return_exceptions=True)
        return [str(answer) for answer in (*named, *unnamed) if isinstance(answer, BaseException)]

    async def _list_others(self) -> list[Address]:
        if self._url.kind == "cluster":
            return self._known
        for host, port in self._url.nodes:
            with suppress(RedisError, OSError):
                rows = await self._ask_sentinel(host, port, "REPLICAS")
                return [(row["ip"], int(row["port"])) for row in map(_read_row, rows)]
        return []

    async def _greet(self, host: str, port: int) -> None:
        """Connect to one node as to a primary. Raises RedisError, which names the node."""
        with _naming(host, port):
            await self._execute(host, port, {}, ("PING",))

    async def _ask_all(self, nodes: Sequence[Address], errors: list[RedisError]) -> View | None:
        """Return what the node with the latest news says, once most have answered or nobody else will."""
        views = list[View]()
        asking = [asyncio.create_task(self._ask(*node)) for node in nodes]
        try:
            for answer in asyncio.as_completed(asking):
                try:
                    views.append(await answer)
                except RedisError as error:
                    errors.append(error)
                if 2 * len(views) > len(nodes):
                    break
        finally:
            await cancel(*asking)
        return max(views, default=None)

    async def _find_other_holder(self, others: Sequence[Address]) -> str:
        """Return one of these primaries that says that it holds keys of the slot, "" if none does."""
        asking = {asyncio.create_task(self._count_keys(*other)): other for other in others}
        try:
            answered, _ = await asyncio.wait(asking, timeout=self._count_s) if asking else (set(), set())
            return next(("{}:{}".format(*asking[task]) for task in answered if task.result()), "")
        finally:
            await cancel(*asking)

    async def _count_keys(self, host: str, port: int) -> int:
        """Return how many keys of the slot a node holds as a primary, 0 if it does not say."""
        with suppress(RedisError, OSError):
            text, count = await self._execute(
                host, port, {}, ("CLUSTER", "NODES"), ("CLUSTER", "COUNTKEYSINSLOT", str(self._slot))
            )
            # The primary of before may be a replica already, as it alone knows.
            if b"myself,slave" not in text:
                return int(count)
        return 0

    async def _ask(self, host: str, port: int) -> View:
        """Return what one node says. Raises RedisError, which names the node."""
        with _naming(host, port):
            return await self._read(host, port)

    async def _read(self, host: str, port: int) -> View:
        if self._url.kind == "cluster":
            # CLUSTER NODES knows the epochs, CLUSTER SLOTS the addresses that are meant for clients.
            try:
                text, slots = await self._execute(host, port, {}, ("CLUSTER", "NODES"), ("CLUSTER", "SLOTS"))
            except NoPermissionError:
                [text], slots = await self._execute(host, port, {}, ("CLUSTER", "NODES")), []
            nodes = list(_read_nodes(text.decode(), _read_endpoints(slots), host))
            self._known = [address for address, _ in nodes]
            return _find_owner(nodes, self._slot)
        row = _read_row(await self._ask_sentinel(host, port, "MASTER"))
        is_down = "o_down" in row["flags"].split(",")
        return View(int(row["config-epoch"]), row["ip"], int(row["port"]), is_down)

    async def _ask_sentinel(self, host: str, port: int, what: str) -> Any:
        command = "SENTINEL", what, self._url.name
        try:
            [answer] = await self._execute(host, port, {"db": 0}, command)
        except AuthenticationError:
            # User and password are those of Redis; Sentinels may have none.
            [answer] = await self._execute(host, port, {"db": 0, "username": None, "password": None}, command)
        return answer

    async def _execute(
        self, host: str, port: int, options: dict[str, Any], *commands: tuple[str, ...]
    ) -> list[Any]:
        """Return a node's answers to commands, sent one after the other."""
        connection = self._make_connection(host=host, port=port, **options)
        try:
            async with asyncio.timeout(_ASK_S):
                await connection.connect()
                for command in commands:
                    await connection.send_command(*command)
                return [await connection.read_response() for _ in commands]
        finally:
            await connection.disconnect(nowait=True)


@contextmanager
def _naming(host: str, port: int) -> Iterator[None]:
    """Raise ConnectionError that names the node for any error of its client."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise ConnectionError(f"{host}:{port}: {str(error) or 'no answer in time'}") from error


def _read_row(words: Sequence[bytes]) -> dict[str, str]:
    """Return what a Sentinel says of a server, by name."""
    return {name.decode(): value.decode() for name, value in zip(words[::2], words[1::2], strict=True)}


def _read_endpoints(slots: Sequence[Any]) -> dict[str, str | None]:
    """Return the host by which clients should reach each node that CLUSTER SLOTS lists, by the node's id.

    It is none where they should reach all nodes by the one that they know: behind a load balancer, say.
    """
    return {
        node[2].decode(): None if node[0] is None else node[0].decode()
        for _, _, *nodes in slots
        for node in nodes
    }


def _read_nodes(
    text: str, endpoints: Mapping[str, str | None], asked: str
) -> Iterator[tuple[Address, Sequence[str]]]:
    """Yield address and line of each node that CLUSTER NODES lists, as it was asked of one of them."""
    rows = [(words, *_read_place(words[1])) for words in map(str.split, text.splitlines())]
    has_names = not endpoints or "?" in endpoints.values()
    has_names |= any(name and name == endpoints.get(words[0]) for words, _, _, name in rows)
    for words, host, port, name in rows:
        # A node without slots, to which one may move, is in no other list. It is reached as others are.
        usual = None if None in endpoints.values() else (has_names and name) or host
        endpoint = endpoints.get(words[0], usual)
        if port == "0":
            continue  # it has been lost for long
        # One that should be reached by its name, and has none, is a question mark. And a node that was never
        # met by its address does not know it.
        yield ((host if endpoint == "?" else endpoint) or asked, int(port)), words


def _read_place(word: str) -> tuple[str, str, str]:
    """Return host, port and name of a node, as in host:port@port,name,…"""
    place, _, names = word.partition(",")
    host, _, port = place.partition("@")[0].rpartition(":")
    return host, port, names.partition(",")[0]


def _find_owner(nodes: Sequence[tuple[Address, Sequence[str]]], slot: int) -> View:
    """Return the primary that holds a slot. Raises ConnectionError if none does."""
    owner: View | None = None
    others = list[Address]()
    for (host, port), words in nodes:
        flags = words[2].split(",")
        if any(first <= slot <= last for first, last in _read_slots(words[8:])):
            owner = View(int(words[6]), host, port, "fail" in flags)
        elif "master" in flags and not {"fail", "fail?", "handshake", "noaddr"}.intersection(flags):
            others.append((host, port))
    if owner is None:
        raise ConnectionError(f"no node of the cluster holds slot {slot}")
    return owner._replace(others=tuple(others))


def _read_slots(parts: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Yield the first and the last one of each range of slots; those that move are in brackets besides."""
    for part in parts:
        first, _, last = part.partition("-")
        if first.isdigit():
            yield int(first), int(last or first)
