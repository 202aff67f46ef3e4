"""Names of the gate's keys, and which shard holds a product.

Every key of a shard carries the shard's hash tag, so that a script stays on one node of a Redis Cluster:

    fg:{<shard>}:outbox            stream  an entry for each batch that accepted something (lot.py)
    fg:{<shard>}:pending           hash    orders that are accepted and not yet settled (clearing.py)
    fg:{<shard>}:sale:<product>    hash    the product's current sale: sale_id stock remaining released limit
                                           quantity starts_ms ends_ms
    fg:{<shard>}:buyers:<sale>     hash    user id → units bought; only if the sale has a limit
    fg:{<shard>}:answer:<product>:<user>:<key>
                                   string  order id that an Idempotency-Key got; expires
    fg:{<shard>}:dead              stream  dead letters of an engine without a bus
    fg:{<shard>}:mark              hash    the fence: proof that the shard remembers (fence.py)
    fg:{0}:ill:<stage>             string  what a stage says of itself while it does not work; expires
"""

from collections.abc import Sequence
from typing import Final, TypeVar

T = TypeVar("T")

STAGES: Final = ("relay", "fulfilment", "payment", "ledger")
"""The stages that a purchase passes after the gate."""


class ShardKeys:
    """The keys of one shard."""

    GROUP: Final = "fulfilment"
    """The outbox's only consumer group."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.prefix = f"fg:{{{shard}}}:"
        self.outbox = f"{self.prefix}outbox"
        self.pending = f"{self.prefix}pending"
        self.dead = f"{self.prefix}dead"
        self.fence = f"{self.prefix}mark"

    def sale(self, product_id: int) -> str:
        """Return the key of the product's current sale."""
        return f"{self.prefix}sale:{product_id}"


def ill(stage: str) -> str:
    """Return the key of what a stage says of itself while it does not work."""
    return f"{ShardKeys(0).prefix}ill:{stage}"


def shard_of(product_id: int, shards: Sequence[T]) -> T:
    """Return the shard of a product by Fibonacci hashing (Knuth, TAOCP 3, 6.4), the same on every machine."""
    return shards[(product_id * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) * len(shards) >> 64]
