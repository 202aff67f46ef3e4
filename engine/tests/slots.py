"""A slot that moves to another primary of a cluster, as `redis-cli --cluster reshard` moves it."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final

from engine.gate.keys import ShardKeys
from engine.local.cluster.redis import connect_nodes, introduce, launch_node
from engine.local.ports import free_port
from engine.local.process import stop_process
from engine.tests.clusters import Node
from engine.tests.test_server import eventually

_SLOTS: Final = 16_384


class SlotMove:
    """The steps of a move; between any two of them it may stand still for as long as one likes."""

    def __init__(self, keys: ShardKeys, source: Node, target: Node) -> None:
        self._keys = keys
        self._slot = keys.slot
        self._source = source
        self._target = target

    async def begin(self) -> None:
        """Tell both sides that the slot is about to move."""
        source, target = [await _read_name(node) for node in (self._source, self._target)]
        await self._target.execute("CLUSTER", "SETSLOT", self._slot, "IMPORTING", source)
        await self._source.execute("CLUSTER", "SETSLOT", self._slot, "MIGRATING", target)

    async def carry(self, most: int) -> int:
        """Move so many keys at most; return how many."""
        names = await self._source.execute("CLUSTER", "GETKEYSINSLOT", self._slot, most)
        if names:
            place = ("127.0.0.1", self._target.port, "", 0, 5_000)
            await self._source.execute("MIGRATE", *place, "KEYS", *names)
        return len(names)

    async def cancel(self) -> None:
        """Let the source forget the move; what has moved already stays where it is."""
        await self._source.execute("CLUSTER", "SETSLOT", self._slot, "STABLE")

    async def bring_back(self) -> None:
        """Move all keys of a move that was given up back to the source."""
        back = SlotMove(self._keys, self._target, self._source)
        while await back.carry(100):
            pass
        await self._target.execute("CLUSTER", "SETSLOT", self._slot, "STABLE")

    async def end(self) -> None:
        """Move the rest, and give the slot to the target; other nodes hear of it from these two."""
        while await self.carry(100):
            pass
        name = await _read_name(self._target)
        for node in (self._target, self._source):
            await node.execute("CLUSTER", "SETSLOT", self._slot, "NODE", name)


async def _read_name(node: Node) -> str:
    name: bytes = await node.execute("CLUSTER", "MYID")
    return name.decode()


@asynccontextmanager
async def run_primaries(folder: Path) -> AsyncIterator[tuple[str, list[Node]]]:
    """Run a cluster of two primaries, the first of which holds every slot; yield its URL and them."""
    ports = [free_port(), free_port()]
    nodes = [Node(port, launch_node(folder, port)) for port in ports]
    try:
        for node in nodes:
            await eventually(node.answers)
        places = [("127.0.0.1", port) for port in ports]
        async with connect_nodes(places) as clients:
            await introduce(clients[0], places[1:])
        await nodes[0].execute("CLUSTER", "ADDSLOTSRANGE", 0, _SLOTS - 1)
        for node in nodes:
            await eventually(partial(_is_whole, node))
        yield "redis+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports), nodes
    finally:
        for node in nodes:
            await stop_process(node.process, signal.SIGKILL, 10)


async def _is_whole(node: Node) -> bool:
    state = await node.execute("CLUSTER", "INFO")
    return b"cluster_state:ok" in state and b"cluster_slots_assigned:16384" in state
