"""Faults: what is done to the engine and its services during a run, and when. Every fault ends.

kill          SIGKILL. The server starts a stage again by itself. A service starts again at the fault's end,
              with its data and on its port.
stop          SIGSTOP, and SIGCONT at the fault's end.
restart       An ordinary stop. Stage and service start again as after kill.
latency       Every byte between the engine and the service takes longer, each way.
cut           Connections are reset, and refused until the fault's end.
freeze        Bytes are held back until the fault's end.
drop_replies  Requests pass. Some answers are dropped and their connections reset: the request is done, but
              the client does not learn it.
bandwidth     A limited number of bytes a second passes, each way, on each connection.

drop_connections  The service closes every connection, and takes new ones at once: as an operator does
                  (CLIENT KILL, close_all_connections, pg_terminate_backend), or a load balancer.

Refusals, by a service that lives:

out_of_memory   redis: it refuses every write that could take memory (OOM, maxmemory with noeviction).
                rabbitmq: the memory alarm blocks publishers.
disk_full       redis: it refuses every write because the last snapshot failed (MISCONF).
                rabbitmq: the disk alarm blocks publishers.
read_only       redis: it is a replica without a primary (READONLY). postgres: every transaction is read-only.
no_connections  postgres: every connection slot is taken, and the engine's sessions are ended.

A fault of one's own:

command       A command begins it, and another one ends it. `on` is a name for it.

Losses of the gate's memory. Fulfilment is stopped during the fault, so that RabbitMQ holds purchases that the
ledger does not know. At the end the front door is stopped and the relay hands over the outbox, as soon as
other faults let it: nobody could restore what only the gate knew. Then Redis loses its memory, and both
stages continue:

flush         Redis holds nothing (FLUSHALL).
wipe          Redis is killed, and starts without any files.
rollback      Redis is killed, and starts with the files that it had when the fault began.
failover      Redis is killed, and a replica takes its place that was cut off when the fault began.

On three machines (topology) a fault hits a node, or all that runs on one machine at once: machine-1 to
machine-3. A node is named by its role when the fault begins: redis-primary is the primary of the busiest
shard, redis-replica a replica of that one, queue-leader the node of RabbitMQ that leads the queue. It may be
named by its number as well: redis-1 to redis-9, rabbitmq-1 to -3, postgres-1 to -3. So may an engine with all
of its stages: engine-1 to -3, each on the machine of its number. The record says what was hit.
After such a fault the next one waits until every cluster is whole and each shard's primary at home.

kill           SIGKILL. Started again at the fault's end; it follows a node that has taken its place.
stop           SIGSTOP, and SIGCONT at the fault's end. A node of RabbitMQ that stays apart from the others
               then is started again, because it does not join them by itself.
restart        An ordinary stop, before which a primary of Redis hands over. Started again as after kill.
partition      What the node's machine and the other machines send each other vanishes until the fault's end.
               Neither side is told, and shoppers reach all of them. This needs network namespaces, so root.
partition_in   Only what the others send to the machine vanishes.
partition_out  Only what the machine sends to the others vanishes.
switchover     The primary hands over to another node, in order and without a loss: CLUSTER FAILOVER;
               PostgreSQL is stopped, and a standby promoted.
"""

import shlex
from typing import Annotated, Final

import msgspec
from msgspec import Meta

