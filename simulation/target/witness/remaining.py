"""What an engine has for sale, where its description says: in a table, in Redis, or in an answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from engine.gate.client import connect_redis
from engine.model.sale import Sale
from simulation.errors import EngineError, Unreadable
from simulation.model.contract import Contract
from simulation.target.stores import TIMEOUT_MS, connect_ledger
from simulation.target.witness.http import read_over_http
from simulation.target.witness.rows import fetch
from simulation.target.witness.tables import Remaining


@dataclass(frozen=True)
class RemainingReader:
    """Reads what is still for sale of products."""

    told: Remaining
    contract: Contract
    url: str
    ca: str | None
    postgres_url: str
    redis_url: str | None

    def name_key(self, product_id: int) -> str | None:
        """Return the key of a product in Redis, if that is where it stands."""
        return self.told.redis and self.told.redis.replace("{product_id}", str(product_id))

    async def read(self, sales: Sequence[Sale]) -> dict[int, int]:
        """Return what is still for sale of each product. Raises EngineError or Unreadable."""
        left = await self.read_shown(sales)
        if self.told.redis:
            # A key that was there and is gone: the engine has nothing to sell.
            left = {sale.terms.product_id: 0 for sale in sales} | left
        return left

    async def read_shown(self, sales: Sequence[Sale]) -> dict[int, int]:
        """Return what is still for sale of each product of which that is shown. Raises EngineError or
        Unreadable."""
        products = sorted({sale.terms.product_id for sale in sales})
        if self.told.sql is not None:
            async with connect_ledger(self.postgres_url) as connection:
                _, rows = await fetch(connection, self.told.sql, sales)
            left = {row["product_id"]: row["remaining"] for row in rows if row["product_id"] in products}
        elif self.told.redis is not None:
            if self.redis_url is None:
                raise EngineError("sql.remaining.redis: needs a redis_url, or --redis-url")
            async with connect_redis(self.redis_url, TIMEOUT_MS) as redis:
                held: dict[int, Any] = {
                    product: await redis.get(self.name_key(product) or "") for product in products
                }
            left = {
                product: value.decode(errors="replace")
                for product, value in held.items()
                if value is not None
            }
        else:
            left = await read_over_http(self.contract, self.url, self.ca, products)
        return {product: self._count(product, value) for product, value in left.items()}

    def _count(self, product_id: int, value: Any) -> int:
        """Return a number of units. Raises Unreadable if it is none."""
        try:
            if (number := int(value)) == Decimal(str(value)):
                return number
        except (TypeError, ValueError, ArithmeticError):
            pass
        said = "NULL" if value is None else repr(value)
        where = self.name_key(product_id) or f"product {product_id}"
        raise Unreadable(f"sql.remaining: {where} is {said}, and must be a whole number")
