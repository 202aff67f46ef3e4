"""The payment gateway: what stands between a reservation and a confirmed order."""

from collections.abc import Sequence
from typing import Protocol

from engine.model.lot import Reservation


class PaymentGateway(Protocol):
    """Charges a batch. Charging an order id again gives the same answer and takes no money again."""

    async def charge(self, batch: Sequence[Reservation]) -> list[str | None]:
        """For each reservation None, if it was approved, or the reason why it was declined.

        An exception says that the gateway can't answer now; the batch is charged again later.
        """
        ...
