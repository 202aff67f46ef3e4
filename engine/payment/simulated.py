"""Payment: what stands between a reservation and a confirmed order."""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b

from engine.model.lot import Reservation


class SimulatedGateway:
    """Declines a share of orders after a fixed time; which ones is a pure function of seed and order id."""

    def __init__(self, latency_ms: float = 0.0, decline_rate: float = 0.0, seed: int = 0) -> None:
        self._latency_s = latency_ms / 1000
        # An order is declined if its hash, evenly spread over 64 bits, falls below the rate's share of them.
        self._bound = int(decline_rate * 2**64)
        self._seed = str(seed).encode()

    async def charge(self, batch: Sequence[Reservation]) -> list[str | None]:
        """One latency for the whole batch: its payments run side by side."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        if not self._bound:
            return [None] * len(batch)
        return ["payment declined" if self.declines(r.order_id) else None for r in batch]

    def declines(self, order_id: str) -> bool:
        """Whether it declines that order, however often it is asked."""
        if not self._bound:
            return False
        digest = blake2b(order_id.encode(), key=self._seed, digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._bound
