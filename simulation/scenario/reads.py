"""Reads: which part of the crowd looks at the stock, and which buyers look at their orders."""

from typing import Annotated

import msgspec
from msgspec import Meta


class Reads(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `[population.reads]` table of a scenario. Reads come on top of the purchases, and change none."""

    stock_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Looks at the stock, as a share of the arrival curve: 0.05 is one look for each 20 purchases."""
    order_share: Annotated[float, Meta(ge=0, le=1)] = 0.0
    """Share of the accepted buyers that look at their order until its status is final, and once more."""
    pause_ms: Annotated[float, Meta(ge=1, le=600_000)] = 500.0
    """From the answer of a buyer to the first look, and from each look to the next one."""
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Each buyer has a pause of its own, drawn evenly from pause_ms · (1 ± jitter)."""
    most: Annotated[int, Meta(ge=1, le=1_000)] = 10
    """Most looks of one buyer."""
