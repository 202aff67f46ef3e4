"""What users and operators ask for in an example, and what they are told. Times count events."""

from typing import Any

import msgspec

from engine.model.purchase import Outcome
from engine.model.sale import SaleTerms


class Purchase(msgspec.Struct):
    """A request to buy."""

    user_id: int
    product_id: int
    key: str | None
    sent: int
    front_door: Any
    done: int | None = None
    outcome: Outcome | None = None
    order_id: str | None = None


class Opening(msgspec.Struct):
    """A sale that an operator opens, perhaps several times, under one key."""

    terms: SaleTerms
    key: str
    asked: int
    opened: int | None = None
    sale_id: int | None = None
    refused: bool = False
    """Whether the operator was told each time that nothing was opened."""
