"""Faults on the nodes of a cluster: what is done to a node or a machine, and how that ends."""

import asyncio
import signal
from contextlib import AsyncExitStack

from engine.local.cluster.nodes import Node, list_cluster, make_whole
from engine.local.cluster.redis import RedisCluster, take_over
from engine.local.machines import Network
from engine.local.process import identify, send_signal
from engine.local.stack import Stack
from simulation.errors import FaultError
from simulation.faults.commands import POLL_S, insist
from simulation.faults.roles import find_busiest, find_in_charge, find_nodes
from simulation.scenario.fault import MACHINES, PARTITIONS, Fault
from simulation.target.cluster.roles import LEDGER
from simulation.target.services import Services


class NodeFault:
    """A fault on a node or a machine. Its methods raise FaultError or StackError."""

    def __init__(self, fault: Fault, services: Services, stack: Stack) -> None:
        self.hit: list[str] = []
        """The names of what it is done to, once that is known."""
        self._kind, self._on = fault.kind, fault.on
        self._services = services
        self._stack = stack
        self._data_dir = stack.data_dir
        self._nodes: list[Node] = []

    async def find(self) -> None:
        """Learn what it is done to: that may take a second."""
        self._nodes = await insist(lambda: find_nodes(self._on, self._services, self._stack))
        self.hit = [node.name for node in self._nodes]

    async def begin(self, ending: AsyncExitStack) -> None:
        """Begin it. `ending` learns first what ends it."""
        nodes = self._nodes
        if self._kind in PARTITIONS:
            await self._cut_off(nodes[0].machine, ending)
        elif self._kind == "switchover":
            await self._switch_over(nodes[0])
        elif self._kind == "stop":
            for node in nodes:
                ending.callback(node.thaw)
            for node in nodes:
                node.freeze()
        else:
            for node in nodes:
                ending.push_async_callback(node.start)
            await asyncio.gather(*(node.kill() if self._kind == "kill" else node.stop() for node in nodes))

    async def make_whole(self) -> None:
        """Wait after its end until each node is back in its cluster, and each shard's primary at home."""
        await make_whole(self._data_dir, self._nodes)

    async def _cut_off(self, machine: int, ending: AsyncExitStack) -> None:
        self._nodes = [node for node in list_cluster(self._data_dir) if node.machine == machine]
        self.hit = [MACHINES[machine - 1]]
        network = Network(self._data_dir)
        ending.push_async_callback(network.mend)
        await network.cut(
            machine, incoming=self._kind != "partition_out", outgoing=self._kind != "partition_in"
        )

    async def _switch_over(self, primary: Node) -> None:
        if primary.service == RedisCluster.name:
            _, replicas = await find_busiest(self._stack)
            if not replicas:
                raise FaultError(f"{primary.name} has no replica to hand over to")
            await take_over(self._data_dir / primary.service, replicas[0].number)
            return
        send_signal([identify(self._stack.pid(primary.service))], signal.SIGUSR1)
        while await find_in_charge(LEDGER, self._services) in ("", primary.name):  # noqa: ASYNC110 (no event)
            await asyncio.sleep(POLL_S)
