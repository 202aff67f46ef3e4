"""How the stores keep what the engine holds: names and layouts, written down once more and by themselves.

Whoever reads the final state is a witness against the engine, and so shares no code with it: an engine that
misreads its own stores can't make the witness misread them, too.

fg:{<shard>}:sale:<product>  hash    sale_id stock remaining released limit quantity starts_ms ends_ms; 0 none
fg:{<shard>}:pending         hash    the first 33 characters of order ids → a digit for each order by its
                                     place, 1 while it is pending; the place is the id's last three digits
fg:{<shard>}:outbox          stream  an entry for each batch that is not relayed yet
fg:{<shard>}:dead            stream  dead letters of an engine without a bus
fg:{<shard>}:mark            hash    `open` is the shard's generation; it is closed without one
"""

from binascii import crc_hqx
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Final

import pandas as pd

from simulation.model.state import GATE_TYPES

PURCHASES: Final = "flashgrid.purchases"
DEAD: Final = "flashgrid.dead"
"""Queues of the bus."""
OPEN: Final = "open"
_SLOTS: Final = 16_384
_FIELDS: Final = ("sale_id", "stock", "remaining", "released", "limit", "quantity", "starts_ms", "ends_ms")
_OPTIONAL: Final = ("user_limit", "starts_ms", "ends_ms")
_HASH: Final = 11_400_714_819_323_198_485
"""2^64 over the golden ratio: Fibonacci hashing (Knuth, TAOCP 3, 6.4)."""


def name_key(shard: int, what: str, shards: int = 1) -> str:
    """Return the name of a shard's key: `outbox`, `pending`, `dead`, `mark` or `sale:<product>`."""
    return f"fg:{{{_name_shard(shard, shards)}}}:{what}"


@cache
def _name_shard(shard: int, shards: int) -> str:
    """Return the tag of a shard; its slot in a Redis Cluster is the first one near its share's middle."""
    if shards == 1:
        return "0"
    middle, most, number = (2 * shard + 1) * _SLOTS // (2 * shards), max(_SLOTS // (8 * shards), 4), 0
    while abs(crc_hqx(f"{shard}.{number}".encode(), 0) % _SLOTS - middle) > most:
        number += 1
    return f"{shard}.{number}"


def find_slot(shard: int, shards: int) -> int:
    """Return the slot of a Redis Cluster in which a shard's keys lie."""
    return crc_hqx(_name_shard(shard, shards).encode(), 0) % _SLOTS


def place_product(product_id: int, shards: int) -> int:
    """Return the number of the shard that holds a product."""
    return (product_id * _HASH % 2**64) * shards >> 64


def decode_sales(hashes: Mapping[bytes, Mapping[bytes, bytes]]) -> pd.DataFrame:
    """Return the gate's sales from their hashes by key: a row for each, GATE_TYPES. A row of a key that
    holds no sale is all zeros."""
    rows = [
        [int(key.rpartition(b":")[2]), *(int(fields.get(name.encode(), 0)) for name in _FIELDS)]
        for key, fields in hashes.items()
    ]
    sales = pd.DataFrame(rows, columns=list(GATE_TYPES), dtype="int64").astype(GATE_TYPES)
    return sales.assign(**{name: sales[name].mask(sales[name] == 0) for name in _OPTIONAL})


def decode_pending(batches: Mapping[bytes, bytes]) -> set[str]:
    """Return the ids of the pending orders of a shard's hash."""
    return {
        f"{stem.decode()}{place:03x}"
        for stem, digits in batches.items()
        for place, digit in enumerate(digits.decode())
        if digit == "1"
    }


def count_pending(batches: Iterable[bytes]) -> int:
    """Return the number of pending orders in the values of a shard's hash."""
    return sum(digits.count(b"1") for digits in batches)
