"""The nodes of a cluster one by one: each may be killed, stopped, frozen, and started again.

A node has the name of its service and a number, from 1 on.
"""

import asyncio
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Final

from redis.exceptions import RedisError

from engine.errors import StackError
from engine.local.cluster.postgres import LOST, PostgresCluster, list_servers
from engine.local.cluster.rabbitmq import RabbitMQCluster, list_nodes
from engine.local.cluster.redis import MACHINES, RedisCluster, take_over
from engine.local.process import (
    ProcessId,
    family,
    freeze_processes,
    kill_processes,
    send_signal,
    stop_process,
)
from engine.local.state import lock_folder, read_state, write_entry

_REDIS: Final = RedisCluster()
_RABBITMQ: Final = RabbitMQCluster()
_POSTGRES: Final = PostgresCluster()
_STOP_S: Final = 30.0
_WHOLE_S: Final = 90.0
"""Longest time until a cluster is whole again."""
_BOOT_S: Final = 30.0
"""How long a node of RabbitMQ may say nothing before it is started again."""
_APART_S: Final = 4.0
"""The same, if it answers, but stays apart from the others."""


class Node:
    """A node of Redis or RabbitMQ."""

    stop_signal = signal.SIGTERM

    def __init__(
        self, data_dir: Path, program: RedisCluster | RabbitMQCluster | PostgresCluster, number: int
    ) -> None:
        self.service = program.name
        self.number = number
        """Its place among the nodes of its service, from 0 on."""
        self.name = f"{program.name.removesuffix('-cluster')} {number + 1}"
        self.machine = program.machines[number]
        """The number of its machine."""
        self._data_dir = data_dir
        self._folder = data_dir / program.name

    def list_processes(self) -> list[ProcessId]:
        """Return its processes, the first one first, as far as they run."""
        return family(read_state(self._data_dir)[self.service].processes[self.number])

    async def kill(self) -> None:
        """Send SIGKILL to all of its processes; it stays down until it is started."""
        await kill_processes(self.list_processes())

    async def stop(self) -> None:
        """Stop it in order; it stays down until it is started."""
        for process in self.list_processes()[:1]:
            await stop_process(process, self.stop_signal, _STOP_S)

    async def start(self) -> None:
        """Start it again, with its data and on its ports, unless it runs."""
        program = _REDIS if self.service == _REDIS.name else _RABBITMQ
        async with lock_folder(self._data_dir):
            if not self.list_processes():
                entry = read_state(self._data_dir)[self.service]
                entry.processes[self.number] = program.launch_node(self._folder, self.number)
                write_entry(self._data_dir, self.service, entry)

    def freeze(self) -> None:
        """Send SIGSTOP to its processes: the kernel still takes connections for it."""
        freeze_processes(self.list_processes())

    def thaw(self) -> None:
        """Let its processes go on."""
        send_signal(self.list_processes(), signal.SIGCONT)


class PostgresNode(Node):
    """A server of PostgreSQL. The promoter starts it again, unless it is held."""

    stop_signal = signal.SIGINT

    def __init__(self, data_dir: Path, number: int) -> None:
        super().__init__(data_dir, _POSTGRES, number)
        self._server = list_servers(self._folder)[number]

    def list_processes(self) -> list[ProcessId]:
        """Return its processes, the first one first, as far as they run."""
        return sorted(self._server.list_processes(), key=attrgetter("created", "pid"))

    async def kill(self) -> None:
        """Send SIGKILL to all of its processes; it stays down until it is started."""
        self._server.hold()
        await super().kill()

    async def stop(self) -> None:
        """Stop it in order; it stays down until it is started."""
        self._server.hold()
        await super().stop()

    async def start(self) -> None:
        """Let the promoter start it again: as a standby, if another one has become the primary."""
        self._server.release()


def list_cluster(data_dir: Path) -> list[Node]:
    """Return the nodes of all services of a folder that are clusters."""
    state, found = read_state(data_dir), list[Node]()
    for program in (_REDIS, _RABBITMQ, _POSTGRES):
        if program.name in state:
            numbers = range(len(program.machines))
            found += (
                [PostgresNode(data_dir, number) for number in numbers]
                if program is _POSTGRES
                else [Node(data_dir, program, number) for number in numbers]
            )
    return found


async def make_whole(data_dir: Path, nodes: Collection[Node]) -> None:
    """Wait until all nodes of these nodes' services are in their clusters again, and give places back.

    No machine keeps the primaries of two shards. A node of RabbitMQ that was frozen or cut off, and stays
    apart from the others, is started again. Raises StackError if all that takes too long, or a node can't be
    started.
    """
    services = {node.service for node in nodes}
    names = ", ".join(node.name for node in nodes)
    try:
        async with asyncio.timeout(_WHOLE_S), asyncio.TaskGroup() as tasks:
            if _REDIS.name in services:
                tasks.create_task(_make_redis_whole(data_dir))
            if _POSTGRES.name in services:
                tasks.create_task(_probe(_POSTGRES, data_dir))
            for node in nodes:
                if node.service == _RABBITMQ.name:
                    tasks.create_task(_let_join(data_dir, node))
    except TimeoutError:
        raise StackError(f"{names}: not back in the cluster after {_WHOLE_S:.0f} s") from None
    except ExceptionGroup as errors:
        raise StackError(f"{names}: not back in the cluster: {errors.exceptions[0]}") from errors


async def _make_redis_whole(data_dir: Path) -> None:
    await _probe(_REDIS, data_dir)
    for number in range(0, len(_REDIS.machines), MACHINES):
        await take_over(data_dir / _REDIS.name, number)
    await _probe(_REDIS, data_dir)


async def _probe(program: RedisCluster | RabbitMQCluster | PostgresCluster, data_dir: Path) -> None:
    while True:
        with suppress(OSError, EOFError, RedisError, *LOST):
            await program.probe(0, data_dir / program.name)
            return
        await asyncio.sleep(0.05)


async def _let_join(data_dir: Path, node: Node) -> None:
    """Wait until the other nodes of RabbitMQ see this one, and start it again if they don't."""
    nodes = list_nodes(data_dir / _RABBITMQ.name)
    own, other = nodes[node.number], nodes[node.number - 1]
    latest_s = time.monotonic() + _BOOT_S
    while True:
        with suppress(OSError, EOFError, StackError):
            await own.probe()
            latest_s = min(latest_s, time.monotonic() + _APART_S)
            if own.name in await other.list_running():
                return
        if time.monotonic() > latest_s:
            await node.kill()
            await node.start()
            latest_s = time.monotonic() + _BOOT_S
        await asyncio.sleep(0.1)
