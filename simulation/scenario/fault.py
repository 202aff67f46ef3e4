"""Faults: what is done to the engine and its services while a run goes on, and when. Every one of them ends.

kill          SIGKILL. The server starts a stage again by itself; a service is started again, with its data
              and on its port, at the fault's end.
stop          SIGSTOP, and SIGCONT at the fault's end.
restart       an ordinary stop; what starts again and when is as for kill.
latency       every byte takes longer, each way, between the engine and the service.
cut           connections are reset, and refused until the fault's end.
freeze        bytes are held back until the fault's end.
drop_replies  requests pass; some answers are thrown away and their connections reset: what was asked is done,
              and who asked never learns it.
bandwidth     only so many bytes a second pass, each way, on each connection.

Refusals, by a service that lives:

out_of_memory   redis: every write that could take memory is refused (OOM, maxmemory with noeviction).
                rabbitmq: the memory alarm, under which publishers are blocked.
disk_full       redis: every write is refused because the last snapshot failed (MISCONF).
                rabbitmq: the disk alarm, under which publishers are blocked.
read_only       redis: it is a replica without a primary (READONLY). postgres: every transaction is read-only.
no_connections  postgres: every connection slot is taken, and the engine's sessions are ended.

Losses of the gate's memory. Fulfilment is stopped from the begin on, so that RabbitMQ holds purchases that
the ledger does not know. At the end the front door is stopped, the relay hands over what is in the outbox
(what only the gate knew nobody could bring back), Redis loses its memory, and both stages are continued:

flush         it holds nothing (FLUSHALL).
wipe          killed, and started without any files.
rollback      killed, and started with the files that it had at the begin.
failover      killed, and in its place comes a replica that was cut off at the begin.
"""

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
    **REFUSALS,
    **dict.fromkeys(LOSSES, ("redis",)),
}
"""What each kind of fault can be done to."""
LONGEST_S: Final = 3_600.0
INSTANT: Final = ("kill", "restart", "cut")
"""Kinds that do something even if they last no time."""
STRENGTH_OF: Final = {"latency_ms": "latency", "share": "drop_replies", "bytes_per_s": "bandwidth"}


def _words(*words: str) -> Meta:
    return Meta(pattern=f"^({'|'.join(words)})$")


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One fault of a timeline."""

    at_s: Annotated[float, Meta(ge=0)]
    """When it begins, from the run's start."""
    kind: Annotated[str, _words(*TARGETS)]
    on: Annotated[str, _words(*STAGES, *SERVICES)]
    """All processes of a stage, or a service; for a fault of the network, the engine's way to it."""
    seconds: Annotated[float, Meta(ge=0, le=LONGEST_S)] = 0.0
    latency_ms: Annotated[float, Meta(gt=0, le=60_000)] | None = None
    """Of latency, one way; default 100."""
    share: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Of drop_replies: the share of the answers, as they come in pieces, that is thrown away; default 0.1."""
    bytes_per_s: Annotated[int, Meta(ge=100)] | None = None
    """Of bandwidth; default 50,000."""

    @property
    def end_s(self) -> float:
        """When it is to be healed."""
        return self.at_s + self.seconds

    @property
    def of_network(self) -> bool:
        """Whether it is done to the network, and so by the proxy."""
        return self.kind in NETWORK_KINDS

    @property
    def of_memory(self) -> bool:
        """Whether the gate loses its memory by it."""
        return self.kind in LOSSES


def overlap(one: Fault, other: Fault, apart_s: float = 0.0) -> bool:
    """Whether two faults would be done to the same processes, or the same way, less than `apart_s` apart.

    A loss of memory stops and continues stages, and so stands alone among the faults of processes.
    """
    same = one.of_network == other.of_network and (one.on == other.on or one.of_memory or other.of_memory)
    return same and one.at_s <= other.end_s + apart_s and other.at_s <= one.end_s + apart_s
