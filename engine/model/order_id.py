"""Order ids: made for a whole batch at once.

An order id is a UUID version 7 in its canonical text form (RFC 9562, 5.7): 48 bits of Unix milliseconds, then
random bits, of which the last twelve are a counter (its section 6.2, method 1). All orders that one call of
the gate accepts share the rest of it, their stem, and differ in the counter, their place.
"""

import os
import re
import time
from functools import lru_cache
from typing import Annotated, Final

import msgspec

_STEM: Final = "[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{9}"
_STEM_LENGTH: Final = 33
PATTERN: Final = f"{_STEM}[0-9a-f]{{3}}"
"""Of an order id in canonical form."""

OrderId = Annotated[str, msgspec.Meta(pattern=f"^{PATTERN}$")]
"""The id of one order."""
PLACES: Final = tuple(f"{place:03x}" for place in range(4096))
"""What completes a stem, by the order's place in its batch."""


def make_stem() -> str:
    """Return a new random stem of the present millisecond."""
    milliseconds = f"{time.time_ns() // 1_000_000:012x}"
    random = os.urandom(8).hex()
    variant = "89ab"[int(random[3], 16) & 3]
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7{random[:3]}-{variant}{random[4:7]}-{random[7:16]}"


@lru_cache(maxsize=16)
def is_stem(text: str) -> bool:
    """Return whether the order ids of a batch can have this in common; its lots ask one after the other."""
    return re.fullmatch(_STEM, text) is not None


def is_order_id(text: str) -> bool:
    """Return whether an order can have this id."""
    return re.fullmatch(PATTERN, text) is not None


def read_time_ms(order_id: str) -> int:
    """Return the millisecond of an order id or its stem."""
    return int(order_id[:8] + order_id[9:13], 16)


def make_bound(time_ms: int) -> str:
    """Return the lowest order id of a millisecond."""
    milliseconds = f"{max(0, time_ms):012x}"
    return f"{milliseconds[:8]}-{milliseconds[8:]}-7000-8000-000000000000"


def split_order_id(order_id: str) -> tuple[str, int]:
    """Return stem and place of an order id."""
    return order_id[:_STEM_LENGTH], int(order_id[_STEM_LENGTH:], 16)
