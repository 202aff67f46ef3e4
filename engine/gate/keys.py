"""Names of the gate's keys, and which shard holds a product.

Every key of a shard carries the shard's hash tag, so that all of them lie in one slot of a Redis Cluster, and
a script stays on one node. The shards' slots are spread evenly, and so are the shards over primaries that
share the slots evenly:

    fg:{<shard>}:outbox            stream  an entry for each batch that accepted something (lot.py)
    fg:{<shard>}:pending           hash    orders that are accepted and not yet settled (clearing.py)
    fg:{<shard>}:confirmed:<stem>  string  what the ledger has confirmed of a batch (clearing.py); expires
    fg:{<shard>}:sale:<product>    hash    the product's current sale: sale_id stock remaining released limit
                                           quantity starts_ms ends_ms
    fg:{<shard>}:buyers:<sale>     hash    user id → units bought; only if the sale has a limit
    fg:{<shard>}:answer:<product>:<user>:<key>
                                   string  order id that an Idempotency-Key got; expires
    fg:{<shard>}:dead              stream  dead letters of an engine without a bus
    fg:{<shard>}:mark              hash    the fence: proof that the shard remembers (fence.py)
    fg:{<shard>}:ill:<stage>       string  what a stage says of itself while it does not work; expires
    fg:{<shard>}:ledger            string  identity of the ledger whose gate this is
    fg:{<shard>}:probe             string  a write whose copies are counted; expires at once

Dead letters, what stages say of themselves, and the ledger's identity are in the first shard alone.
"""

from binascii import crc_hqx
from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Final, TypeVar

T = TypeVar("T")

STAGES: Final = ("relay", "fulfilment", "payment", "ledger")
"""The stages that a purchase passes after the gate."""
_SLOTS: Final = 16_384


class ShardKeys:
    """The keys of one shard."""

    GROUP: Final = "fulfilment"
    """The outbox's only consumer group."""

    def __init__(self, shard: int = 0, of: int = 1) -> None:
        self.shard = shard
        tag = _make_tag(shard, of)
        self.slot: Final = _slot_of(tag)
        """Of a Redis Cluster."""
        self.prefix = f"fg:{{{tag}}}:"
        self.outbox = f"{self.prefix}outbox"
        self.pending = f"{self.prefix}pending"
        self.dead = f"{self.prefix}dead"
        self.fence = f"{self.prefix}mark"
        self.ledger = f"{self.prefix}ledger"
        self.probe = f"{self.prefix}probe"

    def ill(self, stage: str) -> str:
        """Return the key of what a stage says of itself while it does not work."""
        return f"{self.prefix}ill:{stage}"

    def confirmed(self, stem: str) -> str:
        """Return the key of what the ledger has confirmed of a batch."""
        return f"{self.prefix}confirmed:{stem}"

    def sale(self, product_id: int) -> str:
        """Return the key of the product's current sale."""
        return f"{self.prefix}sale:{product_id}"


@cache
def _make_tag(shard: int, of: int) -> str:
    """Return the hash tag of one of so many shards: its slot lies in the middle of its share of the slots."""
    if of == 1:
        return "0"
    middle, near = (2 * shard + 1) * _SLOTS // (2 * of), max(_SLOTS // (8 * of), 4)
    tags = (f"{shard}.{number}" for number in count())
    return next(tag for tag in tags if abs(_slot_of(tag) - middle) <= near)


def _slot_of(tag: str) -> int:
    """Return the slot of the keys with a hash tag: CRC16, as the Redis Cluster Specification says."""
    return crc_hqx(tag.encode(), 0) % _SLOTS


def shard_of(product_id: int, shards: Sequence[T]) -> T:
    """Return the shard of a product by Fibonacci hashing (Knuth, TAOCP 3, 6.4), the same on every machine."""
    return shards[(product_id * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) * len(shards) >> 64]
