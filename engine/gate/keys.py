"""Names of the gate's keys, and which shard holds a product.

Every key of a shard carries the shard's hash tag, so that a script stays on one node of a Redis Cluster.
"""

from typing import Final


class ShardKeys:
    """The keys of one shard.

    outbox      stream     one entry for each batch that accepted something
    pending     hash       orders that are accepted and not yet settled: see pending.py
    sale        hash       a product's current sale: sale_id stock remaining released limit quantity
                           starts_ms ends_ms
    buyers      hash       user id → units bought in a sale; only where the sale has a limit
    answer      string     order id that a user's Idempotency-Key got for a product; expires
    dead        stream     records that fulfilment can't use, where no bus is configured
    mark        hash       proof that the shard has not lost its memory: see mark.py
    """

    GROUP: Final = "fulfilment"
    """The outbox's only consumer group."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.prefix = f"fg:{{{shard}}}:"
        self.outbox = f"{self.prefix}outbox"
        self.pending = f"{self.prefix}pending"
        self.dead = f"{self.prefix}dead"
        self.mark = f"{self.prefix}mark"

    def sale(self, product_id: int) -> str:
        """The hash of the product's current sale."""
        return f"{self.prefix}sale:{product_id}"

    def buyers(self, sale_id: int) -> str:
        """The hash of units bought by each user of a sale."""
        return f"{self.prefix}buyers:{sale_id}"


def shard_of(product_id: int, shards: int) -> int:
    """The shard that holds a product: Fibonacci hashing (Knuth, TAOCP 3, 6.4), the same on every machine."""
    return (product_id * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) * shards >> 64
