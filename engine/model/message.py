"""What carries lots from one stage to the next."""

from typing import Any

import msgspec


class Message(msgspec.Struct, eq=False, kw_only=True):
    """One outbox entry or one message of the bus, acknowledged as a whole."""

    tag: Any
    """What its source needs to acknowledge it."""
    lines: bytes
    """Lots, one a line (lot.py), as they arrived."""
    orders: int = 0
    """Number of orders in it; 0 where its source does not say."""
    repeated: bool
    """Whether it may have been worked on before."""
    parts: int = 0
    """Batches that hold some of it and are not done."""
