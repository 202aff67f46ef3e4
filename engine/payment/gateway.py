"""The payment gateway: it decides whether a reservation becomes a confirmed order."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.model.lot import Lot


class PaymentGateway(Protocol):
    """Charges a batch. Charging an order id again gives the same answer and takes no money again."""

    async def charge(self, lots: Sequence[Lot]) -> Mapping[str, str]:
        """Charge every order of the lots; return the reason for each order id whose payment is declined.

        An exception says that the gateway can't answer now; the batch is charged again later.
        """
        ...