PROCESS_KINDS: Final = ("kill", "stop", "restart")
NETWORK_KINDS: Final = ("latency", "cut", "freeze", "drop_replies", "bandwidth")
STAGES: Final = ("front-door", "relay", "fulfilment")
SERVICES: Final = ("redis", "rabbitmq", "postgres")
REFUSALS: Final = {
    "out_of_memory": ("redis", "rabbitmq"),
    "disk_full": ("redis", "rabbitmq"),
    "read_only": ("redis", "postgres"),
    "no_connections": ("postgres",),
}
LOSSES: Final = ("flush", "wipe", "rollback", "failover")
TARGETS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(PROCESS_KINDS, STAGES + SERVICES),
    **dict.fromkeys(NETWORK_KINDS, SERVICES),
    "drop_connections": SERVICES,
    **REFUSALS,
    **dict.fromkeys(LOSSES, ("redis",)),
}
"""What each kind of fault can be done to."""
MACHINES: Final = ("machine-1", "machine-2", "machine-3")
ROLES: Final = (
    "redis-primary", "redis-replica",
    "queue-leader", "queue-follower",
    "postgres-primary", "postgres-standby",
)  # fmt: skip
NODES: Final = (
    *(f"redis-{number}" for number in range(1, 10)),
    *(f"{name}-{number}" for name in ("rabbitmq", "postgres", "engine") for number in range(1, 4)),
)
PARTITIONS: Final = ("partition", "partition_in", "partition_out")
CLUSTER_TARGETS: Final[dict[str, tuple[str, ...]]] = {
    **dict.fromkeys(PROCESS_KINDS, (*ROLES, *MACHINES, *STAGES)),
    **dict.fromkeys(PARTITIONS, ("redis-primary", "queue-leader", "postgres-primary")),
    "switchover": ("redis-primary", "postgres-primary"),
}
"""What each kind of fault can be done to on three machines. All but a switchover can be done to any node."""
COMMAND: Final = "command"
"""A fault of one's own: a command begins it, another one ends it. It may be done to any engine."""
INSTANT: Final = ("kill", "restart", "cut", "drop_connections", "switchover", COMMAND)
"""Kinds that do something even if they last no time."""
STRENGTH_OF: Final = {"latency_ms": "latency", "share": "drop_replies", "bytes_per_s": "bandwidth"}


def _words(*words: str) -> Meta:
    return Meta(pattern=f"^({'|'.join(words)})$(?!\\n)")


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault of a timeline."""

    at_s: Annotated[float, Meta(ge=0)]
    """When it begins, from the run's start."""
    kind: Annotated[str, _words(*TARGETS, *PARTITIONS, "switchover", COMMAND)]
    on: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9-]{0,63}$(?!\n)")]
    """A service, or all processes of a stage; for a network fault, the way from the engine to the service.
    On three machines a node, by role or name, or a machine. For a command it is any name."""
    seconds: Annotated[float, Meta(ge=0, le=3_600)] = 0.0
    latency_ms: Annotated[float, Meta(gt=0, le=60_000)] | None = None
    """For latency, one way; default 100."""
    share: Annotated[float, Meta(gt=0, le=1)] | None = None
    """For drop_replies: the share of the pieces of answers that is dropped; default 0.1."""
    bytes_per_s: Annotated[int, Meta(ge=100)] | None = None
    """For bandwidth; default 50,000."""
    begin: str = ""
    """For command: what is done at its start."""
    end: str = ""
    """For command: what is done at its end."""

    @property
    def end_s(self) -> float:
        """When it is to end."""
        return self.at_s + self.seconds

    @property
    def of_network(self) -> bool:
        """Whether it is a network fault, which the proxy does."""
        return self.kind in NETWORK_KINDS

    @property
    def of_memory(self) -> bool:
        """Whether the gate loses its memory."""
        return self.kind in LOSSES

    @property
    def of_nodes(self) -> bool:
        """Whether it is done to a node of a cluster, or to a machine."""
        return self.kind != COMMAND and self.on in (*ROLES, *MACHINES, *NODES)

    @property
    def hits(self) -> tuple[str, ...]:
        """What it needs for itself while it lasts: the processes, or the way, that it is done to.

        The names are in one order for all faults. A loss of memory stops and continues two stages. Of three
        machines one may fail, and which one shows when the fault begins.
        """
        if self.of_nodes:
            return ("a machine",)
        if self.of_memory:
            return ("front-door", "fulfilment", "redis")
        return (f"the way to {self.on}" if self.of_network else self.on,)


def split_command(command: str) -> list[str]:
    """Return the words of a command. Raises ValueError, in words that follow its key, if it is none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"is no command: {str(error).lower()}") from None
    if not words or not words[0]:
        raise ValueError("names no program")
    return words


def list_targets(machines: int) -> dict[str, tuple[str, ...]]:
    """Return what each kind of fault can be done to on so many machines."""
    return CLUSTER_TARGETS if machines > 1 else TARGETS


def is_over_at_once(kind: str, on: str) -> bool:
    """Return whether such a fault is over as soon as it is done: the server starts a stage again at once."""
    return kind in ("drop_connections", "switchover") or (on in STAGES and kind != "stop")


def overlap(one: Fault, other: Fault, apart_s: float = 0.0) -> bool:
    """Return whether two faults hit the same processes, or the same way, less than `apart_s` apart."""
    same = not set(one.hits).isdisjoint(other.hits)
    return same and one.at_s <= other.end_s + apart_s and other.at_s <= one.end_s + apart_s
