"""A simulated payment gateway."""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b

from engine.model.lot import Lot


class SimulatedGateway:
    """Declines a share of orders after a fixed time; which ones is a pure function of seed and order id."""

    def __init__(self, latency_ms: float = 0.0, decline_rate: float = 0.0, seed: int = 0) -> None:
        self._latency_s = latency_ms / 1000
        # An order is declined if its hash, evenly spread over 64 bits, is below the rate's share of them.
        self._bound = int(decline_rate * 2**64)
        self._seed = str(seed).encode()

    async def charge(self, lots: Sequence[Lot]) -> dict[str, str]:
        """Charge the lots; the latency is one for all of them, as their payments run side by side."""
        if self._latency_s:
            await asyncio.sleep(self._latency_s)
        if not self._bound:
            return {}
        return {
            order_id: "payment declined"
            for lot in lots
            for order_id in lot.order_ids
            if self.declines(order_id)
        }

    def declines(self, order_id: str) -> bool:
        """Return whether the payment of this order is declined."""
        digest = blake2b(order_id.encode(), key=self._seed, digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._bound
