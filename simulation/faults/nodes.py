"""Faults on the nodes of a cluster: what is done to a node or a machine, and how that ends."""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Final

from redis.exceptions import RedisError

from engine.local.cluster.nodes import Node, list_cluster, make_whole
from engine.local.cluster.redis import RedisCluster, take_over
from engine.local.machines import Network
from engine.local.process import identify, send_signal
from engine.local.stack import Stack
from simulation.errors import FaultError
from simulation.faults.commands import POLL_S, insist
from simulation.faults.roles import find_in_charge, find_nodes, find_replicas
from simulation.scenario.fault import MACHINES, PARTITIONS, Fault
from simulation.target.cluster.roles import LEDGER
from simulation.target.engine_process import EngineProcess
from simulation.target.services import Services

_HAND_OVER_S: Final = 30.0
"""Longest time in which a primary hands over."""


class NodeFault:
    """A fault on a node, an engine or a machine. Its methods raise FaultError or StackError."""

    def __init__(
        self, fault: Fault, services: Services, stack: Stack, engines: Sequence[EngineProcess]
    ) -> None:
        self.hit: list[str] = []
        """The names of what it is done to, once that is known."""
        self._kind, self._on = fault.kind, fault.on
        self._services = services
        self._stack = stack
        self._engines = engines
        self._targets: Sequence[Node | EngineProcess] = []

    async def find(self) -> None:
        """Learn what it is done to."""
        self._targets = await insist(lambda: find_nodes(self._on, self._services, self._stack, self._engines))
        self.hit = [target.name for target in self._targets]

    async def begin(self, ending: AsyncExitStack) -> None:
        """Begin it. `ending` learns first what ends it; what ends last has begun first."""
        if self._kind in PARTITIONS:
            await self._cut_off(self._targets[0].machine, ending)
        elif self._kind == "switchover":
            await self._switch_over(self._targets[0])
        elif self._kind == "stop":
            for target in self._targets:
                ending.callback(target.thaw)
            for target in self._targets:
                target.freeze()
        else:
            for target in self._targets:
                ending.push_async_callback(target.start)
            if self._kind == "kill":
                await asyncio.gather(*(target.kill() for target in self._targets))
                return
            for target in self._targets:
                await self._hand_over(target)
            await asyncio.gather(*(target.stop() for target in self._targets))

    async def make_whole(self) -> None:
        """Wait after its end until each node is back in its cluster, and each shard's primary at home."""
        nodes = [target for target in self._targets if isinstance(target, Node)]
        await make_whole(self._stack.data_dir, nodes)

    async def _cut_off(self, machine: int, ending: AsyncExitStack) -> None:
        cluster = list_cluster(self._stack.data_dir)
        self._targets = [node for node in cluster if node.machine == machine]
        self.hit = [MACHINES[machine - 1]]
        network = Network(self._stack.data_dir)
        ending.push_async_callback(network.mend)
        incoming, outgoing = self._kind != "partition_out", self._kind != "partition_in"
        await network.cut(machine, incoming=incoming, outgoing=outgoing)

    async def _switch_over(self, primary: Node | EngineProcess) -> None:
        if isinstance(primary, Node) and primary.service == RedisCluster.name:
            if not await self._hand_over(primary):
                raise FaultError(f"{primary.name} has no replica to hand over to")
            return
        send_signal([identify(self._stack.pid(primary.service))], signal.SIGUSR1)
        try:
            async with asyncio.timeout(_HAND_OVER_S):
                while await find_in_charge(LEDGER, self._services) in ("", primary.name):  # noqa: ASYNC110
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise FaultError(f"{primary.name} does not hand over: nothing in {_HAND_OVER_S:g} s") from None

    async def _hand_over(self, target: Node | EngineProcess) -> bool:
        """Let a replica take a primary of Redis over; return False of anything else. Raises FaultError."""
        if not isinstance(target, Node) or target.service != RedisCluster.name:
            return False
        replicas = await find_replicas(target.number, self._stack)
        if not replicas:
            return False
        try:
            async with asyncio.timeout(_HAND_OVER_S):
                await take_over(self._stack.data_dir / target.service, replicas[0])
        except (TimeoutError, RedisError) as error:
            reason = str(error) or f"nothing in {_HAND_OVER_S:g} s"
            raise FaultError(f"{target.name} does not hand over: {reason}") from None
        return True
