"""Sales: what is sold, how much of it, to whom and when."""

from typing import Annotated

import msgspec

MAX_ID = 2**63 - 1
"""Largest id that a PostgreSQL bigint holds."""
MAX_STOCK = 10**12
"""Largest stock of a sale: far inside the 2^53 up to which the gate's Lua counts exactly."""

Id = Annotated[int, msgspec.Meta(ge=1, le=MAX_ID)]
TimestampMs = Annotated[int, msgspec.Meta(ge=0, le=2**52)]


class SaleTerms(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator asks for when a sale is opened. Times are Unix milliseconds of the gate's clock."""

    product_id: Id
    stock: Annotated[int, msgspec.Meta(ge=0, le=MAX_STOCK)]
    limit: Annotated[int, msgspec.Meta(ge=1, le=MAX_STOCK)] | None = None
    """Most units that one user may buy; None is no limit."""
    quantity: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1
    """Units that one purchase takes."""
    starts_ms: TimestampMs | None = None
    ends_ms: TimestampMs | None = None


class Sale(msgspec.Struct, frozen=True, kw_only=True):
    """An open sale: its terms, and the number that the ledger gave it."""

    sale_id: Id
    terms: SaleTerms
    offered: bool = False
    """Whether the gate is known to have taken it."""
