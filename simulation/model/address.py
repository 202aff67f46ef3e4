"""Where requests go, and how they look there."""

from functools import cached_property
from typing import cast

import msgspec

from simulation.model.contract import FLASHGRID, Contract, OrderRead, StockRead
from simulation.model.requests import Encoder


class Tls(msgspec.Struct, frozen=True):
    """HTTPS: whose certificate is expected, and which authority has signed it."""

    name: str
    ca: str | None = None
    """A file of certificates; None: the system's."""


class Address(msgspec.Struct, frozen=True, dict=True):
    """Where the requests go, and how they look there (HTTP/1.1)."""

    host: str
    """A numeric address: a name would be looked up for each connection."""
    port: int
    authority: str
    """The Host header."""
    path: str
    """What goes before every path of the contract."""
    contract: Contract = FLASHGRID
    tls: Tls | None = None

    def encode_buy(self, user_id: int, product_id: int, key: str = "", token: str = "") -> bytes:
        """Return the request that buys; an empty key is none, and an engine may take no token."""
        encoder = self._keyed if key else self._keyless
        return encoder.encode(user_id=user_id, product_id=product_id, key=key, token=token)

    def encode_stock(self, product_id: int) -> bytes:
        """Return the request that reads the stock of a product, if the contract has one."""
        return self._stock.encode(product_id=product_id)

    def encode_order(self, order_id: str, user_id: int, token: str = "") -> bytes:
        """Return the request by which a buyer reads an order, if the contract has one."""
        return self._order.encode(order_id=order_id, user_id=user_id, token=token)

    @cached_property
    def _keyed(self) -> Encoder:
        return Encoder(self.contract.buy, self.authority, self.path)

    @cached_property
    def _keyless(self) -> Encoder:
        return Encoder(self.contract.buy, self.authority, self.path, missing=("key",))

    @cached_property
    def _stock(self) -> Encoder:
        return Encoder(cast(StockRead, self.contract.stock), self.authority, self.path)

    @cached_property
    def _order(self) -> Encoder:
        return Encoder(cast(OrderRead, self.contract.order), self.authority, self.path)
